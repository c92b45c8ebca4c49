"""`asearch episodes`: the episodes of a run as a list, filtered and sorted."""

from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import click

from actors.cli import looking
from actors.cli.columns import table, terminal_width
from actors.runtime.run_source import RunSource
from asearch.traces.filters import ENDINGS, PURPOSES, SORTS, EpisodeFilter, filter_of
from asearch.traces.plain_text import folded_line
from asearch.traces.rows import FATES, STAGES, EpisodeRow, RowTable

SHOWN = 50
"""Rows of a table unless --limit says otherwise; JSON has them all."""
REFRESH_S = 0.25
HEADINGS = ("episode", "state", "reward", "turns", "searches", "pages", "tokens", "version", "fate", "step", "question")
RIGHT = frozenset({"reward", "turns", "searches", "pages", "tokens", "step"})
HELP = {
    "text": "A part of question, answer, task or name.",
    "task": "A task.",
    "group": "A group.",
    "purpose": f"One of {', '.join(PURPOSES)}.",
    "label": "Which evaluation: before, after.",
    "stage": f"open, ended, or one of {', '.join(STAGES)}.",
    "ending": f"One of {', '.join(ENDINGS)}.",
    "fate": f"One of {', '.join(FATES)}.",
    "reason": "Why it was dropped, died or was discarded.",
    "version": "The oldest policy version among its tokens: 1.3, or the step alone.",
    "sort": f"One of {', '.join(SORTS)}.",
}


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """An option for every field of EpisodeFilter."""
    for field in reversed(EpisodeFilter.__struct_fields__):
        flag = "--" + field.replace("_", "-")
        if field == "correct":
            option = click.option("--correct/--wrong", default=None, help="Whether the answer is right.")
        elif field == "ascending":
            option = click.option(flag, is_flag=True, help="The first or smallest first; the last or largest unless given.")
        elif field == "sort":
            option = click.option(flag, type=click.Choice(SORTS), default="requested", show_default=True, help="Order.")
        elif field.startswith(("min_", "max_")):
            kind = float if field.endswith("reward") else int
            option = click.option(flag, type=kind, metavar="N", help=f"{'At least' if field.startswith('min') else 'At most'}.")
        else:
            option = click.option(flag, metavar=field.upper(), help=HELP[field])
        function = option(function)
    return function


@click.command("episodes", epilog=f"Example: asearch episodes --wrong --min-turns 3 --sort reward. {looking.EXIT_CODES}")
@looking.run_argument
@filter_options
@click.option("--limit", type=click.IntRange(min=1), help=f"At most N rows; {SHOWN} unless given, with --json all.")
@click.option("--follow", "-f", is_flag=True, help="Go on with every episode that moves on, until the run is over or Ctrl-C.")
@looking.json_option
@looking.runs_option
def episodes(run: str | None, limit: int | None, follow: bool, as_json: bool, root: Path, **given: Any) -> None:
    """List the episodes of RUN that are all of what the options say. With --json, one line an episode."""
    wanted = filter_of(
        {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in given.items()
            if value is not None
        }
    )

    async def work(source: RunSource) -> None:
        rows = await rows_with_stages(source)
        found = wanted.select(rows)
        most = limit if limit is not None or as_json else SHOWN
        _print(found[:most], as_json=as_json)
        if len(found) > len(found[:most]) or not as_json:
            click.echo(f"{len(found[:most])} of {len(found)} episodes that match, of {len(rows)} in run {source.run}", err=True)
        if rows.n_left_out:
            looking.note(f"{rows.n_left_out} older episodes are left out")
        if follow and source.bus is not None:
            await _follow(source, wanted, as_json=as_json)

    looking.looked(root, run, work)


async def rows_with_stages(source: RunSource) -> RowTable:
    """One row an episode; TRACE is read only where an episode is open."""
    rows = await source.rows()
    if source.bus is not None and any(row.is_open for row in rows):
        async with aclosing(source.bus.read("trace", follow=False)) as reader:
            async for stored in reader:
                rows.fold("trace", stored.sequence, stored.event)
    return rows


async def _follow(source: RunSource, wanted: EpisodeFilter, *, as_json: bool) -> None:
    """Print every episode that matches when it has moved on: to another stage, or to its fate."""
    from actors.runtime.following import follow as follow_run
    from actors.runtime.workspace import is_live

    assert source.bus is not None  # noqa: S101
    async with follow_run(source.bus, source.run_dir, with_stages=True) as view:
        assert view.stages is not None  # noqa: S101
        view.stages.moved.clear()
        goes_on = True
        while goes_on:
            goes_on = is_live(source.content)
            await source.bus.platform.sleep(REFRESH_S)
            moved = view.stages.take_moved()
            _print([row for row in moved if wanted.matches(row)], as_json=as_json, headed=False)
    looking.note(f"run '{source.run}' is not live: nothing more comes")


def _print(rows: list[EpisodeRow], *, as_json: bool, headed: bool = True) -> None:
    if as_json:
        for row in rows:
            looking.say_json(row)
        return
    lines = table(HEADINGS, [_cells(row) for row in rows], right=RIGHT, width=terminal_width())
    for line in lines if headed else lines[1:]:
        looking.say(line)


def _cells(row: EpisodeRow) -> list[str]:
    state = row.ending if row.stage == "graded" else f"{row.stage} {row.reason}".rstrip() if not row.is_open else row.stage
    mark = {True: " right", False: " wrong", None: ""}[row.correct]
    return [
        folded_line(row.episode),
        state + mark,
        "" if row.reward is None else f"{row.reward:.3f}",
        str(row.n_turns),
        str(row.n_searches),
        str(row.n_reads),
        str(row.n_tokens),
        row.version,
        f"{row.fate} {row.reason}".rstrip() if row.fate else "",
        "" if row.step is None else str(row.step),
        folded_line(row.question),
    ]
