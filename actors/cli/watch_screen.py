"""One moment of a run on a terminal, or as a plain line."""

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from actors.cli.marks import identity_lines, number, seconds
from actors.cli.screen import STYLES
from actors.cli.watching import ActorFigures, SlowEpisode, Watched
from asearch.traces.plain_text import ellipsis, folded_line
from asearch.traces.stages import OPEN

QUESTION_CHARS = 60


def drawing(now: Watched, width: int, *, ascii_only: bool = False) -> RenderableType:
    """Everything, one part below the other."""
    parts: list[RenderableType] = [
        Rule(Text(title_of(now), style="bold"), characters="-" if ascii_only else "─", align="left"),
        *_accounting(now, width, ascii_only=ascii_only),
        _stages(now),
    ]
    if now.slowest:
        parts.append(_slowest(now, width))
    if now.actors:
        parts.append(_actors(now))
    parts.extend(Text(text, style="yellow") for text in (now.note, f"page: {now.page}" if now.page else "") if text)
    return Group(*parts)


def title_of(now: Watched) -> str:
    """Run, state and how far it has come."""
    step = "" if now.step is None else f"  step {now.step}/{now.planned_steps}"
    why = f" ({now.ended})" if now.ended else ""
    phase = f", {now.phase}" if now.phase and now.phase != now.state else ""
    return f"{now.run}  {now.state}{why}{phase}{step}"


def plain_watch_line(now: Watched) -> str:
    """The moment in a line."""
    stages = ", ".join(_in_words(stage, now) for stage in now.stages if now.stages[stage].n or stage in OPEN)
    parts = [title_of(now), stages]
    if now.slowest:
        first = now.slowest[0]
        parts.append(f"slowest {first.episode} {first.stage} turn {first.turn} {seconds(first.open_s)}")
    unwell = [f"{name} {each.state}" for name, each in now.actors.items() if each.state != "ready"]
    if now.actors:
        parts.append(f"actors: {', '.join(unwell) if unwell else 'all ready'}")
    if now.accounting is not None:
        parts.append("identities " + (f"BROKEN: {'; '.join(now.broken)}" if now.broken else "ok"))
    if now.note:
        parts.append(now.note)
    return folded_line(" | ".join(parts))


def _in_words(stage: str, now: Watched) -> str:
    figures = now.stages[stage]
    oldest = "" if figures.oldest_s is None else f" (oldest {seconds(figures.oldest_s)})"
    return f"{figures.n} {stage}{oldest}"


def _accounting(now: Watched, width: int, *, ascii_only: bool) -> list[RenderableType]:
    if now.accounting is None:
        return []
    style = "bold red" if now.broken else "green"
    lines = identity_lines(now.accounting, width=width, ascii_only=ascii_only)
    return [Text(line, style=style, no_wrap=True) for line in [*lines, *(f"BROKEN {text}" for text in now.broken)]]


def _stages(now: Watched) -> Table:
    table = _table(("stage", "<"), ("episodes", ">"), ("oldest", ">"), ("per second", ">"))
    for stage, figures in now.stages.items():
        per_s = "" if figures.per_s is None else number(figures.per_s)
        table.add_row(stage, str(figures.n), "" if figures.oldest_s is None else seconds(figures.oldest_s), per_s)
    return table


def _slowest(now: Watched, width: int) -> Table:
    table = _table(("slowest", "<"), ("stage", "<"), ("open", ">"), ("there", ">"), ("turn", ">"), ("doing", "<"))
    room = max(20, width - 60)
    for each in now.slowest:
        there = "" if each.stage_s is None else seconds(each.stage_s)
        table.add_row(folded_line(each.episode), each.stage, seconds(each.open_s), there, str(each.turn), _doing(each, room))
    return table


def _doing(each: SlowEpisode, room: int) -> Text:
    said = f"{each.tool} {each.argument}" if each.tool else each.question
    return Text(ellipsis(folded_line(said), min(room, QUESTION_CHARS)), style="" if each.tool else "dim")


def _actors(now: Watched) -> Table:
    table = _table(("actor", "<"), ("state", "<"), ("version", ">"), ("last beat", ">"), ("", "<"))
    for name, each in now.actors.items():
        table.add_row(name, *_actor(each))
    return table


def _actor(each: ActorFigures) -> tuple[Text | str, ...]:
    beat = "-" if each.beat_s is None else seconds(each.beat_s)
    waits = f"waits for {folded_line(each.waiting_for)}" if each.waiting_for else ""
    return Text(each.state, style=STYLES.get(each.state, "")), each.version, beat, Text(waits, style="dim")


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    for heading, side in columns:
        table.add_column(heading, justify="right" if side == ">" else "left", no_wrap=True, overflow="ellipsis")
    return table
