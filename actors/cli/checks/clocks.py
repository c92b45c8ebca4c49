"""Clocks that disagree: the system's against its own progress, the file system's, the broker's."""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from actors.cli.checks.broker_state import port_of, processes
from actors.cli.checks.finding import Finding, Subject
from actors.cli.checks.nats_line import open_line
from actors.cli.checks.runs import runs_of
from actors.runtime.broker import HOST
from actors.runtime.jsapi import nanoseconds
from schemas.topology import broker_stream

WATCH_S = 0.2
MAX_JUMP_S = 0.1
MAX_SKEW_S = 2.0
FIX = "set the clock: `timedatectl set-ntp true` (or chronyd); in a virtual machine, its host's too"
MAX_FILES = 20_000


async def steadiness(
    _: Subject, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic, watch_s: float = WATCH_S
) -> list[Finding]:
    """The wall clock goes as fast as the monotonic one, which deadlines use."""
    begun = wall(), monotonic()
    await asyncio.sleep(watch_s)
    jump_s = (wall() - begun[0]) - (monotonic() - begun[1])
    if abs(jump_s) > MAX_JUMP_S:
        return [Finding("clock", "failed", f"the wall clock jumped by {jump_s:+.2f} s while it was watched", FIX)]
    return [Finding("clock", "ok", f"steady ({jump_s * 1e3:+.1f} ms in {watch_s:g} s)")]


def files(subject: Subject, wall: Callable[[], float] = time.time) -> list[Finding]:
    """No file of the runs is from the future, and a new one gets the system's time."""
    name, late = "clock of files", _newest(subject.root, wall() + MAX_SKEW_S)
    if late is not None:
        path, ahead_s = late[0], late[1] - wall()
        detail = f"{path} is from {ahead_s:,.0f} s in the future: the clock was set back, or another host's clock is ahead"
        return [Finding(name, "failed", detail, f"{FIX}; then `touch {path}`")]
    skew_s = _skew(subject.root, wall)
    if skew_s is None:
        return [Finding(name, "info", "no file can be made there, so its clock was not compared")]
    if abs(skew_s) > MAX_SKEW_S:
        return [Finding(name, "failed", f"new files on {subject.root} are {skew_s:+.1f} s from the system's clock", FIX)]
    return [Finding(name, "ok", f"within {MAX_SKEW_S:g} s of the system's")]


async def broker(subject: Subject) -> list[Finding]:
    """The broker's clock is the system's: its timestamps are compared with those of actors."""
    port = port_of(subject)
    if port is None or not processes(subject):
        return []
    try:
        line = await open_line(HOST, port)
    except (OSError, TimeoutError):
        return []
    try:
        async with asyncio.timeout(3.0):
            answers = [await line.stream(broker_stream(content.run, "plan")) for content, _ in runs_of(subject)[-1:]]
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return []
    finally:
        line.close()
    return [judge_broker(str(answer[0].get("ts", "")), answer[1]) for answer in answers if answer is not None]


def judge_broker(stamp: str, at_ns: int) -> Finding:
    """The finding for the timestamp that the broker gave around `at_ns`."""
    told_ns = nanoseconds(stamp)
    if not told_ns:
        return Finding("clock of the broker", "info", "it does not tell its time")
    skew_s = (told_ns - at_ns) / 1e9
    status = "failed" if abs(skew_s) > MAX_SKEW_S else "ok"
    return Finding("clock of the broker", status, f"{skew_s:+.3f} s from the system's", FIX if status == "failed" else "")


def _newest(root: Path, after: float) -> tuple[Path, float] | None:
    """A file below the folder that is newer than that, with its time; only the first MAX_FILES are looked at."""
    latest: tuple[Path, float] | None = None
    n_seen = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(OSError):
                path = Path(folder) / name
                changed = path.lstat().st_mtime
                if changed > after and (latest is None or changed > latest[1]):
                    latest = path, changed
            n_seen += 1
            if n_seen >= MAX_FILES:
                return latest
    return latest


def _skew(root: Path, wall: Callable[[], float]) -> float | None:
    """How far the time of a new file is from the clock, in seconds; None where none can be made."""
    try:
        with tempfile.NamedTemporaryFile(dir=root, prefix=".doctor-") as file:
            before = wall()
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_mtime - (before + wall()) / 2
    except OSError:
        return None
