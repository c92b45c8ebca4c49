"""How an inference server is started: command, environment, and where it listens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Removable(Protocol):
    """Something that a process leaves behind."""

    def remove(self) -> None:
        """Take it away; harmless where it is gone."""
        ...


def _nothing(_group: int) -> Sequence[Removable]:
    return ()


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of one server. It listens on `port` of loopback, or on the port that it writes into `port_file`."""

    argv: list[str]
    env: Mapping[str, str] | None = None
    """None inherits."""
    port: int | None = None
    port_file: Path | None = None
    name: str | None = None
    """Weight version that the server says until it is given another: whoever answers without it is another server."""
    left_by: Callable[[int], Sequence[Removable]] = _nothing
    """What the server's group of processes would leave behind if it were killed now."""

    def url(self) -> str | None:
        """Where the server listens; None while it has not said so."""
        if self.port is not None:
            return f"http://127.0.0.1:{self.port}"
        if self.port_file is None or not self.port_file.is_file():
            return None
        return f"http://127.0.0.1:{int(self.port_file.read_text())}"
