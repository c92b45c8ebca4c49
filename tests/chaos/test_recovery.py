"""When a run counts as recovered: heartbeats and facts are fed by hand."""

import os
from pathlib import Path

import pytest

from actors.runtime.local_run import LocalRun
from actors.runtime.platform import SystemPlatform
from actors.runtime.roster import actors_of
from actors.runtime.workspace import Workspace
from schemas.commands import Heartbeat
from schemas.events import EpisodeRequested, EpisodeTaken, StepTrained, TokensGenerated, ToolReturned
from schemas.records import Task
from tests.chaos.injection import ChaosError, Injector
from tests.chaos.scale import SMOKE, settings_of
from tests.chaos.schedule import Fault
from tests.chaos.victims import Victims
from tests.chaos.watch import Watch


@pytest.fixture
def injector(tmp_path: Path) -> Injector:
    local = LocalRun(Workspace(tmp_path), "chaos", settings_of(SMOKE, 1, 3), SystemPlatform(), print)
    return Injector(local, Watch(), Victims(local), print, 3)


def beat(name: str, pid: int, at_ns: int, state: str = "ready", **gauges: float) -> Heartbeat:
    return Heartbeat(actor=name.rpartition("-")[0], actor_id=name, pid=pid, at_ns=at_ns, state=state, gauges=gauges)


def step(number: int, at_ns: int) -> StepTrained:
    return StepTrained(
        id=f"s{number}",
        at_ns=at_ns,
        model="policy",
        lineage=1,
        step=number,
        verdicts=[],
        staleness={},
        n_tokens_trained=0,
        n_tokens_masked_stale=0,
        n_tokens_discarded=0,
        empty=False,
        metrics={},
    )


def tokens(engine: str, at_ns: int) -> TokensGenerated:
    return TokensGenerated(
        id="t", at_ns=at_ns, episode="e", request="r", turn=0, offset=0, columns={}, versions=[], engine=engine
    )


async def test_a_killed_actor_has_to_be_ready_and_then_to_work(injector: Injector) -> None:
    watch = injector.watch
    recovered = injector.recovery(Fault(0, "kill_engine", 0, 0.0), "engine-0", 7, from_ns=100)
    await watch.saw(tokens("engine-0", 150))
    await watch.heard(beat("engine-0", 7, 140))
    assert not recovered(), "that was the process before"
    await watch.heard(beat("engine-0", 8, 170, "starting"))
    assert not recovered()
    await watch.heard(beat("engine-0", 8, 200))
    assert not recovered(), "it has generated nothing yet"
    await watch.saw(tokens("engine-1", 250))
    assert not recovered(), "another one has"
    await watch.saw(tokens("engine-0", 250))
    assert recovered()


async def test_a_stopped_actor_has_to_work_after_it_went_on(injector: Injector) -> None:
    watch = injector.watch
    recovered = injector.recovery(Fault(0, "stop_trainer", 0, 0.0, 3.0), "trainer-0", 7, from_ns=100)
    await watch.saw(step(3, 90))
    await watch.heard(beat("trainer-0", 7, 110))
    assert not recovered()
    await watch.saw(step(4, 120))
    assert recovered()
    assert watch.step == 5


async def test_the_rank_is_recovered_with_its_trainer(injector: Injector) -> None:
    assert Victims.actor_of(Fault(0, "kill_rank", 0, 0.0)) == "trainer-0"
    assert Victims.actor_of(Fault(0, "kill_server", 1, 0.0)) == "engine-1"
    assert Victims.actor_of(Fault(0, "stop_driver", 1, 0.0)) == "driver-1"


async def test_after_the_broker_everybody_has_to_be_heard_again(injector: Injector) -> None:
    watch = injector.watch
    recovered = injector.recovery(Fault(0, "kill_broker", 0, 0.0), "broker", None, from_ns=100)
    await watch.saw(tokens("engine-0", 200))
    for _, name in actors_of(injector.local.settings):
        assert not recovered()
        await watch.heard(beat(name, 1, 90))
        assert not recovered()
        await watch.heard(beat(name, 1, 150))
    assert recovered()


def pid_8(_self: Injector, _name: str) -> int:
    return 8


async def test_the_corpus_server_has_to_listen_before_a_tool_counts(injector: Injector, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, port_file = injector.watch, injector.local.run_dir / "corpus.port"
    recovered = injector.recovery(Fault(0, "kill_corpus", 0, 0.0), "corpus", 7, from_ns=100)
    monkeypatch.setattr(Injector, "_pid_of", pid_8)
    await watch.saw(ToolReturned(id="r", at_ns=900, episode="e", call="c", turn=0))
    assert not recovered(), "the new one does not listen yet"
    port_file.parent.mkdir(parents=True)
    port_file.touch()
    os.utime(port_file, ns=(1000, 1000))
    assert not recovered()
    await watch.saw(ToolReturned(id="r", at_ns=1100, episode="e", call="c", turn=0))
    assert recovered()


async def test_a_recorder_works_when_its_archive_grows() -> None:
    watch = Watch()
    for at_ns, pid, n in ((1, 5, 10), (2, 5, 10), (3, 6, 12)):
        await watch.heard(beat("recorder-0", pid, at_ns, n_archived=n))
        assert not watch.made_progress("recorder-0", 0)
    await watch.heard(beat("recorder-0", 6, 4, n_archived=13))
    assert watch.made_progress("recorder-0", 3)
    assert watch.counted("n_archived", "recorder") == 10 + 13


async def test_a_driver_works_when_it_takes_an_episode() -> None:
    watch = Watch()
    task = Task(id="q", question="?")
    asked = EpisodeRequested(
        id="r",
        episode="e",
        group="g",
        member=0,
        members=1,
        slot=0,
        purpose="train",
        task=task,
        seed=1,
        progress=0,
        recipe_hash="",
    )
    await watch.saw(EpisodeTaken(id="x", at_ns=5, episode="e", driver="driver-1", attempt=0, request=asked))
    assert watch.made_progress("driver-1", 4) and not watch.made_progress("driver-0", 0)


async def test_a_fault_that_would_come_after_the_plan_is_made_is_an_error(injector: Injector) -> None:
    steps = injector.local.settings.run.steps
    await injector.watch.saw(step(steps - 6, 1))
    injector.refuse_late(Fault(0, "kill_tool", 0, 0.0))
    await injector.watch.saw(step(steps - 5, 2))
    with pytest.raises(ChaosError, match="plan more steps"):
        injector.refuse_late(Fault(0, "kill_tool", 0, 0.0))
