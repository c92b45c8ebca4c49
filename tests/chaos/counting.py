"""What the faults cost, counted from what the run recorded.

A *turn* here is one generation. It is done when its last tokens are recorded. It is *regenerated* once for every time that it was
asked for again:

- `TokensGenerated.n_asked` says how often the driver that recorded it had asked for it: n_asked - 1 repeats, counted for each
  driver's life that recorded tokens of it;
- a driver that takes an episode over in the middle of a generation asks again for what its predecessor had asked for. The
  predecessor may have died before it asked, or may have had most of the tokens recorded: it counts as one repeat all the same.

That is what TRACE can know. The engines count the requests that reached them, which includes asks of drivers whose facts were
refused; a killed engine loses what it counted in its last second. The larger of the two counts is what is reported.

*Tokens* are regenerated where a server has sampled them and no fact holds them. Servers count what they sample in files that
outlive them, so that this is exact, but for what was under way when the run ended, which counts as regenerated too.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from schemas.events import Event, StepTrained, TrainerClaimed


@dataclass
class Turns:
    """Sums over episodes."""

    done: int = 0
    tokens: int = 0
    """Tokens of the facts that count."""
    asked_again: int = 0
    resumed_midway: int = 0
    """Episodes with facts of their own that another driver's life went on with."""
    episodes: Counter[str] = field(default_factory=Counter[str])
    """Lines of the archive by episode."""
    without_end: list[str] = field(default_factory=list[str])
    """Graded episodes whose `EpisodeFinished` is not among their facts."""


class _Line(msgspec.Struct):
    episode: str
    outcome: dict[str, Any]
    facts: list[dict[str, Any]]


def read_archive(path: Path) -> Turns:
    """Fold the archive of a run."""
    turns = Turns()
    decoder = msgspec.json.Decoder(_Line)
    with path.open("rb") as lines:
        for text in lines:
            line = decoder.decode(text)
            turns.episodes[line.episode] += 1
            standing = list(fenced(line.facts))
            count_episode(standing, turns)
            graded = line.outcome["type"] == "episode_graded"
            if graded and not any(fact["type"] == "episode_finished" for fact in standing):
                turns.without_end.append(line.episode)
    return turns


def fenced(facts: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The facts that count: those of an attempt that an earlier take has replaced are ignored, as every fold ignores them."""
    attempt = -1
    for fact in facts:
        if fact["type"] == "episode_taken":
            attempt = fact["attempt"]
        elif fact.get("attempt", -1) not in (-1, attempt):
            continue
        yield fact


def count_episode(facts: list[dict[str, Any]], turns: Turns) -> None:
    """Add one episode."""
    asks: Counter[tuple[int, str]] = Counter()
    """How often a driver's life asked for a generation."""
    life = 0
    own: list[dict[str, Any]] = []
    midway = False
    for index, fact in enumerate(facts):
        if fact["type"] == "episode_taken":
            life += 1
            if life > 1 and _waits_for_tokens(own, facts[index + 1 :]):
                turns.asked_again += 1
            continue
        midway = midway or (life > 1 and _has_earlier(own, life))
        own.append({**fact, "life": life})
        if fact["type"] == "tokens_generated":
            key = (life, fact["request"])
            asks[key] = max(asks[key], fact.get("n_asked", 1))
            turns.done += fact.get("finish") is not None
            turns.tokens += sum(run["end"] - run["start"] for run in fact.get("versions", ()))
    turns.asked_again += sum(n - 1 for n in asks.values())
    turns.resumed_midway += midway


def _has_earlier(own: list[dict[str, Any]], life: int) -> bool:
    return any(fact["life"] < life for fact in own)


def _waits_for_tokens(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    """Whether a generation was due when an episode was taken over: the next fact says so, or the last one where none follows."""
    following = next((fact for fact in after if fact["type"] != "episode_taken"), None)
    if following is not None:
        return following["type"] == "tokens_generated"
    return (
        not before
        or before[-1]["type"] == "tool_returned"
        or (before[-1]["type"] == "tokens_generated" and before[-1].get("finish") is None)
    )


def idle_s(policy: Iterable[Event]) -> list[float]:
    """Seconds from the end of each trained step to the beginning of the next one, whoever died in between."""
    steps = [event for event in policy if isinstance(event, StepTrained)]
    ends = [(step.at_ns - step.elapsed_ns, step.at_ns) for step in steps]
    return [max(0.0, (begin - end) / 1e9) for (_, end), (begin, _) in pairwise(ends)]


def steps_repeated(policy: Iterable[Event]) -> int:
    """Trained steps that a later claim made void: they were trained again."""
    standing: set[int] = set()
    n_void = 0
    for event in policy:
        if isinstance(event, TrainerClaimed):
            void = {step for step in standing if step >= event.step}
            n_void += len(void)
            standing -= void
        elif isinstance(event, StepTrained):
            standing.add(event.step)
    return n_void
