"""What the fields of a struct mean, read from the docstrings in its source, for the generated documents."""

import ast
import inspect

import msgspec

RECURRING = {
    "actor": "Kind of an actor.",
    "answers": "Answers in text.",
    "at_ns": "The writer's clock, nanoseconds since the epoch; for reading, never for decisions.",
    "blob": "Where a large payload lies.",
    "code_version": "Version of the code that wrote it.",
    "episode": "Id of the episode.",
    "first": "First of them.",
    "last": "Last of them, included.",
    "last_turn": "Last of the turns that generated its trained tokens.",
    "end": "Index behind the last token.",
    "engine": "Id of the engine.",
    "episodes": "The episodes that it speaks of.",
    "group": "Id of the group.",
    "id": "Deterministic id: the same fact has the same id whoever retries it.",
    "key": "The references of the task.",
    "label": "Tells several evaluations apart.",
    "lineage": "Grows with every trainer that restarts from a checkpoint.",
    "manifest": "Where the weights lie.",
    "max_new_tokens": "Tokens wanted at most.",
    "member": "Index of the episode in its group, from 0.",
    "members": "Size of the group.",
    "model": "Policy name.",
    "n_chunks": "Chunks of the whole payload.",
    "n_documents": "Documents that the tool returned.",
    "n_parameters": "Parameters of the model.",
    "n_tokens_trained": "Tokens that entered the loss.",
    "n_turns": "Model generations of the episode.",
    "name": "Name of the item.",
    "path": "Path on the host of the writer.",
    "pid": "Process id.",
    "progress": "The newest policy step at admission.",
    "purpose": "`train`, `eval` or `synthesis`.",
    "question": "The text put to the agent.",
    "recipe": "Name of the recipe.",
    "recipe_hash": "A name for exactly these settings, 16 hex digits.",
    "refill": "How many groups had this slot before.",
    "result": "What the tool returned.",
    "reward": "The verdict of the grader.",
    "run": "Name of the run.",
    "segments": "The training sequences of the episode.",
    "size_bytes": "Size in bytes.",
    "slot": "Number of the group among those of its purpose; a refill takes it over.",
    "start": "Index of the first token.",
    "step": "Policy step: the number of updates made.",
    "subject": "Subject of the message.",
    "task": "The task: its id, or in a request the task itself.",
    "temperature": "Sampling temperature; 0 is greedy.",
    "title": "Title of the page.",
    "tool": "Name of the tool.",
    "top_p": "Nucleus of the sampling distribution.",
    "turn": "Number of the turn, from 0.",
    "url": "Address of the page.",
    "value": "The number itself.",
    "version": "Policy version.",
}
"""Fields that mean the same wherever they stand; a docstring at the field goes before."""


def field_descriptions(struct: type[msgspec.Struct]) -> dict[str, str]:
    """A description for every field of `struct` that has one: its own docstring, a base's, or the recurring one."""
    found = {name: RECURRING[name] for name in struct.__struct_fields__ if name in RECURRING}
    for base in reversed(struct.__mro__):
        if base.__module__.startswith("schemas."):
            found.update(_docstrings(base))
    return found


def _docstrings(struct: type) -> dict[str, str]:
    """The docstrings that stand below the fields of one class."""
    (tree,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(tree, ast.ClassDef)  # noqa: S101
    found: dict[str, str] = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[field.target.id] = inspect.cleandoc(below.value.value)
    return found
