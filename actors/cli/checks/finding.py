"""What a check finds, and what it looks at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "info", "warning", "failed"]
IMPORT_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Finding:
    """One line of the report. `fix` is a command or a setting; only warnings and failures have one."""

    name: str
    status: Status
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Subject:
    """What is examined: a folder of runs, perhaps one run of it, and ports that somebody means to use (0: none)."""

    root: Path
    run: str | None = None
    port: int = 0
    page_port: int = 0
    import_timeout_s: float = IMPORT_TIMEOUT_S

    def command(self, words: str) -> str:
        """A command of ours on this folder, to be copied."""
        return f"asearch {words}" if self.root == Path("runs") else f"asearch {words} --runs {self.root}"
