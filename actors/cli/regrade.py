"""`asearch regrade`: what another reward would have said of the episodes of a run, without generating anything."""

import sys
from pathlib import Path

import click
import msgspec

from actors.cli import looking
from actors.cli.replay import clear_progress, json_option, progress_on_terminal, runs_option, with_run
from actors.cli.replaying.continuing import changed
from actors.cli.replaying.regrading import regrade_run
from actors.runtime.run_source import RunSource
from asearch.errors import ConfigError
from asearch.traces.regrading import Summary

OF_USE = ("rewards.", "trainer.advantage")
"""Settings that change what a reward says of an episode, and what follows from it."""


class Told(msgspec.Struct, kw_only=True):
    """The `--json` line: the summary's fields beside these."""

    run: str
    old_grader: str
    grader: str
    advantage: str
    out: str | None


@click.command("regrade")
@looking.run_argument
@click.option("--grader", "grader", help="Name of the reward; the run's own unless given.")
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. rewards.normalise=squad.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File of one row an episode: .jsonl or .parquet.")
@json_option
@runs_option
def regrade(run: str | None, grader: str | None, overrides: tuple[str, ...], out: Path | None, as_json: bool, root: Path) -> None:
    """Grade all graded episodes of RUN (the live one, else the newest) again, and compute their advantages again by group.

    Advantages are those of trainer.advantage over the graded members of a group. Exit status: 0 done, 1 some episodes could not
    be graded, 2 no such run or reward.
    """
    if out is not None and out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--out {out} must end in .jsonl or .parquet")

    async def work(source: RunSource) -> tuple[Told, Summary]:
        settings = changed(source.content.settings, overrides, grader, OF_USE)
        old = source.content.settings.rewards.name
        told = Told(
            run=source.run,
            old_grader=old,
            grader=settings.rewards.name,
            advantage=settings.trainer.algorithm.advantage,
            out=str(out) if out else None,
        )
        return told, await regrade_run(source, settings, out, progress_on_terminal())

    told, summary = with_run(root, run, work)
    clear_progress()
    if as_json:
        click.echo(msgspec.json.encode({**msgspec.structs.asdict(told), **msgspec.structs.asdict(summary)}).decode())
    else:
        _show(told, summary)
    sys.exit(1 if summary.refused else 0)


def _show(told: Told, summary: Summary) -> None:
    lines = [
        f"run '{told.run}': {summary.episodes} episodes graded by {told.grader} instead of {told.old_grader}",
        f"  reward      {_number(summary.mean_old_reward)} → {_number(summary.mean_new_reward)} in the mean, "
        f"{summary.changed} changed; rank correlation {_number(summary.rank_correlation)}",
        f"  advantages  {summary.sign_flips} of {summary.train_episodes} training episodes change their sign "
        f"({told.advantage} over {summary.groups} groups)",
        f"  signal      {summary.gained_signal} groups gain it, {summary.lost_signal} lose it, {summary.kept_signal} keep it",
    ]
    if summary.refused:
        lines.append(f"  refused     {summary.refused}, the first: {summary.refusal}")
    if told.out:
        lines.append(f"  rows        {told.out}")
    click.echo("\n".join(lines))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
