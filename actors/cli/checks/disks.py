"""Room on the file systems that a run writes to: its folder, and shared memory for weights."""

import os
from pathlib import Path

from actors.cli.checks.finding import Finding, Subject
from actors.runtime.broker_watch import ROOM_BYTES
from actors.runtime.local_run import MIN_SHARED_BYTES, SHARED_MEMORY

SCARCE_BYTES = 1 << 30
SCARCE_INODES = 10_000


def disks(subject: Subject) -> list[Finding]:
    """The folder of the runs, and shared memory."""
    return [_runs(existing(subject.root)), _shared()]


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists: where it would be made."""
    folder = folder.resolve()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _runs(folder: Path) -> Finding:
    name, room = "disk of the runs", os.statvfs(folder)
    n_free = room.f_bavail * room.f_frsize
    told = f"{gib(n_free)} free on {folder}"
    if n_free < ROOM_BYTES:
        fix = f"free at least {gib(SCARCE_BYTES)} on it: `du -sh {folder}/*` shows which runs are large"
        return Finding(name, "failed", f"{told}: nothing can be stored", fix)
    if room.f_files and room.f_favail < SCARCE_INODES:
        fix = f"delete files: `du --inodes -s {folder}/*` shows where they are"
        return Finding(
            name, "failed" if room.f_favail < 100 else "warning", f"{room.f_favail} files can still be made on {folder}", fix
        )
    if n_free < SCARCE_BYTES:
        return Finding(name, "warning", told, f"free some, or keep the runs elsewhere: --runs FOLDER; `du -sh {folder}/*`")
    return Finding(name, "ok", told)


def _shared() -> Finding:
    name = "shared memory"
    try:
        room = os.statvfs(SHARED_MEMORY)
    except OSError:
        return Finding(name, "info", f"there is no {SHARED_MEMORY}: weights are published in the run's folder")
    n_free = room.f_bavail * room.f_frsize
    if n_free > MIN_SHARED_BYTES:
        return Finding(name, "ok", f"{gib(n_free)} free on {SHARED_MEMORY}")
    left = ", ".join(sorted(each.name for each in SHARED_MEMORY.glob("asearch-*"))[:5])
    detail = f"{gib(n_free)} free on {SHARED_MEMORY}: new runs publish weights on disk" + (f"; there are {left}" if left else "")
    fix = f"delete what killed runs left ({SHARED_MEMORY}/asearch-*), or start the container with --shm-size=2g"
    return Finding(name, "warning", detail, fix)


def gib(n_bytes: int) -> str:
    """A size for readers."""
    return f"{n_bytes / (1 << 30):.1f} GiB" if n_bytes >= 1 << 30 else f"{n_bytes / (1 << 20):.0f} MiB"
