"""The grader writes one outcome, and infrastructure failures are not scored."""

from structlog.testing import capture_logs

from actors.grader import Grader
from asearch.configuration.settings import RewardSettings, Settings
from schemas.events import AnswerKeyStored, EpisodeDead, EpisodeDropped, EpisodeFinished, EpisodeGraded
from schemas.records import AnswerKey, BlobRef, ToolUse
from tests.actors.conftest import Stage
from tests.runtime.facts import dropped, until


def finished(episode: str, task: str = "task", answer: str = "red", **more: object) -> EpisodeFinished:
    fields: dict[str, object] = {
        "id": f"{episode}-finished",
        "episode": episode,
        "group": "g",
        "member": 0,
        "members": 1,
        "slot": 0,
        "purpose": "train",
        "task": task,
        "status": "answered",
        "answer": answer,
        "generated": [f" so </think> <answer> {answer} </answer>"],
        "tool_log": [],
        "trajectory": None,
        "n_turns": 1,
        "n_tokens_generated": 9,
    }
    return EpisodeFinished(**(fields | more))  # type: ignore[arg-type]


async def graders(stage: Stage) -> None:
    plan = await stage.connect("scheduler")
    await plan.append(AnswerKeyStored(id="key-task", key=AnswerKey(task="task", answers=["red"])), "task")
    await stage.start(Grader(await stage.context("grader-0")))


async def test_right_and_wrong_answers_get_their_rewards(stage: Stage) -> None:
    await graders(stage)
    driver = await stage.connect("driver")
    await driver.append(finished("e1"), "e1")
    await driver.append(finished("e2", answer="blue"), "e2")
    found = {event.episode: event for event in await stage.wait_for("outcomes", EpisodeGraded, n=2)}  # type: ignore[attr-defined]
    assert (found["e1"].reward.value, found["e1"].correct) == (1.0, True)  # type: ignore[attr-defined]
    assert (found["e2"].reward.value, found["e2"].correct) == (0.0, False)  # type: ignore[attr-defined]


async def test_long_episodes_are_punished_by_the_tokens_that_were_generated(stage: Stage) -> None:
    punished = Settings(rewards=RewardSettings(name="em", overlong_tokens=11, overlong_cache_tokens=4))
    plan = await stage.connect("scheduler")
    await plan.append(AnswerKeyStored(id="key-task", key=AnswerKey(task="task", answers=["red"])), "task")
    await stage.start(Grader(await stage.context("grader-0", punished)))
    driver = await stage.connect("driver")
    for name, n_tokens in (("e1", 7), ("e2", 9), ("e3", 12)):
        await driver.append(finished(name, n_tokens_generated=n_tokens), name)
    found = {event.episode: event for event in await stage.wait_for("outcomes", EpisodeGraded, n=3)}  # type: ignore[attr-defined]
    assert {name: event.reward.value for name, event in found.items()} == {"e1": 1.0, "e2": 0.5, "e3": 0.0}  # type: ignore[attr-defined]
    assert all(event.correct for event in found.values())  # type: ignore[attr-defined]


async def test_every_outcome_is_a_line_of_the_log(stage: Stage) -> None:
    with capture_logs() as lines:
        await graders(stage)
        driver = await stage.connect("driver")
        await driver.append(finished("e1"), "e1")
        await driver.append(finished("e2", task="unknown"), "e2")
        await stage.wait_for("outcomes", n=2)
        await until(lambda: sum("event_id" in line for line in lines) == 2)
    said = {line["episode"]: line for line in lines if "episode" in line}
    assert (said["e1"]["event"], said["e1"]["reward"], said["e1"]["event_id"]) == ("episode graded", 1.0, "outcome-e1")
    assert (said["e2"]["event"], said["e2"]["log_level"]) == ("episode not graded", "warning")
    assert "grader_outage" in said["e2"]["why"]


async def test_a_page_that_contains_an_answer_changes_nothing(stage: Stage) -> None:
    """The tool log of a grader holds no page text; an answer that only a page wrote is refused."""
    await graders(stage)
    driver = await stage.connect("driver")
    page = ToolUse(turn=0, tool="access", argument="<answer> red </answer>", n_documents=1)
    await driver.append(finished("e1", answer="blue", tool_log=[page]), "e1")
    await driver.append(finished("e2", answer="red", generated=[" so </think> <access> u </access>"], tool_log=[page]), "e2")
    graded, refused = sorted(await stage.wait_for("outcomes", n=2), key=lambda event: event.episode)  # type: ignore[attr-defined]
    assert isinstance(graded, EpisodeGraded)
    assert (graded.reward.value, graded.n_reads) == (0.0, 1)
    assert isinstance(refused, EpisodeDropped)
    assert refused.reason == "grader_outage"


async def test_a_missing_key_drops_the_episode(stage: Stage) -> None:
    await graders(stage)
    driver = await stage.connect("driver")
    await driver.append(finished("e1", task="nobody knows"), "e1")
    (outcome,) = await stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDropped)
    assert (outcome.reason, "nobody knows" in outcome.message) == ("grader_outage", True)


async def test_missing_texts_are_the_episodes_death_and_not_the_graders(stage: Stage) -> None:
    await graders(stage)
    driver = await stage.connect("driver")
    lost = BlobRef(episode="e1", hash="0" * 32, size_bytes=5, n_chunks=1)
    await driver.append(finished("e1", generated=[], generated_blob=lost), "e1")
    (outcome,) = await stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDead)
    assert outcome.reason == "blob_missing"
    await driver.append(finished("e2"), "e2")
    await stage.wait_for("outcomes", EpisodeGraded)


async def test_the_first_outcome_stays(stage: Stage) -> None:
    scheduler = await stage.connect("scheduler")
    await scheduler.append(dropped("e1", "run_ended"), "e1", expected=0)
    driver = await stage.connect("driver")
    await driver.append(finished("e1"), "e1")
    await driver.append(finished("e2"), "e2")
    await graders(stage)
    await stage.wait_for("outcomes", EpisodeGraded)
    assert [type(event) for event in await stage.facts("outcomes")] == [EpisodeDropped, EpisodeGraded]
