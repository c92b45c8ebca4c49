"""The live screen of a run; where there is no terminal, plain lines instead."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from actors.cli.marks import clock, histogram, identity_lines, number, percent, seconds, sparkline
from actors.cli.plain import EVALUATED, final_summary, held_out_line, phase_of, plain_line, progress_of
from actors.runtime.bus import ConsumerInfo
from actors.runtime.following import LOST_S, Vitals
from asearch.evaluation.report import RunReport

WIDE = 120
"""Columns from which on learning and actors stand side by side."""
LABEL = 10
"""Columns of the names on the left."""
WITHOUT_HEARTBEAT = frozenset({"corpus"})
"""Processes that are no actors: all that is known of them is whether they run."""
STYLES = {
    "ready": "green",
    "running": "green",
    "starting": "yellow",
    "draining": "yellow",
    "failed": "bold red",
    "silent": "bold red",
    "ended": "dim",
}


@dataclass(frozen=True)
class Frame:
    """What one refresh shows. `processes` is by actor: the pid (None: it does not run) and how often it was restarted."""

    run: str
    now_ns: int
    elapsed_s: float
    phase: str = ""
    """What the supervisor does; empty leaves it to the run's facts."""
    report: RunReport = field(default_factory=RunReport)
    vitals: Vitals = field(default_factory=Vitals)
    queues: Mapping[str, ConsumerInfo] = field(default_factory=dict[str, ConsumerInfo])
    processes: Mapping[str, tuple[int | None, int]] = field(default_factory=dict[str, tuple[int | None, int]])
    page: str = ""
    """Address of the run's page; empty while there is none."""


class LiveScreen:
    """Shows frames: drawn in place on a terminal, else a line at each step, each new phase, and every `plain_every_s`."""

    def __init__(self, console: Console | None = None, *, plain_every_s: float = 5.0) -> None:
        self.console = console or Console(file=sys.stderr)
        self._plain_every_s = plain_every_s
        self._live: Live | None = None
        self._said_s = -plain_every_s
        self._said: tuple[str, int] = ("", -1)

    def __enter__(self) -> "LiveScreen":
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, frame: Frame) -> None:
        """Show a frame."""
        if self._live is not None:
            self._live.update(self.render(frame), refresh=True)
        else:
            self._say(frame)

    def render(self, frame: Frame) -> RenderableType:
        """The frame as it stands on the screen."""
        return Drawing(frame, self.console.width, self.console.options.ascii_only).whole()

    def _say(self, frame: Frame) -> None:
        key = (frame.phase, len(frame.report.journal.steps))
        if key == self._said and frame.elapsed_s - self._said_s < self._plain_every_s:
            return
        self._said, self._said_s = key, frame.elapsed_s
        told = frame.report.started is not None
        line = plain_line(frame.report, frame.vitals, frame.elapsed_s) if told else f"{clock(frame.elapsed_s):>7}  {frame.phase}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Drawing:
    """One frame at one width."""

    frame: Frame
    width: int
    ascii_only: bool

    def whole(self) -> RenderableType:
        """Everything; wide terminals get two columns."""
        top = [self._header(), *self._page(), *self._accounting()]
        if self.width < WIDE:
            return Group(*top, self._learning(self.width), self._flow(self.width), self._actors())
        grid = Table.grid(padding=(0, 2), expand=True)
        half = max(72, self.width // 2 - 8)
        grid.add_column(width=half)
        grid.add_column(ratio=1)
        grid.add_row(Group(self._learning(half), self._flow(half)), self._actors())
        return Group(*top, grid)

    def _header(self) -> RenderableType:
        frame = self.frame
        dash = "-" if self.ascii_only else "─"
        version = frame.report.journal.version
        policy = f", policy {version}" if version is not None else ""
        title = f"{frame.run}  {clock(frame.elapsed_s)}  {frame.phase or phase_of(frame.report)}"
        return Rule(Text(f"{title}  {progress_of(frame.report)}{policy}", style="bold"), characters=dash, align="left")

    def _page(self) -> list[RenderableType]:
        return [self._line("page", Text(self.frame.page, style="underline"))] if self.frame.page else []

    def _accounting(self) -> list[RenderableType]:
        accounts = self.frame.report.accounts
        lines = identity_lines(accounts.all_terms(), width=self.width - LABEL - 1, ascii_only=self.ascii_only)
        broken = accounts.broken()
        style = "bold red" if broken else "green"
        labels = ("episodes", "graded")
        drawn = [self._line(label, Text(text, style=style)) for label, text in zip(labels, lines, strict=True)]
        drawn.extend(Text(f"BROKEN {text}", style="bold red") for text in broken)
        return drawn

    def _line(self, label: str, text: Text | str) -> RenderableType:
        line = Text.assemble((f"{label:<{LABEL}} ", "dim"), text)
        line.no_wrap, line.overflow = True, "ellipsis"
        return line

    def _learning(self, width: int) -> RenderableType:
        report = self.frame.report
        sums = [report.step_sums(step.step) for step in report.journal.in_order]
        room = max(8, width - 40)
        rows = (
            ("reward", "mean of the last step", [each.mean(each.reward) for each in sums], None),
            ("accuracy", "share correct", [each.accuracy for each in sums], 1.0),
            ("searches", "per episode", [each.mean(each.n_searches) for each in sums], None),
            ("pages read", "per episode", [each.mean(each.n_reads) for each in sums], None),
        )
        lines: list[RenderableType] = []
        for label, unit, values, top in rows:
            curve = sparkline(values, room, top=top, ascii_only=self.ascii_only)
            newest = number(values[-1] if values else None)
            lines.append(self._line(label[:LABEL], f"{newest:>6} {unit:<21} {curve}"))
        for label in EVALUATED:
            if (text := held_out_line(report, label)) is not None:
                lines.append(self._line(label, text))
        return Group(*lines)

    def _flow(self, width: int) -> RenderableType:
        frame, report = self.frame, self.frame.report
        engine, trainer = frame.vitals.total_rate("engine", "n_tokens"), frame.vitals.total_rate("trainer", "n_tokens")
        speed = f"engine {number(engine, 0)} tokens/s, trainer {number(trainer, 0)} tokens/s"
        opened, waiting = (None if at is None else max(0.0, (frame.now_ns - at) / 1e9) for at in report.oldest_ns())
        depths = ", ".join(f"{name} {info.n_pending}+{info.n_ack_pending}" for name, info in frame.queues.items())
        bars = histogram(report.journal.staleness(), cells=4 if width < WIDE else 8, most=5, ascii_only=self.ascii_only)
        idle = f"{percent(report.journal.idle_fraction())} of the time since its first batch"
        return Group(
            self._line("speed", speed),
            self._line("idle", f"trainer {idle}"),
            self._line("staleness", f"{bars}  (steps, bound {report.eta})"),
            self._line("ages", f"oldest open episode {seconds(opened)}, oldest graded one that waits {seconds(waiting)}"),
            self._line("queues", f"{depths or '-'}  (waiting+held facts)"),
        )

    def _actors(self) -> RenderableType:
        frame = self.frame
        table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
        for heading in ("actor", "state", "pid", "restarts", "last beat"):
            width = {"actor": 11, "state": 11, "pid": 7}.get(heading, len(heading))
            table.add_column(heading, justify="left" if heading in ("actor", "state") else "right", no_wrap=True, min_width=width)
        table.add_column("", no_wrap=True, overflow="ellipsis")
        for name in dict.fromkeys([*frame.processes, *frame.vitals.latest]):
            table.add_row(*self._actor(name))
        return table

    def _actor(self, name: str) -> tuple[Text | str, ...]:
        heartbeat, now_ns = self.frame.vitals.latest.get(name), self.frame.now_ns
        pid, n_restarts = self.frame.processes.get(name, (heartbeat.pid if heartbeat else None, 0))
        if heartbeat is None or pid is None or heartbeat.pid != pid:
            alive = "running" if name in WITHOUT_HEARTBEAT else "starting"
            state, age, doing = alive if pid is not None else "not running", "-", ""
        else:
            age_s = max(0.0, (now_ns - heartbeat.at_ns) / 1e9)
            state, age = heartbeat.state if age_s <= LOST_S else "silent", seconds(age_s)
            doing = f"waits for {heartbeat.waiting_for}" if heartbeat.waiting_for else _gauges(heartbeat.gauges)
        shown_pid = "-" if pid is None else str(pid)
        return name, Text(state, style=STYLES.get(state, "")), shown_pid, str(n_restarts), age, Text(doing, style="dim")


def _gauges(gauges: Mapping[str, float]) -> str:
    return " ".join(f"{name.removeprefix('n_')} {value:,.0f}" for name, value in gauges.items() if name.startswith("n_"))


__all__ = ["Drawing", "Frame", "LiveScreen", "final_summary"]
