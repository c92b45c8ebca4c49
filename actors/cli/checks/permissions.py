"""Who may write where: the folder of the runs, the weights, and files that hold secrets."""

import errno
import os
import stat
import tempfile
from pathlib import Path

from actors.cli.checks.disks import existing
from actors.cli.checks.finding import Finding, Subject
from actors.cli.checks.runs import runs_of
from actors.runtime.workspace import BROKER_FOLDER

SECRETS = (".netrc", ".config/wandb/settings", ".cache/huggingface/token")
"""Files of the home folder that hold keys."""
SECRET_NAMES = ("*.key", "*.nk", "*.creds", ".env", "*.pem")
"""Names of files in the folder of the runs that hold keys."""


def writable(subject: Subject) -> list[Finding]:
    """Runs and the broker can write to their folders: tried, for a read-only file system refuses root too."""
    root = existing(subject.root)
    inside = [subject.root / BROKER_FOLDER, subject.root / BROKER_FOLDER / "jetstream", *(path for _, path in runs_of(subject))]
    found = [finding for folder in (root, *inside) if folder.is_dir() and (finding := _writable(folder)) is not None]
    return found or [Finding("runs folder", "ok", f"{root} can be written to")]


def _writable(folder: Path) -> Finding | None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return None
        fix = f"chown -R $USER {folder} && chmod u+rwx {folder}; if refused: `mount -o remount,rw` or `chattr -i {folder}`"
        return Finding("runs folder", "failed", f"nothing can be written to {folder}: {error.strerror}", fix)
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return Finding("runs folder", "warning", f"everybody may write to {folder}", f"chmod o-w {folder}")
    return None


def weights(subject: Subject) -> list[Finding]:
    """The folder through which the trainer hands weights to engines is this user's alone."""
    found: list[Finding] = []
    for content, _ in runs_of(subject):
        folder = Path(content.weights_dir)
        try:
            state = folder.lstat()
        except OSError:
            continue
        found.append(_weights(content.run, folder, state))
    return found or [Finding("weights folder", "ok", "none is there; a run makes its own")]


def _weights(run: str, folder: Path, state: os.stat_result) -> Finding:
    name = "weights folder"
    if stat.S_ISLNK(state.st_mode) or state.st_uid != os.getuid():
        whose = "a link" if stat.S_ISLNK(state.st_mode) else f"of user {state.st_uid}"
        detail = f"{folder} (run {run}) is {whose}, not ours: somebody else could exchange the weights"
        return Finding(name, "failed", detail, f"rm -r {folder}, or set checkpoint.weights_dir to a folder of your own")
    if state.st_mode & 0o077:
        mode = oct(state.st_mode & 0o777)[2:]
        return Finding(name, "failed", f"{folder} (run {run}) has mode {mode}: others may open it", f"chmod 700 {folder}")
    return Finding(name, "ok", f"{folder} is ours alone (run {run})")


def secrets(subject: Subject) -> list[Finding]:
    """No file with keys can be read by everybody."""
    try:
        home = Path.home()
    except RuntimeError:
        return []
    candidates = [home / name for name in SECRETS]
    for pattern in SECRET_NAMES:
        candidates += [path for below in ("", "*/") for path in subject.root.glob(below + pattern)]
    open_ones: list[Path] = []
    for path in candidates:
        try:
            if path.is_file() and path.stat().st_mode & 0o044:
                open_ones.append(path)
        except OSError:
            continue
    if not open_ones:
        return [Finding("secrets", "ok", "no key file can be read by others")]
    named = " ".join(map(str, open_ones))
    return [Finding("secrets", "failed", f"others can read {named}", f"chmod 600 {named}")]
