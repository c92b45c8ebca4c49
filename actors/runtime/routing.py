"""Which engine a generation goes to: sticky, least loaded, never above a cap; a pure function of what was heard and asked.

The *load* of an engine is the number of requests it has now: those of other drivers, as of its last heartbeat, and one's own,
which are known exactly. An engine takes new requests while its load is below its cap: the requests it runs at once, and
`max_pending` more that may wait in it, so that it never runs dry between two heartbeats. What is above waits in the driver,
where it can still go anywhere.

An episode stays with its *home*, whose cache holds its prefix: elsewhere its whole context is fed again. It moves when the home
takes nothing more, when the home's weights are older than the episode asks for and another engine's are not, or when the home
is clearly more loaded than the least loaded engine:

    load(home) / places(home) > MOVE_RATIO x load(least) / places(least) + MOVE_SHARE

The second term is what an engine answers more at no cost to those it has; the first keeps the moves few where all are busy.
Among engines alike each such move lowers the sum of the squared loads, so that between two changes from outside they come to
an end. The rule is that of join-shortest-queue with delayed dispatch (RLBoost, arXiv 2510.19225, algorithm 2), with stickiness
added.
"""

from dataclasses import dataclass

MOVE_RATIO = 1.5
MOVE_SHARE = 1 / 8


@dataclass
class EngineLoad:
    """What a driver knows of one engine that serves."""

    places: int
    """Requests it runs at once."""
    max_pending: int
    """Requests that may wait in it besides."""
    step: int = 0
    """Policy step of its weights."""
    n_asked: int = 0
    """Own requests under way."""
    n_others: int = 0
    """Requests of other drivers, as of its last heartbeat."""
    n_leaving: int = 0
    """Own requests that it was told to hand over, and has not yet."""
    n_reported: int = 0

    @property
    def load(self) -> int:
        """Requests it has, less those that are about to leave."""
        return self.n_others + self.n_asked - self.n_leaving

    @property
    def cap(self) -> int:
        """Load from which on it is asked nothing more."""
        return self.places + self.max_pending

    @property
    def has_room(self) -> bool:
        """Whether it may be asked. One's own requests alone never go above the cap."""
        return max(self.load, self.n_asked) < self.cap

    def reported(self, n_requests: int) -> None:
        """Its heartbeat says how many requests it has; one's own are among them."""
        self.n_reported = n_requests
        self.n_others = max(0, n_requests - self.n_asked)


class Routing:
    """Chooses engines for episodes. Whoever calls `choose` calls `asked` with its answer."""

    def __init__(self) -> None:
        self._home: dict[str, str] = {}
        self.n_moved = 0
        """Episodes that left a home that still served."""

    def choose(self, episode: str, engines: dict[str, EngineLoad], min_step: int = 0) -> str | None:
        """The engine for the next request of an episode, by name from those that serve; None while none may be asked."""
        roomy = {name: engine for name, engine in engines.items() if engine.has_room}
        # Only where nobody has the weights asked for do older ones serve: what they make counts as what it is.
        roomy = {name: engine for name, engine in roomy.items() if engine.step >= min_step} or roomy
        if not roomy:
            return None
        least = min(roomy, key=lambda name: (roomy[name].load / roomy[name].places, name))
        home = self._home.get(episode)
        if home in roomy and not clearly_more(roomy[home], roomy[least]):
            return home
        self.n_moved += home in engines
        self._home[episode] = least
        return least

    def forget(self, episode: str) -> None:
        """The episode is over."""
        self._home.pop(episode, None)

    def should_leave(self, name: str, engines: dict[str, EngineLoad]) -> bool:
        """Whether a request that has brought no token yet does better elsewhere: its engine has a queue, another one none."""
        home = engines.get(name)
        if home is None or home.load <= home.places:
            return False
        free = [engine for engine in engines.values() if engine.load < engine.places]
        return any(clearly_more(home, engine) for engine in free)


def clearly_more(home: EngineLoad, other: EngineLoad) -> bool:
    """Whether `home` is so much more loaded than `other` that a prefix is worth less than its place in the queue."""
    return home is not other and home.load / home.places > MOVE_RATIO * other.load / other.places + MOVE_SHARE
