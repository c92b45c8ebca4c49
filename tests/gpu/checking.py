"""What the parts of the script share: where they run, what each needs, how a part ends."""

import importlib.util
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU, CUDA = "cpu", "cuda"


@dataclass(frozen=True)
class Place:
    """Where a part runs, and at which size."""

    device: str
    is_tiny: bool
    folder: Path
    peak_tflops: float | None
    """Of the device in bf16; None: known by its name, or not at all."""

    @property
    def hidden_gpu(self) -> dict[str, str]:
        """What a process of the CPU path has in its environment."""
        return {"CUDA_VISIBLE_DEVICES": ""}


class MissingError(Exception):
    """Something that a part needs is not on this machine; the text names it."""


class FailedError(Exception):
    """A part found something wrong."""


@dataclass(frozen=True)
class Part:
    """One part. `needs` are modules; without them the part is skipped by name."""

    name: str
    about: str
    needs: tuple[str, ...]
    run: Callable[[Place], Awaitable[dict[str, Any]]]


def missing(modules: Iterable[str]) -> list[str]:
    """Those that cannot be imported here."""
    return [name for name in modules if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def at_most(what: str, found: float, bound: float) -> float:
    """`found`, if it is. Raises FailedError."""
    if not found <= bound:
        raise FailedError(f"{what} is {found:.3g}, more than {bound:g}")
    return found
