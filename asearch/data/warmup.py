"""The policy's warm start, planned: which model, which tokenizer, which demonstrations, and whether it is there already.

A finished warm start is kept in the user's cache under a hash of everything it depends on, this package's code included.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

import asearch
from asearch.agents.registry import CODECS
from asearch.agents.settings import AgentSettings
from asearch.configuration.settings import ModelSettings, Settings
from asearch.corpus.passages import read_passages
from asearch.data.demonstrations import DemonstrationSpec, demonstrations, vocabulary_texts
from asearch.data.foreign import format_demonstrations
from asearch.data.inputs import Inputs, world_spec
from asearch.data.jsonl import line_error, read_rows
from asearch.data.tasks import load_tasks
from asearch.errors import ConfigError
from asearch.models.folder import check_folder
from asearch.models.tokenizer import Tokenizer
from asearch.models.tokenizer_builder import build_tokenizer
from schemas.records import Segment


@dataclass(frozen=True)
class WarmupPlan:
    """What has to be done. `ready` is the folder of a model that needs nothing; `origin` says where it comes from."""

    settings: Settings
    inputs: Inputs
    fresh_dir: Path
    target_dir: Path
    ready: Path | None
    origin: str

    def batches(self) -> Iterator[list[Segment]]:
        """Demonstrations without end, about `warmstart.tokens_per_step` tokens a batch."""
        settings, warm = self.settings, self.settings.warmstart
        tokenizer = Tokenizer.load(self.fresh_dir)
        spec = DemonstrationSpec(warm.demonstrations, 64, warm.stop_early, warm.p_stop, warm.complete_demonstrations)
        world = self.inputs.world or world_spec(settings)
        own = demonstrations(world, settings.agent, tokenizer, spec, settings.seed, warm.tokens_per_step)
        if self.inputs.world is not None:
            return own
        foreign = format_demonstrations(
            self.inputs.corpus, self.inputs.train_tasks, settings.agent, tokenizer, settings.seed, warm.tokens_per_step
        )
        return _alternating(own, foreign)

    def finish(self) -> Path:
        """Put the trained model into the cache; the folder to use."""
        final = cache_dir(self.settings, self.inputs)
        if not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            aside = final.with_name(f".{final.name}.{os.getpid()}.part")
            shutil.copytree(self.target_dir, aside, dirs_exist_ok=True)
            try:
                aside.rename(final)
            except OSError:
                shutil.rmtree(aside)
        return self.target_dir


def plan_warmup(settings: Settings, inputs: Inputs, folder: Path) -> WarmupPlan:
    """Find out what a warm start has to do, and write the fresh model where one is needed.

    Raises InputError for a model folder that is missing or not supported, and for a question that is too long for the model's
    context; ConfigError for a model that cannot be made as the settings say.
    """
    plan = _plan(settings, inputs, folder)
    tokenizer = Tokenizer.load(plan.ready or plan.fresh_dir)
    for path in (settings.data.tasks, settings.data.eval_tasks):
        if path is not None:
            _refuse_long_questions(Path(path), settings.agent, tokenizer)
    return plan


def _refuse_long_questions(tasks: Path, agent: AgentSettings, tokenizer: Tokenizer) -> None:
    """Every question has to leave room for an act and a forced answer. Raises InputError naming file and line."""
    room = agent.max_context_tokens - agent.min_new_tokens - agent.forced_tokens
    codec = CODECS.get(agent.codec)()
    for number, row in read_rows(tasks, _Row, ""):
        n_tokens = len(tokenizer.encode(codec.opening(agent.instruction, row.question.strip())))
        if n_tokens > room:
            raise line_error(
                tasks,
                number,
                f"the question takes {n_tokens} tokens of the model's context, of which {room} are left for it",
                "Shorten it, or raise agent.max_context_tokens.",
            )


class _Row(msgspec.Struct):
    question: str


def _plan(settings: Settings, inputs: Inputs, folder: Path) -> WarmupPlan:
    if settings.model.path is not None:
        path = Path(settings.model.path)
        config, _ = check_folder(path)
        if settings.agent.max_context_tokens > config.max_positions:
            raise ConfigError(
                f"agent.max_context_tokens is {settings.agent.max_context_tokens}, but the model in {path} has "
                f"{config.max_positions} positions: lower it, or give another model"
            )
        return WarmupPlan(settings, inputs, path, path, path, "given")
    kept = cache_dir(settings, inputs)
    if kept.is_dir() and settings.warmstart.cache:
        return WarmupPlan(settings, inputs, kept, kept, kept, "warm start of an earlier run with the same settings and inputs")
    fresh, target = folder / "fresh", folder / "warm"
    _write_fresh(settings, inputs, fresh)
    if settings.warmstart.steps == 0:
        return WarmupPlan(settings, inputs, fresh, target, fresh, "random weights: warmstart.steps is 0")
    return WarmupPlan(settings, inputs, fresh, target, None, "")


def cache_dir(settings: Settings, inputs: Inputs) -> Path:
    """Where the warm start of these settings and inputs is kept: `$ASEARCH_CACHE`, else `~/.cache/asearch`."""
    root = Path(os.environ.get("ASEARCH_CACHE") or Path.home() / ".cache" / "asearch")
    digest = hashlib.sha256()
    parts = (settings.seed, settings.world, settings.model, settings.warmstart, settings.agent, inputs.world)
    digest.update(msgspec.json.encode(parts, order="deterministic"))
    code = sorted(Path(asearch.__file__).parent.rglob("*.py"))
    for path in (inputs.corpus, inputs.train_tasks, *code):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return root / "warmstart" / digest.hexdigest()[:32]


def _write_fresh(settings: Settings, inputs: Inputs, folder: Path) -> None:
    # torch is imported here alone, so that planning a run with a given model stays light.
    from asearch.models.initialise import initialise, small_config

    model: ModelSettings = settings.model
    world = inputs.world or world_spec(settings)
    texts = vocabulary_texts(world, settings.agent)
    foreign = _foreign_texts(inputs) if inputs.world is None else iter(())
    try:
        tokenizer = build_tokenizer(foreign, model.vocabulary, keep=texts)
    except ValueError as error:
        raise ConfigError(f"model.vocabulary: {error}. Raise it, or make the world smaller.") from error
    config = small_config(
        tokenizer,
        n_layers=model.layers,
        hidden_size=model.hidden,
        n_heads=model.heads,
        n_kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        intermediate_size=model.ffn,
        max_positions=max(2048, settings.agent.max_context_tokens or 0),
        rope_theta=model.rope_theta,
    )
    shutil.rmtree(folder, ignore_errors=True)
    initialise(folder, tokenizer, config, settings.seed)


def _foreign_texts(inputs: Inputs) -> Iterator[str]:
    for passage in read_passages(inputs.corpus):
        yield f" {passage.url} {passage.title} {passage.contents}"
    for task in load_tasks(inputs.train_tasks):
        yield f"Question: {task.question}\n {' '.join(task.answers)}"


def _alternating(first: Iterator[list[Segment]], second: Iterator[list[Segment]]) -> Iterator[list[Segment]]:
    while True:
        yield next(first)
        yield next(second)
