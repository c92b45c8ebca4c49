"""Small episodes written by hand: a line a turn, told as the facts that a driver would have recorded."""

from collections.abc import Sequence

from asearch.agents.packed import pack_ids, pack_logprobs
from asearch.traces.record import EpisodeRecord, record_of
from schemas import events
from schemas.records import Column, Document, Reward, Task, ToolResult, Version, VersionRun

Page = tuple[str, str]
"""URL and text."""


def turn(text: str, *pages: Page, error: str | None = None) -> tuple[str, tuple[Page, ...], str | None]:
    """A generation and, where it has an action, what the tool returned."""
    return text, pages, error


def told(
    *turns: tuple[str, tuple[Page, ...], str | None],
    answer: str | None = None,
    status: str = "answered",
    episode: str = "t-0-0-0",
    purpose: str = "train",
    label: str = "",
    progress: int = 0,
    outcome: str = "graded",
) -> EpisodeRecord:
    """The record of an episode. A turn's action is what stands in its last `<search>` or `<access>`."""
    request = events.EpisodeRequested(
        id=f"request-{episode}", at_ns=1, episode=episode, group="t-0-0", member=0, members=2, slot=0, purpose=purpose,
        label=label, task=Task(id="task", question="Who?", meta={"hops": "2"}), seed=7, progress=progress, recipe_hash="h",
    )  # fmt: skip
    facts: list[events.Event] = [
        events.EpisodeTaken(id="taken", at_ns=2, episode=episode, driver="driver-0", attempt=0, request=request)
    ]
    for number, (text, pages, error) in enumerate(turns):
        facts += _turn(episode, number, text, pages, error)
    identity = {"episode": episode, "group": "t-0-0", "member": 0, "members": 2, "slot": 0, "purpose": purpose, "label": label}
    generated = [text for text, _, _ in turns]
    facts.append(
        events.EpisodeFinished(
            **identity, id="finished", at_ns=50, task="task", status=status, answer=answer, generated=generated, tool_log=[],
            trajectory=None, n_turns=len(turns), n_tokens_generated=3 * len(turns),
        )
    )  # fmt: skip
    return record_of(episode, facts, list(range(1, len(facts) + 1)), _outcome(identity, outcome, answer, status, len(turns)))


def _outcome(identity: dict[str, object], outcome: str, answer: str | None, status: str, n_turns: int) -> events.AnyOutcome:
    shared = {**identity, "id": "outcome", "at_ns": 60, "task": "task"}
    if outcome == "dropped":
        return events.EpisodeDropped(**shared, reason="tool_outage", message="no answer from it")  # type: ignore[arg-type]
    if outcome == "dead":
        return events.EpisodeDead(**shared, reason="no_progress")  # type: ignore[arg-type]
    return events.EpisodeGraded(
        **shared, reward=Reward(value=1.0), trajectory=None, status=status, answer=answer, n_turns=n_turns,  # type: ignore[arg-type]
        n_tokens_generated=3 * n_turns, n_searches=0, n_reads=0, correct=True, elapsed_ns=5_000_000_000,
    )  # fmt: skip


def _turn(episode: str, number: int, text: str, pages: Sequence[Page], error: str | None) -> list[events.Event]:
    ids = [number, number + 1, number + 2]
    facts: list[events.Event] = [
        events.TokensGenerated(
            id=f"tokens-{number}", at_ns=10 + number, episode=episode, request=f"{episode}:g{number}", turn=number, offset=0,
            columns={
                "ids": Column(dtype="u4", shape=(3,), data=pack_ids(ids)),
                "logprobs": Column(dtype="f4", shape=(3,), data=pack_logprobs([-1.0] * 3)),
            },
            versions=[VersionRun(version=Version(lineage=1, step=number), start=0, end=3)], finish="stop", engine="engine-0",
            elapsed_ns=2_000_000_000,
        )
    ]  # fmt: skip
    for tool in ("search", "access"):
        if f"</{tool}>" not in text:
            continue
        argument = text.rpartition(f"</{tool}>")[0].rpartition(f"<{tool}>")[2].strip()
        call = f"{episode}:t{number}"
        facts.append(
            events.ToolRequested(
                id=f"tool-{number}", at_ns=20 + number, episode=episode, call=call, turn=number, tool=tool, argument=argument,
                task="task", member=0, reply_to="nobody",
            )
        )  # fmt: skip
        documents = [Document(url=url, text=page) for url, page in pages]
        result = ToolResult(documents=documents, error=error, elapsed_ns=500_000_000)
        facts.append(
            events.ToolReturned(id=f"back-{number}", at_ns=30 + number, episode=episode, call=call, turn=number, result=result)
        )
    return facts
