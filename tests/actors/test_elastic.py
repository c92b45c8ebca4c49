"""Engines that are added to a run and removed from it: what is kept, what is started and ended, what is still missed."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from actors.cli.engines import _line, _table
from actors.cli.engines import engines as command
from actors.cli.status import _states
from actors.runtime.elastic import ElasticEngines
from actors.runtime.following import LOST_S, View, Vitals
from actors.runtime.measures import measure
from actors.runtime.membership import Membership, membership_of, read_membership, write_membership
from actors.runtime.platform import Process, SystemPlatform
from actors.runtime.roster import actors_now, actors_of
from actors.runtime.supervisor import Supervisor
from asearch.configuration.loading import load_settings
from asearch.errors import InputError
from schemas.commands import AddEngines, EnginesChanged, Heartbeat, RemoveEngines
from schemas.records import Version
from tests.actors.conftest import Stage
from tests.actors.test_supervisor import PATIENT, STUBBORN, spec
from tests.runtime.facts import until

SETTINGS = load_settings("toy", ("engine.count=2",))


def test_numbers_are_given_once_and_the_youngest_leave_first(tmp_path: Path) -> None:
    first = membership_of(tmp_path, SETTINGS)
    assert first.engines == ["engine-0", "engine-1"]
    more = first.with_more(2).without([], 1).with_more(1)
    assert more.engines == ["engine-0", "engine-1", "engine-2", "engine-4"]
    assert more.without(["engine-0", "engine-4"]).engines == ["engine-1", "engine-2"]
    assert more.without([], 4).engines == []
    with pytest.raises(InputError, match=r"keeps no engine engine-3; it keeps engine-0"):
        more.without(["engine-3"])
    with pytest.raises(InputError, match="5 engines cannot be removed: the run keeps 4"):
        more.without([], 5)
    write_membership(tmp_path, more)
    assert membership_of(tmp_path, SETTINGS) == more == read_membership(tmp_path)
    assert [name for kind, name in actors_now(SETTINGS, tmp_path) if kind == "engine"] == more.engines
    (tmp_path / "engines.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_membership(tmp_path)


@pytest.fixture
def supervised(tmp_path: Path) -> Supervisor:
    return Supervisor(SystemPlatform())


async def test_engines_are_started_and_ended_as_asked_and_survive_their_supervisor(
    stage: Stage, tmp_path: Path, supervised: Supervisor
) -> None:
    notes = tmp_path / "notes"
    held = ElasticEngines(stage.run, tmp_path, SETTINGS, supervised, lambda name: spec(name, PATIENT, tmp_path))
    await held.serve(await stage.connect("supervisor"))
    operator = await stage.connect("operator")

    async def ask(message: AddEngines | RemoveEngines) -> EnginesChanged:
        reply = await operator.request(message, key=stage.run, timeout_s=5.0)
        assert isinstance(reply, EnginesChanged)
        return reply

    early = await ask(AddEngines(n=1))
    assert "does not train yet" in early.error and not early.changed
    running = asyncio.create_task(supervised.run([spec(name, PATIENT, tmp_path) for name in held.membership.engines]))
    await until(lambda: notes.exists() and notes.read_text().count("begins") == 2, 20.0)
    assert (await ask(AddEngines(n=2))).changed == ["engine-2", "engine-3"]
    await until(lambda: notes.read_text().count("begins") == 4, 20.0)
    reply = await ask(RemoveEngines(engines=["engine-0", "engine-2"]))
    assert (reply.changed, reply.engines, reply.error) == (["engine-0", "engine-2"], ["engine-1", "engine-3"], "")
    await until(lambda: sorted(supervised.children) == ["engine-1", "engine-3"], 20.0)
    assert sorted(line for line in notes.read_text().splitlines() if "ends" in line) == ["engine-0 ends", "engine-2 ends"]
    assert "keeps no engine engine-0" in (await ask(RemoveEngines(engines=["engine-0"]))).error
    assert (await ask(RemoveEngines(n=1, now=True))).changed == ["engine-3"]
    await until(lambda: list(supervised.children) == ["engine-1"], 20.0)
    assert "engine-3 ends" not in notes.read_text(), "killed, not stopped"
    await asyncio.sleep(0.2)
    assert notes.read_text().count("begins") == 4, "what was removed is not started again"
    assert supervised.children["engine-1"][1] == 0
    again = ElasticEngines(
        stage.run, tmp_path, SETTINGS, Supervisor(SystemPlatform()), lambda name: spec(name, PATIENT, tmp_path)
    )
    assert again.membership == Membership(engines=["engine-1"], next_number=4)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_child_that_is_removed_while_it_starts_again_stays_away(tmp_path: Path, supervised: Supervisor) -> None:
    failing = spec("bad", "import sys; sys.exit(3)", tmp_path, max_restarts=1000)
    running = asyncio.create_task(supervised.run([spec("good", PATIENT, tmp_path), failing]))
    await until(lambda: supervised.children.get("bad", (None, 0))[1] >= 2, 20.0)
    supervised.remove("bad")
    await until(lambda: "bad" not in supervised.children)
    supervised.add(spec("deaf", STUBBORN, tmp_path, grace_s=0.1))
    await until(lambda: "up" in (tmp_path / "notes").read_text(), 20.0)
    supervised.remove("deaf")
    await until(lambda: list(supervised.children) == ["good"])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


class SlowToSpawn(SystemPlatform):
    """Starts nothing before `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def spawn(self, *args: Any, **more: Any) -> Process:
        await self.gate.wait()
        return await super().spawn(*args, **more)


async def test_children_are_added_and_removed_while_the_first_ones_start(tmp_path: Path) -> None:
    platform, script = SlowToSpawn(), "import sys; sys.exit(3)"
    held = Supervisor(platform)
    specs = [spec("bad", script, tmp_path, max_restarts=1000), *(spec(name, PATIENT, tmp_path) for name in ("good", "gone"))]
    running = asyncio.create_task(held.run(specs))
    await asyncio.sleep(0)
    held.remove("gone")
    held.add(spec("added", PATIENT, tmp_path))
    platform.gate.set()
    await until(lambda: held.children["bad"][1] >= 2, 20.0)
    await until(lambda: (tmp_path / "notes").exists() and (tmp_path / "notes").read_text().count("begins") == 2, 20.0)
    assert sorted(held.children) == ["added", "bad", "good"]
    assert "gone" not in (tmp_path / "notes").read_text()
    assert held.children["added"][1] == 0
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_an_engine_that_left_is_missed_by_nobody_and_one_that_died_is(tmp_path: Path) -> None:
    view = View(run_dir=tmp_path)
    names = ("engine-0", "engine-1", "by-hand", "driver-0")
    for name in names:
        kind = "driver" if name == "driver-0" else "engine"
        view.vitals.heard(Heartbeat(actor=kind, actor_id=name, pid=1, at_ns=0, state="ready"))
    late_ns = int((LOST_S + 1) * 1e9)
    view.forget_left_engines(late_ns)
    assert {*view.vitals.latest} == {*names}, "without a supervisor nobody knows who should be there"
    write_membership(tmp_path, Membership(engines=["engine-1"], next_number=2))
    view.forget_left_engines(int(LOST_S * 1e9))
    assert {*view.vitals.latest} == {*names}
    view.forget_left_engines(late_ns)
    assert {*view.vitals.latest} == {"engine-1", "driver-0"}


def test_metrics_and_status_expect_the_engines_that_the_run_keeps_now(tmp_path: Path) -> None:
    view = View(run_dir=tmp_path)
    write_membership(tmp_path, Membership(engines=["engine-1", "engine-2"], next_number=3))
    for name, state in (("engine-1", "ready"), ("by-hand", "ready"), ("engine-0", "draining")):
        view.vitals.heard(Heartbeat(actor="engine", actor_id=name, pid=1, at_ns=0, state=state))
    up = {dict(value.labels)["id"]: value.value for value in measure(view, 0, actors_of(SETTINGS)) if value.name == "actor.up"}
    assert {name: up[name] for name in up if "engine" in name or name == "by-hand"} == {
        **{"engine-0": 1.0, "engine-1": 1.0, "by-hand": 1.0},
        "engine-2": 0.0,
    }
    states = _states(actors_now(SETTINGS, tmp_path), view)
    assert {name: state for name, (state, _) in states.items() if state != "silent"} == {"engine-1": "ready", "by-hand": "ready"}
    assert "engine-0" not in states and states["engine-2"] == ("silent", "")


def test_the_table_says_what_runs_and_what_waits_in_each_engine() -> None:
    vitals, version = Vitals(), Version(lineage=1, step=4)
    for second in (0, 2):
        gauges = {"n_running": 12.0, "n_pending": 4.0, "n_tokens": 1000.0 + 250 * second}
        beat = Heartbeat(actor="engine", actor_id="e", pid=7, at_ns=second * 10**9, state="ready", version=version, gauges=gauges)
        vitals.heard(beat)
    lines = [_line("e", vitals, is_kept=False), _line("engine-0", vitals, is_kept=True)]
    assert (lines[0].running, lines[0].pending, lines[0].tokens_per_s) == (8, 4, 250.0)
    told = [row.split() for row in _table(lines)]
    assert told[0][:6] == ["engine", "state", "version", "running", "pending", "tokens/s"]
    assert told[1] == ["e", "ready", "1.4", "8", "4", "250", "7", "nobody"]
    assert told[2] == ["engine-0", "silent", "-", "0", "0", "-", "-", "the", "run"]


def test_the_command_needs_a_live_run_and_says_so(tmp_path: Path) -> None:
    for arguments in ([], ["add", "2"], ["remove", "engine-0"]):
        result = CliRunner().invoke(command, [*arguments, "--runs", str(tmp_path)])
        assert isinstance(result.exception, InputError) and "no run is live" in str(result.exception)
    assert "at least one" in CliRunner().invoke(command, ["remove", "0", "--runs", str(tmp_path)]).output
