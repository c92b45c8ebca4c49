"""What lies in a run's folder: `run.json` tells every process of the run what it works on and where the others are."""

import re
from pathlib import Path

import msgspec

from asearch.configuration.settings import Settings
from asearch.errors import ConfigError, InputError

RUN_FILE, URL_FILE = "run.json", "viewer.url"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}\Z")


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `run.json`. Paths are absolute."""

    run: str
    settings: Settings
    broker_url: str
    corpus_url: str
    model_dir: str
    train_tasks: str
    eval_tasks: str
    weights_dir: str
    supervisor_pid: int
    supervisor_started: float
    """Start time of the supervisor's process, so that a pid that was given to another program is not taken for it."""


def check_name(run: str) -> str:
    """The name, if a run can have it. Raises ConfigError."""
    if not _NAME.match(run):
        raise ConfigError(
            f"{run!r} cannot name a run: use up to 41 letters, digits, '-' and '_', beginning with a letter or digit"
        )
    return run


def write_run_file(run_dir: Path, content: RunFile) -> None:
    """Put `run.json` in place; a reader sees the old one or the new one."""
    aside = run_dir / f".{RUN_FILE}.part"
    aside.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1))
    aside.replace(run_dir / RUN_FILE)


def read_run_file(run_dir: Path) -> RunFile:
    """Read `run.json`. Raises InputError when there is no such run or the file cannot be read."""
    path = run_dir / RUN_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunFile)
    except FileNotFoundError as error:
        known = sorted(entry.parent.name for entry in run_dir.parent.glob(f"*/{RUN_FILE}"))
        raise InputError(f"there is no run '{run_dir.name}' in {run_dir.parent}; known: {', '.join(known) or 'none'}") from error
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def read_url(run_dir: Path) -> str:
    """Where the run's page is, or was; empty where it never was."""
    try:
        return (run_dir / URL_FILE).read_text().strip()
    except OSError:
        return ""
