"""Python's version and the limit of open files, of this shell and of a broker that runs already."""

import platform
import resource
import sys

from actors.cli.checks.finding import Finding, Subject

MIN_PYTHON = (3, 11)
MIN_FILES = 1024
"""The broker holds files for every stream, drivers and tools a socket for every call under way."""


def python(_: Subject) -> list[Finding]:
    """The interpreter is one that this project runs on."""
    detail = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < MIN_PYTHON:
        return [Finding("python", "failed", detail, "PYTHON=python3.11 just setup (after `rm -r .venv`)")]
    return [Finding("python", "ok", detail)]


def open_files(_: Subject) -> list[Finding]:
    """Processes started from here may open enough files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [judged("open files", soft, hard)]


def judged(name: str, soft: int, hard: int) -> Finding:
    """Whether a limit is enough, and how it is raised."""
    if soft in (-1, resource.RLIM_INFINITY) or soft >= MIN_FILES:
        return Finding(name, "ok", f"{'unlimited' if soft < 0 else soft} allowed")
    detail = f"{soft} allowed, {MIN_FILES} are needed: connections and stores fail at random when they run out"
    enough = hard < 0 or hard >= MIN_FILES
    fix = (
        f"ulimit -n {MIN_FILES if hard < 0 else min(hard, 65536)}"
        if enough
        else f"raise `nofile` to {MIN_FILES} in /etc/security/limits.conf"
    )
    return Finding(name, "failed", detail, f"{fix}, then start the run from that shell" if enough else fix)
