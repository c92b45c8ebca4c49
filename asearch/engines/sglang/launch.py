"""Command line and environment of an SGLang server.

On CPU the flags are those with which SGLang 0.5.23 serves without AMX and without its kernel package; `engine.args` come after
them, so that a flag which is given there wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from asearch import parent
from asearch.configuration.engine import EngineSettings, check_args
from asearch.engines.launch import Launch
from asearch.engines.sglang.shared_memory import left_by
from asearch.errors import ConfigError
from asearch.models.config import ModelConfig

FOLDER = Path(__file__).parents[3] / "infra" / "sglang"
"""Launcher and shims; `infra` is installed beside `asearch`."""
ENVIRONMENT = Path(".venv-sglang") / "bin" / "python"
RESERVED_TOKENS = 16
"""SGLang refuses prompts a few tokens below its context length; with so many on top ours is reached."""
STREAM_INTERVAL = 16
_CPU_FLAGS: dict[str, tuple[str, ...]] = {
    "--attention-backend": ("torch_native",),
    "--sampling-backend": ("pytorch",),
    "--disable-cuda-graph": (),
    "--dtype": ("float32",),
    "--mem-fraction-static": ("0.05",),
    # Without it the scheduler asks its sockets again and again, and an idle server takes a core from everybody else.
    "--sleep-on-idle": (),
}
_OTHER_WEIGHTS = ("--tp", "--tensor-par", "--pp", "--pipeline-par", "--dp", "--data-par", "--ep", "--dtype", "--quant")
"""Beginnings of flags after which a server does not hold whole parameters of float32."""
_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Variables that would lead the server's interpreter to our packages, or have it compile SGLang in each process anew."""
_SECRET = ("_TOKEN", "_KEY", "_SECRET", "_PASSWORD")
"""Ends of names of variables that an inference server, which loads a local folder, has no use for."""


def interpreter(settings: EngineSettings, folders: Sequence[Path] | None = None) -> Path:
    """The Python that has SGLang: `engine.python`, else that of `.venv-sglang` here or beside the sources.

    Raises ConfigError that says how to make it.
    """
    if settings.python is not None:
        given = Path(settings.python)
        if given.is_file():
            return given.absolute()
        raise ConfigError(f"engine.python: there is no {given}; name the interpreter of an environment that has SGLang")
    for folder in folders or (Path.cwd(), FOLDER.parents[1]):
        if (folder / ENVIRONMENT).is_file():
            return (folder / ENVIRONMENT).absolute()
    raise ConfigError(
        f"engine.kind is 'sglang' and there is no {ENVIRONMENT}: make it with `sh infra/sglang/setup.sh` (CPU; about 3 GB), or "
        "set engine.python to the interpreter of an environment that has SGLang, or engine.urls to servers that run already"
    )


def device(settings: EngineSettings, driver: Path = Path("/dev/nvidiactl")) -> str:
    """`cpu` or `cuda`; `auto` is CUDA where NVIDIA's driver is."""
    if settings.device != "auto":
        return settings.device
    return "cuda" if driver.exists() else "cpu"


def tells_whole_parameters(settings: EngineSettings) -> bool:
    """Whether `/weights_checker` of a server started so can be foretold from the published files (`asearch.weights.sglang`).

    On CUDA it is another hash; ranks divide parameters; nothing is known of a server that is attached to.
    """
    if settings.urls and settings.device != "cpu":
        return False
    return device(settings) == "cpu" and not any(arg.startswith(_OTHER_WEIGHTS) for arg in settings.args)


def launch(
    settings: EngineSettings,
    model_dir: Path,
    port: int,
    *,
    seed: int,
    max_context_tokens: int,
    name: str | None = None,
    tally: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Launch:
    """Start of a server of `model_dir` on a port of loopback; it says `name` until it is given weights. Raises ConfigError.

    It counts the tokens that it samples in a file whose name begins with `tally`.
    """
    check_args(settings.args)
    where = device(settings)
    flags: dict[str, tuple[str, ...]] = {
        "--model-path": (str(model_dir),),
        "--device": (where,),
        "--host": ("127.0.0.1",),
        "--port": (str(port),),
        "--random-seed": (str(seed & 0x7FFF_FFFF),),
        "--context-length": (str(_context_length(model_dir, max_context_tokens)),),
        "--max-running-requests": (str(settings.max_running_requests),),
        "--incremental-streaming-output": (),
        "--stream-interval": (str(STREAM_INTERVAL),),
    }
    if name is not None:
        flags["--weight-version"] = (name,)
    if where == "cpu":
        flags |= _CPU_FLAGS | {"--max-total-tokens": (str(settings.max_total_tokens),)}
    given = {arg.partition("=")[0] for arg in settings.args}
    ours = [word for flag, values in flags.items() if flag not in given for word in (flag, *values)]
    return Launch(
        argv=[str(interpreter(settings)), str(FOLDER / "launch_server.py"), *ours, *settings.args],
        env=_environment(os.environ if environ is None else environ, where, settings.threads, tally),
        port=port,
        name=name,
        left_by=left_by,
    )


def _context_length(model_dir: Path, max_context_tokens: int) -> int:
    return min(max_context_tokens + RESERVED_TOKENS, ModelConfig.load(model_dir).max_positions)


def _environment(environ: Mapping[str, str], where: str, threads: int, tally: Path | None) -> dict[str, str]:
    kept = {name: value for name, value in environ.items() if name not in _NOT_INHERITED and not name.endswith(_SECRET)}
    kept |= {
        # The log-probabilities of the model itself, before temperature: what the trainer computes, and the embedded engine says.
        "SGLANG_RETURN_ORIGINAL_LOGPROB": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        parent.VARIABLE: str(os.getpid()),
    }
    ours: list[str] = []
    if where == "cpu":
        kept |= {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": str(threads)}
        ours.append(str(FOLDER / "cpu"))
    if tally is not None:
        kept["ASEARCH_TALLY"] = str(tally.absolute())
        ours.append(str(FOLDER / "plugin"))
    return kept | ({"PYTHONPATH": os.pathsep.join(ours)} if ours else {})
