"""`asearch runs`: every run of a folder in a line."""

import time
from pathlib import Path

import click

from actors.cli import looking
from actors.cli.columns import table, terminal_width
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_states import RunState, run_states
from actors.runtime.workspace import Workspace
from asearch.traces.plain_text import folded_line

HEADINGS = ("run", "state", "recipe", "seed", "steps", "accuracy", "episodes", "started", "size", "")
RIGHT = frozenset({"seed", "steps", "episodes", "size"})


@click.command("runs", epilog="Example: asearch runs --json. Exit status: 0 shown, also where there is no run.")
@looking.json_option
@looking.runs_option
def runs(as_json: bool, root: Path) -> None:
    """List the runs of a folder, the newest last: state, steps, held-out accuracy before and after, size on disk.

    A run is live, preparing, ended (with the reason), crashed (its supervisor is dead; `asearch train --run NAME` goes on with
    it) or never started. With --json, one line a run.
    """
    found = looking.finishing(lambda: run_states(Workspace(root), SystemPlatform())) if root.is_dir() else []
    for line in [] if found is None else _lines(found, as_json=as_json):
        looking.say(line)
    if not found and not as_json:
        click.echo(f"there is no run in {root}: start one with `asearch up`, or name its folder with --runs", err=True)


def _lines(found: list[RunState], *, as_json: bool) -> list[str]:
    if as_json:
        import msgspec

        return [msgspec.json.encode(state).decode() for state in found]
    now_ns = time.time_ns()
    return table(HEADINGS, [_cells(state, now_ns) for state in found], right=RIGHT, width=terminal_width()) if found else []


def _cells(state: RunState, now_ns: int) -> list[str]:
    why = f" ({state.ended})" if state.ended else ""
    episodes = state.episodes_requested if state.episodes_requested is not None else state.episodes_ended
    more = "+" if state.episodes_requested is None and episodes is not None and state.state != "ended" else ""
    return [
        state.run,
        folded_line(state.state + why),
        folded_line(state.recipe),
        str(state.seed),
        f"{'?' if state.step is None else state.step}/{state.planned_steps}",
        f"{_share(state.accuracy_before)} -> {_share(state.accuracy_after)}",
        "-" if episodes is None else f"{episodes}{more}",
        ago(state.started_ns, now_ns),
        size(state.n_bytes),
        folded_line(state.note or (state.page if state.state == "live" else "")),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def ago(at_ns: int | None, now_ns: int) -> str:
    """How long ago: `12 s ago`, `3 min ago`, `2 h ago`, `5 days ago`."""
    if not at_ns:
        return "-"
    seconds = max(0.0, (now_ns - at_ns) / 1e9)
    for most, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < most:
            return f"{seconds / unit_s:.0f} {unit} ago"
    return f"{seconds / 86_400:.0f} days ago"


def size(n_bytes: int) -> str:
    """A size: `12.3 MiB`."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
