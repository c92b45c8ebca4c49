"""The audit agrees with a sound run and names every planted error."""

import ast
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.cli.audit import audit as audit_command
from actors.cli.auditing.evidence import gather
from actors.cli.auditing.findings import audit
from actors.cli.auditing.problems import Problems
from actors.runtime.following import follow
from actors.runtime.jetstream import connect
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from actors.runtime.workspace import Workspace
from asearch.configuration.settings import RunSettings, Settings
from asearch.evaluation.report import RunReport
from asearch.learning.ledger import Ledger, LedgerSnapshot, Refill, StepClosed
from asearch.learning.rules import ledger_rules
from schemas.archive import ArchivedOutcome, archived_outcome
from schemas.events import EpisodeGraded, Outcome, StepTrained
from schemas.records import Version
from tests.cli.audited import audited, commit, put, without_last
from tests.cli.frames import folded
from tests.evaluation.stories import Story, two_steps

CLI = Path(__file__).parents[2] / "actors" / "cli"


def replaced(story: Story, id: str, **fields: object) -> None:
    """Change a fact of a story."""
    for facts in (story.plan, story.outcomes, story.policy):
        facts[:] = [msgspec.structs.replace(event, **fields) if event.id == id else event for event in facts]
    story.told[:] = [
        (stream, n, msgspec.structs.replace(event, **fields) if event.id == id else event) for stream, n, event in story.told
    ]


def removed(story: Story, id: str) -> None:
    """Take a fact out of a story."""
    story.told[:] = [each for each in story.told if each[2].id != id]


async def test_a_sound_run_has_no_problem(tmp_path: Path) -> None:
    story = two_steps()
    commit(story, tmp_path)
    said = folded(story).to_json()
    (tmp_path / "result.json").write_bytes(msgspec.json.encode(said))
    result, problems = await audited(story, tmp_path)
    assert problems.lines() == []
    assert {name: result[name] for name in ("accounting", "accounting_by_purpose", "reasons", "staleness")} == {
        name: said[name] for name in ("accounting", "accounting_by_purpose", "reasons", "staleness")
    }
    assert result["checkpoint"] == {
        "name": "l000001-s000000002",
        "lineage": 1,
        "step": 2,
        "watermark": 15,
        "counted": 6,
        "discarded": 3,
        "ungraded": 3,
    }


async def test_a_live_run_may_have_episodes_in_flight(tmp_path: Path) -> None:
    story = Story()
    story.start()
    story.admit("t-0-0", 0)
    story.grade("t-0-0-1", 1.0)
    result, problems = await audited(story, tmp_path)
    assert problems.lines() == []
    assert (result["accounting"]["in_flight"], result["accounting"]["queued"]) == (1, 1)


async def test_steps_that_a_restart_made_void_are_not_counted(tmp_path: Path) -> None:
    story = Story()
    story.start()
    for slot in range(2):
        story.admit(f"t-{slot}-0", slot)
        story.grade(f"t-{slot}-0-0", 1.0)
        story.grade(f"t-{slot}-0-1", 0.0)
    verdicts: list[tuple[str, int, str | None]] = [("t-0-0", 2, None), ("t-1-0", 2, None)]
    story.train(0, verdicts, staleness={0: 40})
    story.claim(2, 0)
    result, problems = await audited(story, tmp_path)
    assert (problems.lines(), result["steps"], result["accounting"]["queued"]) == ([], 0, 4)
    story.train(0, verdicts, staleness={0: 40}, lineage=2)
    result, problems = await audited(story, tmp_path)
    assert (problems.lines(), result["steps"], result["accounting"]["counted"]) == ([], 1, 4)


def counted_less(ledger: LedgerSnapshot) -> LedgerSnapshot:
    return msgspec.structs.replace(ledger, counted=without_last(ledger.counted))


def other_reason(ledger: LedgerSnapshot) -> LedgerSnapshot:
    return msgspec.structs.replace(ledger, discarded={"stale": ledger.discarded["no_signal"]})


def ungraded_less(ledger: LedgerSnapshot) -> LedgerSnapshot:
    return msgspec.structs.replace(ledger, ungraded=without_last(ledger.ungraded))


@pytest.mark.parametrize("change", [counted_less, other_reason, ungraded_less])
async def test_a_ledger_that_differs_is_named(change: Callable[[LedgerSnapshot], LedgerSnapshot], tmp_path: Path) -> None:
    story = two_steps()
    commit(story, tmp_path, change=change)
    _, problems = await audited(story, tmp_path)
    assert "ledger" in problems.counts and set(problems.counts) <= {"ledger", "watermark"}


async def test_files_of_a_checkpoint_are_verified(tmp_path: Path) -> None:
    story = two_steps()
    path = commit(story, tmp_path)
    (path / "weights.bin").write_bytes(b"weighty")
    _, problems = await audited(story, tmp_path)
    assert set(problems.counts) == {"checkpoint_corrupt"}


async def test_an_old_checkpoint_at_the_end_is_named(tmp_path: Path) -> None:
    story = two_steps()
    _, problems = await audited(story, tmp_path)
    assert set(problems.counts) == {"no_checkpoint"}


def claimed_twice(story: Story) -> None:
    story.claim(2, 2)
    replaced(story, "claim-2", lineage=1)


PLANTED: dict[str, Callable[[Story], None]] = {
    "missing_outcome": lambda story: removed(story, "outcome-e-after-2-0"),
    "unrequested": lambda story: removed(story, "request-e-after-2-0-0"),
    "group_not_whole": lambda story: removed(story, "request-e-after-2-0-0"),
    "group_unknown": lambda story: removed(story, "group-e-after-2"),
    "attempts": lambda story: removed(story, "request-t-2-0-0-0"),
    "no_reason": lambda story: replaced(story, "outcome-t-4-0-1", reason=""),
    "outcome_differs": lambda story: replaced(story, "outcome-e-after-0-0", slot=7),
    "verdicts": lambda story: story.train(2, [("t-4-0", 1, None)], staleness={0: 10}),
    "refill_without_cause": lambda story: replaced(story, "group-t-1-1", refill_of="t-0-0"),
    "too_many_refills": lambda story: replaced(story, "group-t-1-1", refill=2),
    "slots": lambda story: replaced(story, "group-t-4-0", slot=9),
    "admission": lambda story: replaced(story, "group-t-4-0", progress=-3),
    "lineage": claimed_twice,
    "version_order": lambda story: replaced(story, "published-1.2", version=Version(lineage=1, step=1)),
    "parent": lambda story: replaced(story, "published-1.2", parent=None),
    "run_started": lambda story: removed(story, "run"),
}


@pytest.mark.parametrize("name", PLANTED)
async def test_a_planted_error_is_named(name: str, tmp_path: Path) -> None:
    story = two_steps()
    commit(story, tmp_path)
    PLANTED[name](story)
    _, problems = await audited(story, tmp_path)
    assert name in problems.counts, problems.lines()


STEP: dict[str, tuple[str, dict[str, object]]] = {
    "stale tokens": ("stale_tokens", {"staleness": {0: 5, 5: 12}}),
    "tokens from the future": ("newer_than_step", {"staleness": {-1: 5, 1: 12}}),
    "ages do not add up": ("token_sums", {"staleness": {0: 5, 1: 11}}),
    "a token was lost": ("token_sums", {"n_tokens_masked_stale": 2}),
    "a verdict is missing": ("verdicts", {"verdicts": []}),
    "empty though it trained": ("empty_step", {"empty": True}),
    "a step was left out": ("step_order", {"step": 2}),
}


@pytest.mark.parametrize("what", STEP)
async def test_a_planted_error_in_a_step_is_named(what: str, tmp_path: Path) -> None:
    name, fields = STEP[what]
    story = two_steps()
    commit(story, tmp_path)
    replaced(story, "step-1-1", **fields)
    _, problems = await audited(story, tmp_path)
    assert name in problems.counts, problems.lines()


def lines_of(story: Story) -> list[ArchivedOutcome]:
    """What the recorder archives of a story."""
    return [archived_outcome(n, event, b"") for n, event in enumerate(story.outcomes, 1)]


def write_archive(run_dir: Path, lines: list[ArchivedOutcome], end: bytes = b"") -> None:
    """Put `outcomes.jsonl` in place."""
    (run_dir / "archive").mkdir(exist_ok=True)
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    (run_dir / "archive" / "outcomes.jsonl").write_bytes(data + end)


async def purged_audit(
    story: Story, run_dir: Path, up_to: int, more: Callable[[MemoryBus], Awaitable[None]] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The audit of a story whose outcomes are purged up to a sequence."""
    platform = SystemPlatform(0)
    bus = MemoryBus(MemoryBroker(platform), story.run, "audit", platform)
    await put(bus, story)
    await bus.purge("outcomes", up_to_sequence=up_to)
    if more is not None:
        await more(bus)
    problems = Problems()
    result = audit(await gather(bus, run_dir, problems), problems)
    return result, problems.lines()


async def test_purged_outcomes_come_from_the_archive(tmp_path: Path) -> None:
    story = two_steps()
    commit(story, tmp_path)
    n = len(story.outcomes)
    write_archive(tmp_path, lines_of(story), b'{"sequence": 99, "out')
    whole, problems = await purged_audit(story, tmp_path, 0)
    assert problems == []
    assert whole["outcomes_from"] == {"n_stream": n, "n_archive": 0, "n_both": n, "n_late": 0}
    for up_to in (7, n):
        result, problems = await purged_audit(story, tmp_path, up_to)
        assert problems == []
        assert result["outcomes_from"] == {"n_stream": n - up_to, "n_archive": up_to, "n_both": n - up_to, "n_late": 0}
        assert {**result, "outcomes_from": None} == {**whole, "outcomes_from": None}


async def test_an_archive_that_is_not_what_was_purged_is_named(tmp_path: Path) -> None:
    story = two_steps()
    commit(story, tmp_path)
    good = lines_of(story)
    other = archived_outcome(9, story.outcomes[2], b"")
    for name, lines, end in (
        ("outcomes_missing", good[:2] + good[3:], b""),
        ("archive_differs", [*good[:8], other, *good[9:]], b""),
        ("archive_twice", [*good, good[0]], b""),
        ("archive_unreadable", good, b"noise\n"),
        ("archive_ahead", [*good, archived_outcome(len(good) + 1, story.outcomes[0], b"")], b""),
    ):
        write_archive(tmp_path, lines, end)
        _, problems = await purged_audit(story, tmp_path, 7)
        assert [line.partition(":")[0] for line in problems if line.startswith(("archive", "outcomes"))] == [name]


async def test_a_second_outcome_is_void_only_where_the_first_was_purged(tmp_path: Path) -> None:
    story = two_steps()
    commit(story, tmp_path)
    write_archive(tmp_path, lines_of(story))
    again = story.outcomes[0]
    assert isinstance(again, Outcome)

    async def second(bus: MemoryBus) -> None:
        await bus.append(msgspec.structs.replace(again, id="late"), again.episode)

    result, problems = await purged_audit(story, tmp_path, 7, second)
    assert problems == []
    assert result["outcomes_from"]["n_late"] == 1
    _, problems = await purged_audit(story, tmp_path, 0, second)
    assert any(line.startswith("double_outcome") for line in problems)


async def test_a_view_attached_late_reads_the_archive(tmp_path: Path) -> None:
    story = two_steps()
    write_archive(tmp_path, lines_of(story))
    platform = SystemPlatform(0)
    bus = MemoryBus(MemoryBroker(platform), story.run, "viewer", platform)
    await put(bus, story)
    for up_to in (7, len(story.outcomes)):
        await bus.purge("outcomes", up_to_sequence=up_to)
        async with follow(bus, tmp_path) as view:
            assert view.report.to_json() == folded(story).to_json()


async def test_a_result_that_differs_is_named(tmp_path: Path) -> None:
    story = two_steps()
    commit(story, tmp_path)
    said = folded(story).to_json()
    said["accounting"] = {**said["accounting"], "counted": 12}  # type: ignore[dict-item]
    (tmp_path / "result.json").write_bytes(msgspec.json.encode(said))
    _, problems = await audited(story, tmp_path)
    assert problems.lines() == ["result: the run's result says accounting.counted = 12, the audit counts 11"]


# --- any run that follows the rules ---


class _Trainer:
    """Trains the steps that the ledger closes, as the actor does."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.ledger = Ledger(ledger_rules(story.settings.run))
        self.n_seen = 0
        self.last: StepClosed | None = None

    def catch_up(self) -> list[Refill]:
        refills: list[Refill] = []
        while self.n_seen < len(self.story.outcomes):
            self.n_seen += 1
            outcome = self.story.outcomes[self.n_seen - 1]
            assert isinstance(outcome, Outcome)
            if outcome.purpose != "train":
                continue
            for effect in self.ledger.fold(self.n_seen, outcome):
                if isinstance(effect, Refill):
                    refills.append(effect)
                else:
                    self._train(effect)
        return refills

    def _train(self, closed: StepClosed) -> None:
        self.last = closed
        tokens = sum(outcome.n_tokens_generated for group in closed.groups for outcome in group)
        verdicts = [(verdict.group, len(verdict.sequences), verdict.reason) for verdict in closed.verdicts]
        self.story.train(closed.step, verdicts, staleness={0: tokens} if tokens else {})


def _tell(draw: st.DrawFn) -> tuple[Story, _Trainer]:
    table = RunSettings(
        steps=20,
        groups_per_step=draw(st.integers(1, 3)),
        group_size=draw(st.integers(1, 3)),
        max_refills=draw(st.integers(0, 2)),
        min_graded=draw(st.sampled_from([None, 1, 2])),
        equal_rewards=draw(st.sampled_from([None, "discard", "keep"])),
        eta=20,
    )
    story = Story(settings=Settings(run=table))
    story.start()
    trainer = _Trainer(story)
    waiting: list[str] = []
    slot, ended = 0, draw(st.booleans())
    for _ in range(draw(st.integers(0, 40))):
        if not waiting or draw(st.integers(0, 3)) == 0:
            purpose = draw(st.sampled_from(["train", "train", "eval"]))
            name, members = (f"t-{slot}-0", table.group_size) if purpose == "train" else (f"e-x-{len(story.plan)}", 1)
            story.admit(name, slot, members=members, purpose=purpose, label="" if purpose == "train" else "x")
            slot += purpose == "train"
            waiting += [f"{name}-{member}" for member in range(members)]
            continue
        episode = waiting.pop(draw(st.integers(0, len(waiting) - 1)))
        _end(draw, story, episode)
        for refill in trainer.catch_up():
            name = f"t-{refill.slot}-{refill.refill}"
            story.admit(name, refill.slot, members=table.group_size, refill=refill.refill, refill_of=refill.refill_of)
            waiting += [f"{name}-{member}" for member in range(table.group_size)]
    if ended:
        for episode in waiting:
            story.drop(episode, "run_ended")
        trainer.catch_up()
        story.end()
    return story, trainer


def _end(draw: st.DrawFn, story: Story, episode: str) -> None:
    fate = draw(st.sampled_from(["graded", "graded", "graded", "dropped", "dead"]))
    if fate == "graded":
        story.grade(episode, draw(st.sampled_from([0.0, 0.5, 1.0])), tokens=draw(st.integers(1, 50)))
    elif fate == "dropped":
        story.drop(episode)
    else:
        story.die(episode)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_report_and_audit_agree_on_any_run(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    story, trainer = data.draw(st.composite(_tell)())
    run_dir = tmp_path_factory.mktemp("run")
    if trainer.last is not None:
        commit(story, run_dir, step=trainer.last.step)
    report: RunReport = folded(story)
    result, problems = await audited(story, run_dir)
    assert problems.lines() == []
    assert report.accounts.broken() == []
    said = report.to_json()
    for name in ("accounting", "accounting_by_purpose", "reasons", "steps", "empty_steps", "staleness", "policy_version"):
        assert said[name] == result[name], name
    graded = sum(isinstance(event, EpisodeGraded) for event in story.outcomes)
    assert result["accounting"]["graded"] == graded
    assert result["steps"] == sum(isinstance(event, StepTrained) for event in story.policy)


# --- the command ---


async def prepared(root: Path, story: Story) -> None:
    """A run on the disk of a broker that does not run any more."""
    workspace, platform = Workspace(root), SystemPlatform()
    url, started = await workspace.broker(platform)
    assert started is not None
    bus = await connect(url, story.run, "scheduler", platform)
    await put(bus, story)
    await bus.close()
    await workspace.release(started, story.run)
    (root / story.run / "run.json").write_bytes(b'{"run":"r","broker_url":"nats://127.0.0.1:1"}')


async def test_the_command_on_a_run_that_is_over(tmp_path: Path) -> None:
    story = two_steps()
    commit(story, tmp_path / "r")
    await prepared(tmp_path, story)
    runner = CliRunner()
    done = await asyncio.to_thread(runner.invoke, audit_command, ["r", "--runs", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    result = msgspec.json.decode(done.stdout.splitlines()[-1])
    assert result["ok"] is True and result["problems"] == [] and result["accounting"]["counted"] == 11
    assert "requested 20 = graded 15 + dropped 3 + dead 2 + in flight 0" in done.stderr
    assert not (tmp_path / ".broker" / "broker.json").exists(), "the broker was started for the audit alone"
    (tmp_path / "r" / "checkpoints" / "l000001-s000000002" / "weights.bin").write_bytes(b"")
    done = await asyncio.to_thread(runner.invoke, audit_command, ["r", "--runs", str(tmp_path)])
    assert done.exit_code == 1 and "checkpoint_corrupt" in done.stdout


def test_the_command_without_a_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(audit_command, ["nowhere", "--runs", str(tmp_path)])
    assert done.exit_code == 2 and "there is no run 'nowhere'" in done.output
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_bytes(b"{")
    done = CliRunner().invoke(audit_command, ["torn", "--runs", str(tmp_path)])
    assert done.exit_code == 2 and "cannot be read" in done.output


def test_the_audit_has_code_of_its_own() -> None:
    allowed = ("actors.runtime", "actors.cli.auditing", "schemas")
    ours = ("actors", "asearch", "schemas", "infra")
    for path in [CLI / "audit.py", *(CLI / "auditing").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ours or name.startswith(allowed), f"{path.name} imports {name}"
