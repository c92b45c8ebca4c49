"""`asearch dataset RUN`: trajectories of a run as data for supervised fine-tuning, rejection sampling or preferences."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from actors.cli import looking
from actors.runtime.ended_episodes import fold_record
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_source import RunSource, open_run
from actors.runtime.workspace import Workspace
from asearch.agents.segments import segments
from asearch.errors import ConfigError, InputError
from asearch.traces.dataset import FORMATS, as_json, as_parquet, by_task, dpo_row, messages_of, pairs, sft_row, token_rows
from asearch.traces.filters import filter_of
from asearch.traces.parquet import TableWriter
from asearch.traces.rows import EpisodeRow
from asearch.traces.tables import DPO, SFT, TOKENS, need_parquet
from asearch.traces.turns import FoldedEpisode

Row = dict[str, Any]
_PATH = click.Path(path_type=Path)
_UNLIMITED = sys.maxsize
_DEFAULT_PER_TASK = {"sft": _UNLIMITED, "rft": 1, "dpo": 1}


@dataclass(frozen=True)
class Wanted:
    """What is asked for. `filters` are fields of `EpisodeFilter`."""

    format: str
    tokens: bool
    max_per_task: int
    min_margin: float
    min_reward: float | None
    filters: dict[str, str]


@click.command("dataset")
@looking.run_argument
@click.option("--runs", "root", type=_PATH, default=Path("runs"), show_default=True, help="Folder of the runs.")
@click.option("--format", "format_", type=click.Choice(FORMATS), required=True, help="sft: episodes as chat messages; rft: of "
              "these the best right ones of each task; dpo: a better and a worse one of a group.")  # fmt: skip
@click.option("--out", type=_PATH, help="File, .jsonl or .parquet; standard output (JSON lines) unless given.")
@click.option("--tokens", is_flag=True, help="Instead of messages: input_ids, loss_mask and labels, a row a training sequence.")
@click.option("--min-reward", type=float, help="Of an episode; for dpo of the chosen one.")
@click.option("--max-per-task", type=click.IntRange(min=1), help="Rows a task; 1 for rft and dpo unless given, for sft all.")
@click.option("--min-margin", type=click.FloatRange(min=0.0), default=0.0, help="Least difference of rewards of a pair.")
@click.option("--purpose", default="train", show_default=True, help="train, eval, synthesis, or `any`.")
@click.option("-w", "--where", "where", multiple=True, metavar="FIELD=VALUE", help="Filter as of `asearch episodes`, e.g. "
              "ending=answered, fate=counted, version=1.3, max_turns=8; may be repeated.")  # fmt: skip
def dataset(
    run: str | None,
    root: Path,
    format_: str,
    out: Path | None,
    tokens: bool,
    min_reward: float | None,
    max_per_task: int | None,
    min_margin: float,
    purpose: str,
    where: tuple[str, ...],
) -> None:
    """Export graded episodes of RUN (the live one, else the newest). Columns: infra/generated/archive.md.

    Episodes of evaluations are left out unless --purpose says otherwise. Exit status: 0, or 2 where nothing matches.
    """
    if tokens and format_ == "dpo":
        raise ConfigError("dpo has messages alone: leave --tokens out")
    if out is not None and out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--out {out} must end in .jsonl or .parquet")
    if out is not None and out.suffix == ".parquet":
        need_parquet()
    filters = {} if purpose == "any" else {"purpose": purpose}
    for each in where:
        field, equals, value = each.partition("=")
        if not equals:
            raise ConfigError(f"filter {each!r} has no '=': write it as FIELD=VALUE, e.g. ending=answered")
        filters[field.strip()] = value.strip()
    limit = max_per_task or _DEFAULT_PER_TASK[format_]
    wanted = Wanted(format_, tokens, limit, min_margin, min_reward, filters)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        n_rows, n_skipped, name = runner.run(_export(Workspace(root), run, wanted, out))
    skipped = f"; {n_skipped} episodes could not be folded and are left out" if n_skipped else ""
    click.echo(f"{n_rows:,} rows of run '{name}' ({format_}) to {out or 'standard output'}{skipped}", err=True)


async def _export(workspace: Workspace, run: str | None, wanted: Wanted, out: Path | None) -> tuple[int, int, str]:
    platform = SystemPlatform()
    async with open_run(workspace, run, platform, f"dataset-{platform.new_id()[:6]}") as source:
        table = await source.rows()
        if table.n_left_out:
            click.echo(f"only the newest {len(table):,} episodes are read; {table.n_left_out:,} are not", err=True)
        found = [row for row in filter_of(wanted.filters).select(table) if row.stage == "graded"]
        exporter = _Exporter(source, wanted)
        n_rows = 0
        with _Output(source.run, wanted, out) as output:
            async with aclosing(exporter.rows(found[::-1])) as reader:
                async for row in reader:
                    output.add(row)
                    n_rows += 1
            if not n_rows:
                raise InputError(_advice(source.run, wanted, found, exporter, len(table)))
        return n_rows, exporter.n_skipped, source.run


class _Exporter:
    """Makes the rows: which episodes follows from their rows in the list; only those are read in full."""

    def __init__(self, source: RunSource, wanted: Wanted) -> None:
        self._source = source
        self._wanted = wanted
        self.n_skipped = 0
        self.trouble = ""

    async def rows(self, found: list[EpisodeRow]) -> AsyncGenerator[Row]:
        """The rows of the data set. `found` are the graded episodes that match, in the order of their requests."""
        async with aclosing(self._pairs(found) if self._wanted.format == "dpo" else self._episodes(found)) as reader:
            async for row in reader:
                yield row

    async def _episodes(self, found: list[EpisodeRow]) -> AsyncGenerator[Row]:
        wanted = self._wanted
        good = [row for row in found if wanted.min_reward is None or (row.reward or 0.0) >= wanted.min_reward]
        for candidates in by_task(good, correct_only=wanted.format == "rft").values():
            written: list[list[str]] = []
            for row in candidates:
                if len(written) >= wanted.max_per_task:
                    break
                folded = await self._folded(row)
                if folded is None or folded.state is None:
                    continue
                texts = [turn.text or "" for turn in folded.turns]
                if wanted.format == "rft" and texts in written:
                    # The same solution again teaches nothing new.
                    continue
                written.append(texts)
                for made in self._made(row, folded):
                    yield made

    def _made(self, row: EpisodeRow, folded: FoldedEpisode) -> list[Row]:
        assert folded.state is not None  # noqa: S101
        if self._wanted.tokens:
            return token_rows(self._source.run, row, segments(folded.state))
        return [sft_row(self._source.run, row, self._messages(folded))]

    async def _pairs(self, found: list[EpisodeRow]) -> AsyncGenerator[Row]:
        wanted = self._wanted
        for candidates in pairs(found, wanted.min_margin, wanted.min_reward).values():
            n_written = 0
            for better, worse in candidates:
                if n_written >= wanted.max_per_task:
                    break
                chosen, rejected = await self._folded(better), await self._folded(worse)
                if chosen is None or rejected is None:
                    continue
                n_written += 1
                yield dpo_row(self._source.run, better, worse, self._messages(chosen), self._messages(rejected))

    async def _folded(self, row: EpisodeRow) -> FoldedEpisode | None:
        folded = fold_record(self._source, await self._source.record(row.episode))
        if folded.state is None:
            self.n_skipped += 1
            self.trouble = folded.trouble
            return None
        return folded

    def _messages(self, folded: FoldedEpisode) -> list[dict[str, Any]]:
        loaded = self._source.agent()
        assert loaded is not None  # noqa: S101
        return messages_of(folded, loaded[1].decode)


class _Output:
    """Standard output, or a file that is put in place when all is written."""

    def __init__(self, run: str, wanted: Wanted, out: Path | None) -> None:
        self._out = out
        self._aside = None if out is None else out.with_name(f".{out.name}.part")
        self._file: Any = None
        self._writer: TableWriter | None = None
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        if out is not None and out.suffix == ".parquet":
            spec = DPO if wanted.format == "dpo" else TOKENS if wanted.tokens else SFT
            about = {"asearch.run": run, "asearch.format_of_data": wanted.format}
            self._writer = TableWriter(out.parent, replace(spec, name=out.stem), about, part_groups=_UNLIMITED)
        elif self._aside is not None:
            self._file = self._aside.open("wb")

    def __enter__(self) -> "_Output":
        return self

    def add(self, row: Row) -> None:
        """Write a row."""
        if self._writer is not None:
            self._writer.add(as_parquet(row))
        elif self._file is not None:
            self._file.write(msgspec.json.encode(as_json(row)) + b"\n")
        else:
            sys.stdout.write(msgspec.json.encode(as_json(row)).decode() + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None and self._out is not None:
            if self._writer is not None:
                self._writer.finish()[0][0].replace(self._out)
            elif self._aside is not None:
                self._aside.replace(self._out)
        if self._writer is not None:
            self._writer.abandon()
        if self._aside is not None:
            self._aside.unlink(missing_ok=True)


def _advice(run: str, wanted: Wanted, found: list[EpisodeRow], exporter: _Exporter, n_episodes: int) -> str:
    """Why there is nothing to write, and what would change that."""
    if not n_episodes:
        return f"run '{run}' has no episode yet"
    if not found:
        said = ", ".join(f"{name}={value}" for name, value in wanted.filters.items())
        what = said or "the filter"
        return f"none of the {n_episodes:,} episodes of run '{run}' is graded and matches {what}; see `asearch episodes`"
    if exporter.n_skipped:
        return f"none of {exporter.n_skipped:,} episodes of run '{run}' can be folded: {exporter.trouble}"
    rewards = [row.reward or 0.0 for row in found]
    span = f"rewards lie between {min(rewards):g} and {max(rewards):g}"
    n_correct = sum(bool(row.correct) for row in found)
    if wanted.format == "dpo":
        what = f"no group of {len(found):,} graded episodes has two whose rewards differ enough"
        return f"{what} ({span}): lower --min-margin or --min-reward"
    if wanted.format == "rft" and not n_correct:
        return f"none of {len(found):,} graded episodes is right: nothing to keep; --format sft takes them all"
    return (
        f"none of {len(found):,} graded episodes ({n_correct:,} right) has the least reward asked for; {span}: lower --min-reward"
    )
