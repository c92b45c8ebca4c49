"""Routing: never above the cap, no starvation, sticky while balanced, few moves, whatever joins, leaves and is said."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.runtime.routing import MOVE_RATIO, MOVE_SHARE, EngineLoad, Routing
from tests.properties.counts import examples


class RoutingMachine(RuleBasedStateMachine):
    """A driver with its queue, played by hypothesis: who asks, which requests end, which engines there are."""

    @initialize(places=st.integers(1, 8), pending=st.integers(0, 4))
    def begin(self, places: int, pending: int) -> None:
        self.routing = Routing()
        self.engines: dict[str, EngineLoad] = {}
        self.places, self.pending = places, pending
        self.waiting: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.n_joined = self.n_episodes = 0

    def _grant(self) -> None:
        """As the directory does: strictly in order."""
        while self.waiting:
            name = self.routing.choose(self.waiting[0], self.engines)
            if name is None:
                assert not any(engine.has_room for engine in self.engines.values()), "it starves beside a free place"
                return
            assert self.engines[name].has_room
            self.engines[name].n_asked += 1
            self.asked.append((self.waiting.pop(0), name))

    @rule()
    def join(self) -> None:
        self.engines[f"engine-{self.n_joined}"] = EngineLoad(self.places, self.pending)
        self.n_joined += 1
        self._grant()

    @precondition(lambda self: self.engines)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.engines)))
        del self.engines[name]
        gone = [episode for episode, engine in self.asked if engine == name]
        self.asked = [each for each in self.asked if each[1] != name]
        self.waiting += gone
        self._grant()

    @rule(n=st.integers(1, 6))
    def ask(self, n: int) -> None:
        for _ in range(n):
            self.waiting.append(f"e{self.n_episodes}")
            self.n_episodes += 1
        self._grant()

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), asks_again=st.booleans())
    def end(self, data: st.DataObject, asks_again: bool) -> None:
        episode, name = self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1)))
        self.engines[name].n_asked -= 1
        if asks_again:
            self.waiting.append(episode)
        self._grant()

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), n_others=st.integers(0, 12))
    def say(self, data: st.DataObject, n_others: int) -> None:
        """A heartbeat: other drivers ask too."""
        engine = self.engines[data.draw(st.sampled_from(sorted(self.engines)))]
        engine.reported(engine.n_asked + n_others)
        assert engine.load == engine.n_asked + n_others
        self._grant()

    @invariant()
    def never_above_the_cap(self) -> None:
        for name, engine in getattr(self, "engines", {}).items():
            assert engine.n_asked == sum(each == name for _, each in self.asked) <= self.places + self.pending

    def teardown(self) -> None:
        """Everybody who waits is served once requests end and one engine is there that no other driver keeps busy."""
        if not hasattr(self, "routing"):
            return
        self.engines["last"] = EngineLoad(self.places, self.pending)
        self._grant()
        for _ in range(len(self.waiting) + len(self.asked)):
            if self.asked:
                _, name = self.asked.pop(0)
                self.engines[name].n_asked -= 1
                self._grant()
        assert not self.waiting


RoutingMachine.TestCase.settings = examples(60)
TestRouting = RoutingMachine.TestCase

LOADS = st.lists(st.integers(0, 40), min_size=1, max_size=5)


def engines_of(loads: list[int], places: int = 32, pending: int = 8) -> dict[str, EngineLoad]:
    return {f"engine-{n}": EngineLoad(places, pending, n_others=load) for n, load in enumerate(loads)}


@given(loads=LOADS, at=st.integers(0, 4))
@examples(200)
def test_an_episode_stays_unless_its_home_is_full_or_clearly_more_loaded(loads: list[int], at: int) -> None:
    routing, home = Routing(), f"engine-{at % len(loads)}"
    alone = {home: EngineLoad(32, 8)}
    assert routing.choose("e", alone) == home
    engines = engines_of(loads)
    chosen = routing.choose("e", engines)
    roomy = [engine for engine in engines.values() if engine.has_room]
    if not roomy:
        assert chosen is None
        return
    least = min(engine.load for engine in roomy)
    may_stay = engines[home].has_room and engines[home].load <= MOVE_RATIO * least + MOVE_SHARE * 32
    assert (chosen == home) == (may_stay or (engines[home].has_room and engines[home].load == least))
    if chosen != home:
        assert engines[str(chosen)].load == least
    assert routing.n_moved == (chosen != home)


@given(loads=st.lists(st.integers(0, 39), min_size=2, max_size=5))
@examples(100)
def test_moves_come_to_an_end_when_nothing_changes_from_outside(loads: list[int]) -> None:
    """Every episode asks, ends and asks again, turn after turn: each move lowers the sum of squares by MOVE_SHARE x places."""
    routing, engines = Routing(), engines_of([0] * len(loads))
    episodes: dict[str, str] = {}
    for n, load in enumerate(loads):
        for k in range(load):
            episode = f"e{n}-{k}"
            assert routing.choose(episode, {f"engine-{n}": engines[f"engine-{n}"]}) == f"engine-{n}"
            engines[f"engine-{n}"].n_asked += 1
            episodes[episode] = f"engine-{n}"
    most = sum(load * load for load in loads) / (2 * (MOVE_SHARE * 32 - 1))
    for _ in range(6):
        before = routing.n_moved
        for episode, name in episodes.items():
            engines[name].n_asked -= 1
            chosen = routing.choose(episode, engines)
            assert chosen is not None
            engines[chosen].n_asked += 1
            episodes[episode] = chosen
        if routing.n_moved == before:
            break
    assert routing.n_moved == before
    assert routing.n_moved <= most
    found = [engine.n_asked for engine in engines.values()]
    assert max(found) <= MOVE_RATIO * min(found) + MOVE_SHARE * 32 + 1


def test_fresh_weights_win_over_stickiness_and_old_ones_serve_where_there_are_no_others() -> None:
    routing = Routing()
    engines = {"engine-0": EngineLoad(8, 2, step=3), "engine-1": EngineLoad(8, 2, step=4, n_others=7)}
    assert routing.choose("e", engines, min_step=3) == "engine-0"
    assert routing.choose("e", engines, min_step=4) == "engine-1"
    assert routing.choose("e", engines, min_step=5) == "engine-0"


def test_a_request_leaves_a_queue_for_a_free_place_and_no_more_than_there_are() -> None:
    engines = {"engine-0": EngineLoad(8, 8, n_asked=14), "engine-1": EngineLoad(8, 8)}
    routing, n = Routing(), 0
    while routing.should_leave("engine-0", engines):
        engines["engine-0"].n_leaving += 1
        n += 1
    assert n == 14 - 8
    assert not routing.should_leave("engine-1", engines) and not routing.should_leave("gone", engines)
