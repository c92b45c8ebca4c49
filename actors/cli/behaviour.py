"""`asearch behaviour RUN`: what the policy does, by rules on the archived episodes, over the steps of the run."""

import asyncio
from pathlib import Path
from typing import Any

import click
import msgspec

from actors.cli import looking
from actors.runtime.archive_index import ArchiveIndex
from actors.runtime.behaviour_fold import BehaviourFold
from actors.runtime.run_source import choose_run
from actors.runtime.workspace import Workspace
from asearch.errors import InputError
from asearch.traces.behaviour import COUNTS, FLAGS, RULES


@click.command("behaviour")
@looking.run_argument
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs.")
@click.option("--sample", type=click.IntRange(min=0), default=0, help="Read so many episodes, always the same; 0 reads all.")
@click.option("--buckets", type=click.IntRange(min=1), default=8, show_default=True, help="Ranges of policy steps.")
@click.option("--episodes", is_flag=True, help="Instead a JSON line an episode: flags, counts, and the turns that show them.")
@click.option("--rules", is_flag=True, help="Say what each rule looks for, and stop.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def behaviour(run: str | None, root: Path, sample: int, buckets: int, episodes: bool, rules: bool, as_json: bool) -> None:
    """Show planning, reformulation, cross-validation, verification and honesty over the steps of RUN, live or ended.

    Without RUN the live one, else the newest. Exit status: 0, or 2 where there is no such run or nothing is archived yet.
    """
    if rules:
        click.echo("\n\n".join(f"{name}: {rule.__doc__}".rstrip() for name, rule in RULES.items()))
        return
    workspace = Workspace(root)
    content = choose_run(workspace, run)
    fold = BehaviourFold(ArchiveIndex(workspace.run_dir(content.run) / "archive"), sample)
    asyncio.run(fold.finish())
    if not fold.n_episodes:
        raise InputError(f"run '{content.run}' has no archived episode yet: its recorder writes one as soon as it is graded")
    if episodes:
        for each in fold.behaviours:
            click.echo(msgspec.json.encode(each))
    elif as_json:
        click.echo(msgspec.json.encode({"run": content.run, **fold.to_json(buckets)}).decode())
    else:
        click.echo(text_of(content.run, fold, buckets))


def text_of(run: str, fold: BehaviourFold, buckets: int) -> str:
    """The summary for people: a column an evaluation or a range of policy steps."""
    summary = fold.summary(buckets)
    columns = [(f"steps {each['first_step']}-{each['last_step']}", each) for each in summary["by_step"]]
    columns += list(summary["by_label"].items())
    lines = [
        f"run '{run}': {len(fold.behaviours):,} of {fold.n_episodes:,} archived episodes; "
        f"{summary['n']:,} graded, {summary['n_left_out']:,} dropped or dead, which are left out",
        "",
        _line("", [name for name, _ in columns]),
        _line("episodes", [f"{each['n']:,}" for _, each in columns]),
    ]
    lines += [_line(f"{name} (share)", [_share(each["flags"][name]) for _, each in columns]) for name in FLAGS]
    lines += [_line(f"{name[2:]} (mean, max)", [_count(each["counts"][name]) for _, each in columns]) for name in COUNTS]
    return "\n".join([*lines, "", "What each looks for: asearch behaviour --rules"])


def _line(name: str, cells: list[str]) -> str:
    return f"  {name:<26}" + "".join(f"{cell:>15}" for cell in cells)


def _share(flag: dict[str, Any]) -> str:
    return "-" if flag["share"] is None else f"{flag['share']:.1%}"


def _count(count: dict[str, Any]) -> str:
    return "-" if count["mean"] is None else f"{count['mean']:.2f}, {count['max']:,}"
