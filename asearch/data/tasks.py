"""Task files: JSONL of `{id, question, answer}` in the spellings that published sets use, and the held-out split."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from asearch.data.jsonl import line_error, read_rows
from asearch.errors import ConfigError, InputError
from schemas.records import AnswerKey, Task

ID_KEYS = ("id", "idx", "qid", "query_id")
MAX_QUESTION_CHARS = 8_000
MAX_META_CHARS = 200
MIN_TELLING_CHARS = 3
"""An answer shorter than this ("2", "no") may stand in a harmless fact (the number of hops) by chance."""
_OWN_KEYS = frozenset((*ID_KEYS, "question", "answer", "aug_answer"))
_SPLIT_BUCKETS = 1_000_000

_ADVICE = 'Each line must be a JSON object {"id": ..., "question": "...", "answer": "..." or ["...", ...]}.'


class LoadedTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task with its references, as a file holds it."""

    id: str
    question: str
    answers: list[str]
    aug_answers: list[str] = []
    meta: dict[str, str] = {}
    """The other keys of the row: strings as they are, anything else as JSON."""

    @property
    def task(self) -> Task:
        """What a driver may know: short facts that neither name an answer nor are called one."""
        return Task(id=self.id, question=self.question, meta={k: v for k, v in self.meta.items() if self._harmless(k, v)})

    @property
    def key(self) -> AnswerKey:
        """What graders alone know."""
        return AnswerKey(task=self.id, answers=self.answers, aug_answers=self.aug_answers)

    def _harmless(self, name: str, value: str) -> bool:
        if len(value) > MAX_META_CHARS or any(word in name.lower() for word in ("answer", "gold", "target")):
            return False
        answers = (a.casefold() for a in (*self.answers, *self.aug_answers) if len(a) >= MIN_TELLING_CHARS)
        return not any(answer in value.casefold() for answer in answers)


def load_tasks(path: Path, max_question_chars: int = MAX_QUESTION_CHARS) -> list[LoadedTask]:
    """Read a task file.

    The id stands under the first of ID_KEYS that is present, else it is the line number. Raises InputError naming file and line:
    malformed JSON, a missing, empty or over-long question, a missing or empty answer, an id used twice; or an empty file.
    """
    tasks: list[LoadedTask] = []
    seen: dict[str, int] = {}
    for number, row in read_rows(path, dict[str, object], _ADVICE):
        task = _task(path, number, row, max_question_chars)
        first = seen.setdefault(task.id, number)
        if first != number:
            raise line_error(path, number, f"the id {task.id!r} is already used in line {first}", "Make the ids unique.")
        tasks.append(task)
    if not tasks:
        raise InputError(f"{path} holds no tasks. Give a JSONL file with at least one row.")
    return tasks


def split_tasks(
    tasks: Sequence[LoadedTask], eval_fraction: float = 0.1, eval_max: int | None = None
) -> tuple[list[LoadedTask], list[LoadedTask]]:
    """Split off a held-out part: (train, eval), in file order, without a question in common.

    The rule: order the distinct questions by the blake2b hash of their normalised text; the first `eval_fraction` of them, at
    least one and at most `eval_max`, are held out. It depends on nothing but the questions. Raises InputError for fewer than
    two distinct questions, ConfigError for a fraction outside (0, 1).
    """
    if not 0 < eval_fraction < 1 or (eval_max is not None and eval_max < 1):
        raise ConfigError(f"eval_fraction must be in (0, 1) and eval_max positive, not {eval_fraction} and {eval_max}.")
    questions = sorted({question_key(task.question) for task in tasks}, key=lambda text: (_bucket(text), text))
    if len(questions) < 2:
        raise InputError("Fewer than two different questions: nothing can be held out. Add tasks or give --eval-tasks.")
    n_eval = max(1, min(round(eval_fraction * len(questions)), len(questions) - 1, eval_max or len(questions)))
    held_out = set(questions[:n_eval])
    return (
        [task for task in tasks if question_key(task.question) not in held_out],
        [task for task in tasks if question_key(task.question) in held_out],
    )


def without_questions_of(train: Sequence[LoadedTask], held_out: Sequence[LoadedTask]) -> list[LoadedTask]:
    """The training tasks whose question does not stand in the held-out set. Raises InputError if none is left."""
    known = {question_key(task.question) for task in held_out}
    left = [task for task in train if question_key(task.question) not in known]
    if train and not left:
        raise InputError("Every training question also stands in the evaluation tasks. Give different files.")
    return left


def question_key(question: str) -> str:
    """A question for comparison: case and whitespace do not matter."""
    return " ".join(question.casefold().split())


def _bucket(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _SPLIT_BUCKETS


def _task(path: Path, number: int, row: dict[str, object], max_question_chars: int) -> LoadedTask:
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise line_error(path, number, "`question` is missing, empty or not a string", _ADVICE)
    if len(question) > max_question_chars:
        raise line_error(
            path, number, f"the question has {len(question)} characters, more than {max_question_chars}", "Shorten it."
        )
    answers = _texts(row.get("answer"))
    if not answers:
        raise line_error(path, number, "the question has no `answer` (a string, a number or a list of them)", _ADVICE)
    aug_answers = _texts(row.get("aug_answer")) if row.get("aug_answer") not in (None, "", []) else []
    if aug_answers is None:
        raise line_error(path, number, "`aug_answer` is not a string, a number or a list of them", _ADVICE)
    return LoadedTask(
        id=_task_id(path, number, row),
        question=question.strip(),
        answers=answers,
        aug_answers=aug_answers,
        meta={name: _meta_text(value) for name, value in row.items() if name not in _OWN_KEYS},
    )


def _task_id(path: Path, number: int, row: dict[str, object]) -> str:
    for name in ID_KEYS:
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise line_error(path, number, f"`{name}` is not a string or an integer", _ADVICE)
        return str(value).strip()
    return str(number)


def _texts(value: object) -> list[str] | None:
    """Answers as texts, or None if there is none or one of them is not a string, number or truth value, or is empty."""
    values: list[object] = list(value) if isinstance(value, list) else [value]
    texts = [_text(item) for item in values]
    kept = [text for text in texts if text]
    return kept if kept and len(kept) == len(texts) else None


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).strip() if isinstance(value, str | int | float) else None


def _meta_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
