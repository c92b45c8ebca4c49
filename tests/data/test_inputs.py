"""What a run works on: files of the user's own, split and laid out, and worlds of ours recognised."""

import json
from pathlib import Path

import pytest

from asearch.configuration.loading import load_settings
from asearch.configuration.settings import Settings
from asearch.data.inputs import gather_inputs
from asearch.data.worlds.files import write_world
from asearch.data.worlds.world import WorldSpec
from asearch.errors import ConfigError, InputError
from tests.cli.foreign_files import write_foreign

SPEC = WorldSpec(seed=5, n_entities=40, n_relations=4)


def settings(**data: Path) -> Settings:
    return load_settings("toy", (), {f"data.{name}": str(path) for name, path in data.items()} | {"evaluation.questions": 30})


def questions(path: Path) -> set[str]:
    return {json.loads(line)["question"] for line in path.read_text().splitlines()}


def test_foreign_files_are_split_without_a_common_question(tmp_path: Path) -> None:
    corpus, tasks = write_foreign(tmp_path)
    said: list[str] = []
    inputs = gather_inputs(settings(corpus=corpus, tasks=tasks), tmp_path / "data", said.append)
    assert inputs.world is None
    assert inputs.corpus == corpus
    train, held_out = questions(inputs.train_tasks), questions(inputs.eval_tasks)
    assert not train & held_out
    assert train | held_out == questions(tasks)
    assert said == [f"24 passages, {len(train)} training questions, {len(held_out)} held-out questions"]
    again = gather_inputs(settings(corpus=corpus, tasks=tasks), tmp_path / "again", said.append)
    assert again.eval_tasks.read_bytes() == inputs.eval_tasks.read_bytes()


def test_an_untouched_world_is_recognised(tmp_path: Path) -> None:
    write_world(SPEC, tmp_path / "world", n_test=30)
    world = tmp_path / "world"
    chosen = settings(corpus=world / "corpus.jsonl", tasks=world / "train.jsonl", eval_tasks=world / "test.jsonl")
    inputs = gather_inputs(chosen, tmp_path / "data", lambda _: None)
    assert inputs.world == SPEC
    assert questions(inputs.eval_tasks) == questions(world / "test.jsonl")
    assert not questions(inputs.train_tasks) & questions(inputs.eval_tasks)


def test_a_changed_world_is_a_corpus_like_any_other(tmp_path: Path) -> None:
    write_world(SPEC, tmp_path / "world", n_test=30)
    corpus = tmp_path / "world" / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + '{"id": "mine", "contents": "A line of my own."}\n')
    chosen = settings(corpus=corpus, tasks=tmp_path / "world" / "train.jsonl")
    assert gather_inputs(chosen, tmp_path / "data", lambda _: None).world is None


def test_half_of_the_inputs_is_refused(tmp_path: Path) -> None:
    corpus, _ = write_foreign(tmp_path)
    with pytest.raises(ConfigError, match="--tasks"):
        gather_inputs(settings(corpus=corpus), tmp_path / "data", lambda _: None)


def test_evaluation_on_the_training_questions_is_refused(tmp_path: Path) -> None:
    corpus, tasks = write_foreign(tmp_path)
    with pytest.raises(InputError, match="Give different files"):
        gather_inputs(settings(corpus=corpus, tasks=tasks, eval_tasks=tasks), tmp_path / "data", lambda _: None)
