"""The page of the table: which bug was planted where, and who saw it."""

from collections.abc import Sequence
from pathlib import Path

from tests.planted.harness import Finding
from tests.planted.mutation import Mutation

PAGE = Path(__file__).with_name("README.md")
HEAD = """# Planted bugs

Each row is a bug that a reviewer would call realistic. `python -m tests.planted` (`just planted`) copies the sources, puts one
bug in at a time and runs the tests named for it, lowest level first, until one fails; before that they all pass without any.
A row whose text no longer fits the sources fails the fast suite, so the table cannot rot. This page is written by
`python -m tests.planted --page`; the seconds of a row are those of its
last run, two at a time on two busy cores, start of pytest included.

Levels: *unit* one part; *property* hypothesis against a model; *sim* whole runs in virtual time; *crash* real processes killed;
*durability* what is on disk after a power cut.

"""


def write_page(mutations: Sequence[Mutation], findings: Sequence[Finding]) -> None:
    """Write the page from one run of the whole table."""
    found = {finding.name: finding for finding in findings}
    caught = [finding for finding in findings if finding.level is not None]
    lines = [
        f"{len(caught)} of {len(mutations)} caught.",
        "",
        "| bug | what is broken | where | level | test | s |",
        "|---|---|---|---|---|--:|",
    ]
    for mutation in mutations:
        finding = found[mutation.name]
        test = f"`{finding.test}`" if finding.test else "**nothing saw it**"
        row = (mutation.name, mutation.breaks, f"`{mutation.file}`", finding.level or "", test, f"{finding.seconds:.0f}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    PAGE.write_text(HEAD + "\n".join(lines) + "\n")
