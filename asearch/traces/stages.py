"""Where the open episodes of a run stand, since when, and how fast they move on: a fold beside the rows."""

from collections import Counter, deque
from collections.abc import Iterable

import msgspec

from asearch.traces.rows import STAGES, EpisodeRow, RowTable
from schemas.events import EpisodeTaken, Event, StepTrained, TokensGenerated, ToolRequested

OPEN = ("waiting", "generating", "tool", "grading")
WINDOW_S = 30.0
"""Over which the throughput of a stage is taken."""
MAX_MOVES = 20_000
MAX_MOVED = 50_000


class Standing(msgspec.Struct, gc=False):
    """An open episode."""

    episode: str
    since_ns: int
    """When it came to its stage, by the writer's clock."""
    turn: int = 0
    tool: str = ""
    """The tool that works for it, or that worked last."""
    argument: str = ""


class StageTable:
    """Rows of a run with their movement. Fold PLAN, OUTCOMES, POLICY and TRACE in any interleaving."""

    def __init__(self) -> None:
        self.rows = RowTable()
        self.open: dict[str, Standing] = {}
        """Episodes without an outcome, in the order of their requests."""
        self.counts: Counter[str] = Counter()
        """Episodes by stage, as of now."""
        self.moved: dict[str, None] = {}
        """Episodes that came to another stage or fate since `take_moved`; the oldest go first where nobody takes them."""
        self._moves: dict[str, deque[int]] = {stage: deque(maxlen=MAX_MOVES) for stage in STAGES}

    def fold(self, stream: str, sequence: int, event: Event | None) -> None:
        """Take the next message of a stream."""
        if sequence <= self.rows.folded[stream]:
            return
        episode: str = getattr(event, "episode", "")
        before = self.rows.rows[episode].stage if episode in self.rows.rows else None
        self.rows.fold(stream, sequence, event)
        if isinstance(event, EpisodeTaken) and before is None and not self.rows.n_left_out:
            # TRACE was read before PLAN came this far: the request is in the fact.
            self._take_early(event)
        row = self.rows.rows.get(episode)
        if row is not None and event is not None:
            self._moved(row, before, event)
        elif isinstance(event, StepTrained):
            self._mark(name for verdict in event.verdicts for name in self.rows.groups.get(verdict.group, ()))

    def _take_early(self, event: EpisodeTaken) -> None:
        place = dict(self.rows.folded)
        for stream, fact in (("plan", event.request), ("trace", event)):
            self.rows.folded[stream] = 0
            self.rows.fold(stream, 1, fact)
        self.rows.folded.update(place)

    def _moved(self, row: EpisodeRow, before: str | None, event: Event) -> None:
        if row.stage != before:
            if before is not None:
                self.counts[before] -= 1
                if before in OPEN:
                    self._moves[before].append(event.at_ns)
            self.counts[row.stage] += 1
            if row.stage not in OPEN:
                self._moves[row.stage].append(event.at_ns)
            self._mark([row.episode])
        if row.stage not in OPEN:
            self.open.pop(row.episode, None)
            return
        standing = self.open.get(row.episode)
        if standing is None:
            standing = self.open[row.episode] = Standing(row.episode, event.at_ns)
        elif row.stage != before:
            standing.since_ns = event.at_ns
        match event:
            case TokensGenerated():
                standing.turn = event.turn
            case ToolRequested():
                standing.turn, standing.tool, standing.argument = event.turn, event.tool, event.argument
            case _:
                pass

    def _mark(self, episodes: Iterable[str]) -> None:
        for episode in episodes:
            self.moved[episode] = None
        while len(self.moved) > MAX_MOVED:
            del self.moved[next(iter(self.moved))]

    def take_moved(self) -> list[EpisodeRow]:
        """The rows that changed stage or fate since the last call."""
        names, self.moved = self.moved, {}
        return [self.rows.rows[name] for name in names if name in self.rows.rows]

    def oldest_ns(self, stage: str) -> int | None:
        """Since when the episode stands there that came first; None where the stage is empty."""
        rows = self.rows.rows
        return min((each.since_ns for each in self.open.values() if rows[each.episode].stage == stage), default=None)

    def per_s(self, stage: str, now_ns: int) -> float:
        """Episodes a second over the last WINDOW_S: that left an open stage, that came to a final one."""
        since_ns = now_ns - int(WINDOW_S * 1e9)
        n = 0
        for at_ns in reversed(self._moves[stage]):
            if at_ns < since_ns:
                break
            n += 1
        return n / WINDOW_S

    def slowest(self, n: int) -> list[tuple[EpisodeRow, Standing]]:
        """The open episodes that were asked for first."""
        rows = self.rows.rows
        first = sorted(self.open.values(), key=lambda each: rows[each.episode].requested_ns)[:n]
        return [(rows[each.episode], each) for each in first]
