"""Runs the table: copies the sources, plants one bug at a time, and asks its levels in order whether they see it."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

from tests.planted.mutation import Check, Mutation, TableError

ROOT = Path(__file__).resolve().parents[2]
TEST_TIMEOUT_S = 180
"""For one test: a bug that makes a test hang is caught by this."""
CHECK_TIMEOUT_S = 400
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)

Say = Callable[[str], None]


class BaselineError(Exception):
    """The tests fail without any planted bug, so they say nothing."""


@dataclass(frozen=True)
class Finding:
    """What became of one planted bug; `level` and `test` are None where nothing saw it."""

    name: str
    level: str | None
    test: str | None
    seconds: float


def copy_sources(target: Path) -> None:
    """The files of the working tree that git knows of or would take."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in listing.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    # Only names: the copy must run what lies in it, not what the environment has installed.
    seen = _python(target, "-c", "import actors, asearch, schemas; print(actors.__file__, asearch.__file__, schemas.__file__)")
    if any(not path.startswith(str(target.resolve())) for path in seen.stdout.split()):
        raise RuntimeError(f"the copy imports the packages from elsewhere: {seen.stdout}{seen.stderr}")


def _python(root: Path, *arguments: str, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
    # Without bytecode files: a bug that comes and goes within a second must not leave its own behind.
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_CURRENT_TEST", None)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        _end_leftovers(root)
    return subprocess.CompletedProcess(process.args, process.returncode, output, "")


def _end_leftovers(root: Path) -> None:
    """A test that fails, or is killed, may leave a broker in a session of its own: end what was started for this copy."""
    mark = f"PYTHONPATH={root}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def run_tests(root: Path, tests: Iterable[str], timeout_s: float = CHECK_TIMEOUT_S) -> tuple[int, list[str], str]:
    """pytest's status, the tests that failed, and its output. A run that does not end counts as failed."""
    flags = (
        "-x",
        "-q",
        "--tb=short",
        "-rfE",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.planted.quick",
        "-W",
        "ignore",
        f"--timeout={TEST_TIMEOUT_S}",
    )
    try:
        done = _python(root, "-m", "pytest", *flags, *tests, timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        return 1, ["(does not end)"], ""
    return done.returncode, _FAILED.findall(done.stdout), done.stdout


def check_baseline(roots: Sequence[Path], mutations: Sequence[Mutation]) -> None:
    """Every selection of the table passes on untouched sources, in all copies at once. Raises BaselineError."""
    tests = sorted({test for mutation in mutations for check in mutation.checks for test in check.tests})
    shares = [(root, share) for n, root in enumerate(roots) if (share := tests[n :: len(roots)])]
    with ThreadPoolExecutor(len(shares)) as pool:
        for status, failed, output in pool.map(lambda each: run_tests(*each, CHECK_TIMEOUT_S * 4), shares):
            if status != 0:
                raise BaselineError(f"without a planted bug: {', '.join(failed) or 'no test ran'}\n{output[-4000:]}")


def try_one(root: Path, mutation: Mutation) -> Finding:
    """Plant the bug, run its levels, take it out again. Raises TableError for one that no test can even be collected with."""
    path = root / mutation.file
    whole = path.read_text()
    begun = time.monotonic()
    mutation.apply(root)
    try:
        for check in mutation.checks:
            failed = _seen_by(root, mutation, check)
            if failed is not None:
                return Finding(mutation.name, check.level, failed, time.monotonic() - begun)
    finally:
        path.write_text(whole)
    return Finding(mutation.name, None, None, time.monotonic() - begun)


def _seen_by(root: Path, mutation: Mutation, check: Check) -> str | None:
    status, failed, output = run_tests(root, check.tests)
    if status == 0:
        return None
    if status == 1 and failed:
        return failed[0]
    raise TableError(f"{mutation.name}: pytest ended with status {status} instead of a failing test:\n{output[-3000:]}")


def run_table(mutations: Sequence[Mutation], say: Say, n_at_once: int = 2) -> list[Finding]:
    """Baseline, then every bug, `n_at_once` in copies of their own. Raises BaselineError, TableError."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        roots: Queue[Path] = Queue()
        for number in range(max(1, min(n_at_once, len(mutations)))):
            root = Path(folder, str(number)).resolve()
            copy_sources(root)
            roots.put(root)
        for mutation in mutations:
            mutation.applied((root / mutation.file).read_text())
        say(f"{len(mutations)} planted bugs; first their tests without any")
        check_baseline(list(roots.queue), mutations)

        def work(mutation: Mutation) -> Finding:
            mine = roots.get()
            try:
                finding = try_one(mine, mutation)
            finally:
                roots.put(mine)
            by = f"{finding.level}: {finding.test}" if finding.level else "NOTHING SAW IT"
            say(f"{mutation.name:<40} {finding.seconds:6.1f} s  {by}")
            return finding

        with ThreadPoolExecutor(n_at_once) as pool:
            return list(pool.map(work, mutations))


def summary(findings: Sequence[Finding], seconds: float) -> dict[str, object]:
    """The figures of a run of the table."""
    levels: dict[str, int] = {}
    for finding in findings:
        if finding.level is not None:
            levels[finding.level] = levels.get(finding.level, 0) + 1
    return {
        "planted": len(findings),
        "caught": sum(levels.values()),
        "by_level": levels,
        "missed": [finding.name for finding in findings if finding.level is None],
        "seconds": round(seconds, 1),
        "findings": [asdict(finding) | {"seconds": round(finding.seconds, 1)} for finding in findings],
    }
