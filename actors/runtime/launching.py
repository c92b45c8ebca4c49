"""Which inference server an engine has: the embedded one, an SGLang server, or one that runs already."""

import sys
from collections.abc import Callable
from pathlib import Path

from actors.runtime.actor import Context
from actors.runtime.broker import free_port
from actors.runtime.inference_server import InferenceProcess
from asearch.engines.embedded.tally import read_tally
from asearch.engines.launch import Launch
from asearch.engines.sglang import launch as sglang
from asearch.errors import ConfigError
from asearch.models.config import ModelConfig

TALLIES = "tallies"
"""Folder of the run in which each server that is started counts the tokens it has sampled, in files named after its engine."""


def inference_process(
    context: Context,
    model_dir: str,
    launch: Callable[[], Launch] | None,
    is_excused: Callable[[], bool],
    say: Callable[[str], None],
) -> InferenceProcess:
    """The server that the settings name, not started; `launch` replaces how it is. Raises ConfigError."""
    engine = context.settings.engine
    url = "" if not engine.urls or launch is not None else _url(context)
    return InferenceProcess(
        context.platform,
        engine,
        context.run_dir / "logs" / f"{context.actor_id}-server.log",
        None if url else launch or (lambda: _launch(context, model_dir)),
        url,
        is_excused,
        say,
    )


def tokens_sampled(run_dir: Path) -> int:
    """What all servers that the run started have sampled, killed ones included; 0 where they do not count."""
    folder = run_dir / TALLIES
    return sum(read_tally(path) for path in folder.iterdir()) if folder.is_dir() else 0


def vocabulary_of(model_dir: str) -> int | None:
    """Size of the model's vocabulary; None where no model is there, as with a server of a test."""
    return ModelConfig.load(model_dir).vocab_size if (Path(model_dir) / "config.json").is_file() else None


def _url(context: Context) -> str:
    urls = context.settings.engine.urls
    _, _, number = context.actor_id.rpartition("-")
    if not number.isdecimal() or int(number) >= len(urls):
        raise ConfigError(f"{context.actor_id} has no server: engine.urls names {len(urls)}, for engine-0 and so on")
    return urls[int(number)]


def _launch(context: Context, model_dir: str) -> Launch:
    settings = context.settings
    if settings.engine.kind == "sglang":
        return sglang.launch(
            settings.engine,
            Path(model_dir),
            free_port(),
            seed=settings.seed,
            max_context_tokens=settings.agent.max_context_tokens,
            name=f"start-{context.platform.new_id()}",
            tally=context.run_dir / TALLIES / context.actor_id,
        )
    return _embedded(context, model_dir)


def _embedded(context: Context, model_dir: str) -> Launch:
    engine, port_file = context.settings.engine, context.run_dir / f"{context.actor_id}.port"
    argv = [
        *(sys.executable, "-m", "asearch.engines.embedded", "--model-path", model_dir),
        *("--host", "127.0.0.1", "--port", "0", "--port-file", str(port_file)),
        *("--threads", str(engine.threads), "--seed", str(context.settings.seed)),
        *("--max-running-requests", str(engine.max_running_requests)),
        *("--max-total-tokens", str(engine.max_total_tokens)),
        *("--context-length", str(context.settings.agent.max_context_tokens)),
        *("--stream-interval", "64", "--stream-seconds", str(engine.stream_s), "--incremental-streaming-output"),
        *("--step-delay-ms", str(1000 * engine.step_delay_s), "--die-with-parent"),
        *("--tally", str(context.run_dir / TALLIES / context.actor_id)),
    ]
    return Launch(argv, port_file=port_file)
