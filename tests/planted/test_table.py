"""The table fits the sources, its page fits the table, and some of it is played."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.planted.harness import ROOT, Finding, run_table, summary
from tests.planted.mutation import LEVELS, Mutation, TableError, unit
from tests.planted.page import PAGE
from tests.planted.table import TABLE

QUICK = ("answer-from-a-page", "manifest-first", "newer-token-accepted")


@pytest.mark.parametrize("mutation", TABLE, ids=lambda mutation: mutation.name)
def test_a_row_fits_the_sources(mutation: Mutation) -> None:
    changed = mutation.applied((ROOT / mutation.file).read_text())
    # A name that does not exist would fail any test, and show nothing.
    linted = subprocess.run(
        [str(Path(sys.executable).parent / "ruff"), "check", "--isolated", "--select", "F821,F823", "-q", "-"],
        input=changed,
        text=True,
        capture_output=True,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert mutation.checks
    for check in mutation.checks:
        assert check.level in LEVELS
        assert all((ROOT / test.partition("::")[0]).exists() for test in check.tests)


def test_names_are_their_own_and_there_are_enough() -> None:
    assert len({mutation.name for mutation in TABLE}) == len(TABLE) >= 24


def test_the_page_shows_the_table() -> None:
    rows = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert rows[1:] == [mutation.name for mutation in TABLE], "write it anew: python -m tests.planted --page"
    assert "nothing saw it" not in PAGE.read_text()


def test_a_text_that_is_not_there_once_fails_loudly() -> None:
    row = Mutation("n", "b", "f.py", "x = 1", "x = 2", (unit("tests"),))
    assert row.applied("x = 1\n") == "x = 2\n"
    for source in ("y = 1\n", "x = 1\nx = 1\n"):
        with pytest.raises(TableError, match="not once"):
            row.applied(source)
    with pytest.raises(TableError, match="no Python"):
        Mutation("n", "b", "f.py", "x = 1", "x = ", (unit("tests"),)).applied("x = 1\n")


def test_a_miss_is_told() -> None:
    told = summary([Finding("a", "unit", "t", 1.0), Finding("b", None, None, 2.0)], 3.0)
    assert (told["planted"], told["caught"], told["missed"]) == (2, 1, ["b"])


def test_some_bugs_are_caught() -> None:
    chosen = [mutation for mutation in TABLE if mutation.name in QUICK]
    findings = run_table(chosen, print)
    assert [finding.name for finding in findings if finding.level is None] == []
    assert len(findings) == len(QUICK)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_bug_is_caught() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.planted", "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    told = json.loads(done.stdout)
    assert told["caught"] == told["planted"] == len(TABLE)
