"""What a run works on: the user's corpus and tasks, or a generated world; checked, split, and laid out in one folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from asearch.configuration.settings import Settings
from asearch.corpus.passages import read_passages
from asearch.data.tasks import LoadedTask, load_tasks, split_tasks, without_questions_of
from asearch.data.worlds.files import write_world
from asearch.data.worlds.world import WorldSpec
from asearch.errors import ConfigError, InputError


@dataclass(frozen=True)
class Inputs:
    """Files of a run. `world` is set where they were generated."""

    corpus: Path
    pages: Path | None
    train_tasks: Path
    eval_tasks: Path
    world: WorldSpec | None


def world_spec(settings: Settings) -> WorldSpec:
    """The world that the settings describe."""
    world = settings.world
    seed = settings.seed if world.seed is None else world.seed
    return WorldSpec(seed=seed, n_entities=world.entities, n_relations=world.relations)


def gather_inputs(settings: Settings, folder: Path, say: Callable[[str], None]) -> Inputs:
    """Generate or check the inputs, and write the two task files of the run.

    Raises InputError for a file that is missing or malformed, ConfigError for settings that contradict each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = settings.data
    if (data.corpus is None) != (data.tasks is None):
        missing = "data.tasks (--tasks)" if data.tasks is None else "data.corpus (--corpus)"
        raise ConfigError(f"a corpus and its tasks go together: {missing} is not set")
    if data.corpus is None or data.tasks is None:
        spec = world_spec(settings)
        say(f"generating a world of {spec.n_entities} entities and {spec.n_relations} relations (seed {spec.seed})")
        write_world(spec, folder, n_test=settings.evaluation.questions)
        train, held_out = folder / "train.jsonl", folder / "test.jsonl"
        return Inputs(folder / "corpus.jsonl", None, train, held_out, spec)
    corpus = Path(data.corpus).resolve()
    n_rows = sum(1 for _ in read_passages(corpus))
    train, held_out = _tasks(settings)
    say(f"{n_rows} passages, {len(train)} training questions, {len(held_out)} held-out questions")
    paths = folder / "train.jsonl", folder / "test.jsonl"
    for path, tasks in zip(paths, (train, held_out), strict=True):
        _write_tasks(path, tasks)
    pages = Path(data.pages).resolve() if data.pages else None
    return Inputs(corpus, pages, *paths, None)


def _tasks(settings: Settings) -> tuple[list[LoadedTask], list[LoadedTask]]:
    data = settings.data
    tasks = load_tasks(Path(data.tasks or ""), data.max_question_chars)
    limit = settings.evaluation.questions
    if data.eval_tasks is not None:
        held_out = load_tasks(Path(data.eval_tasks), data.max_question_chars)[:limit]
        train = without_questions_of(tasks, held_out)
    else:
        train, held_out = split_tasks(tasks, data.eval_fraction, limit)
    if not train or not held_out:
        raise InputError(
            f"{data.tasks} leaves {len(train)} questions to train on and {len(held_out)} held out: give more lines, "
            "or an evaluation file (--eval-tasks)"
        )
    return train, held_out


def _write_tasks(path: Path, tasks: list[LoadedTask]) -> None:
    rows = [
        {**task.meta, "id": task.id, "question": task.question, "answer": task.answers, "aug_answer": task.aug_answers or None}
        for task in tasks
    ]
    lines = (msgspec.json.encode({key: value for key, value in row.items() if value is not None}) for row in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
