"""Task files, the held-out split and the sampler."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asearch.data.samplers import EpochSampler
from asearch.data.tasks import LoadedTask, load_tasks, question_key, split_tasks, without_questions_of
from asearch.errors import ConfigError, InputError

GOOD = b'{"id": "1", "question": "Who?", "answer": "Ana"}\n'


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(content)
    return path


def test_spellings_of_published_sets_are_read(tmp_path: Path):
    lines = [
        b'{"id": "a", "question": " Who? ", "answer": ["Ana", "Anna"], "aug_answer": ["A."], "hops": 2, "source": "x"}',
        b'{"idx": 7, "question": "When?", "answer": 1912, "aug_answer": null}',
        b'{"qid": "q", "question": "Is it?", "answer": true}',
        b'{"query_id": "r", "id": null, "question": "How much?", "answer": 2.5, "aug_answer": []}',
        b'{"question": "Where?", "answer": "Ulto"}',
    ]
    tasks = load_tasks(written(tmp_path, b"\n".join(lines)))
    assert [task.id for task in tasks] == ["a", "7", "q", "r", "5"]
    assert [task.answers for task in tasks] == [["Ana", "Anna"], ["1912"], ["yes"], ["2.5"], ["Ulto"]]
    assert tasks[0].question == "Who?"
    assert tasks[0].aug_answers == ["A."]
    assert tasks[0].meta == {"hops": "2", "source": "x"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b'"text"', "Expected `object`"),
        (b'{"id": "2", "answer": "x"}', "`question`"),
        (b'{"id": "2", "question": "  ", "answer": "x"}', "`question`"),
        (b'{"id": "2", "question": 3, "answer": "x"}', "`question`"),
        (b'{"id": "2", "question": "Who?"}', "no `answer`"),
        (b'{"id": "2", "question": "Who?", "answer": ""}', "no `answer`"),
        (b'{"id": "2", "question": "Who?", "answer": []}', "no `answer`"),
        (b'{"id": "2", "question": "Who?", "answer": ["x", " "]}', "no `answer`"),
        (b'{"id": "2", "question": "Who?", "answer": {"x": 1}}', "no `answer`"),
        (b'{"id": "2", "question": "Who?", "answer": "x", "aug_answer": [{}]}', "`aug_answer`"),
        (b'{"id": "1", "question": "Who?", "answer": "x"}', "already used in line 1"),
        (b'{"id": 1, "question": "Who?", "answer": "x"}', "already used in line 1"),
        (b'{"id": true, "question": "Who?", "answer": "x"}', "`id`"),
        (b'{"id": "2", "question": "' + b"x" * 101 + b'", "answer": "x"}', "more than 100"),
        (b'{"id": "2", "question": "\xff", "answer": "x"}', "not UTF-8"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: bytes, problem: str):
    path = written(tmp_path, GOOD + b"\n" + line + b"\n")
    with pytest.raises(InputError) as caught:
        load_tasks(path, max_question_chars=100)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(InputError, match="no tasks"):
        load_tasks(written(tmp_path, content))


def test_what_the_driver_sees_never_tells_the_answer(tmp_path: Path):
    line = (
        b'{"id": "1", "question": "Who?", "answer": "Ana", "hops": 3, "golden_answers": ["B"], "path": "Zed > ana",'
        b' "context": "' + b"x" * 999 + b'"}'
    )
    (task,) = load_tasks(written(tmp_path, line))
    assert task.task.meta == {"hops": "3"}
    assert task.key.answers == ["Ana"]


def tasks_of(questions: list[str]) -> list[LoadedTask]:
    return [LoadedTask(id=str(i), question=question, answers=["x"]) for i, question in enumerate(questions)]


questions = st.lists(st.text("aAbc ", min_size=1, max_size=6), min_size=1, max_size=40)


@given(questions, st.floats(0.01, 0.99), st.none() | st.integers(1, 10))
def test_the_split_is_disjoint_complete_and_bounded(texts: list[str], fraction: float, at_most: int | None):
    tasks = tasks_of(texts)
    n_different = len({question_key(text) for text in texts})
    if n_different < 2:
        with pytest.raises(InputError):
            split_tasks(tasks, fraction, at_most)
        return
    train, held_out = split_tasks(tasks, fraction, at_most)
    assert sorted(task.id for task in (*train, *held_out)) == sorted(task.id for task in tasks)
    n_held_out = len({question_key(task.question) for task in held_out})
    assert train
    assert 1 <= n_held_out <= (at_most or n_different)
    assert not {question_key(task.question) for task in train} & {question_key(task.question) for task in held_out}


def test_the_split_depends_on_questions_alone():
    tasks = tasks_of([f"Who is number {i}?" for i in range(200)])
    _, held_out = split_tasks(tasks, 0.1)
    _, backward = split_tasks(tasks[::-1], 0.1)
    assert len(held_out) == 20
    assert {task.id for task in held_out} == {task.id for task in backward}


@pytest.mark.parametrize(("fraction", "at_most"), [(0.0, None), (1.0, None), (0.5, 0), (float("nan"), None)])
def test_fractions_that_cannot_work_are_refused(fraction: float, at_most: int | None):
    with pytest.raises(ConfigError):
        split_tasks(tasks_of(["a", "b"]), fraction, at_most)


def test_questions_of_the_evaluation_are_not_trained():
    train, held_out = tasks_of(["Who is Zed?", "Who is Ana?"]), tasks_of([" who IS zed? "])
    assert [task.question for task in without_questions_of(train, held_out)] == ["Who is Ana?"]
    with pytest.raises(InputError):
        without_questions_of(train[:1], held_out)


@given(st.integers(1, 50), st.integers(0, 2**64), st.integers(0, 5))
def test_every_task_once_an_epoch(n_tasks: int, seed: int, epoch: int):
    sampler = EpochSampler(n_tasks, seed)
    slots = range(epoch * n_tasks, (epoch + 1) * n_tasks)
    assert Counter(sampler.index(slot) for slot in slots) == Counter(range(n_tasks))
    assert [EpochSampler(n_tasks, seed).index(slot) for slot in slots] == [sampler.index(slot) for slot in slots]


def test_epochs_and_seeds_differ():
    one, other = EpochSampler(50, 0), EpochSampler(50, 1)
    first = [one.index(slot) for slot in range(50)]
    assert first != [one.index(slot) for slot in range(50, 100)]
    assert first != [other.index(slot) for slot in range(50)]
    with pytest.raises(ConfigError):
        EpochSampler(0, 0)
