"""What a run's recorded facts say of its training phase: its wall clock, and the bound that it is held against.

Sources: GroupAdmitted and StepTrained (`at_ns`, `elapsed_ns`), and of every episode its archived TRACE: `EpisodeFinished`
(`elapsed_ns`, how long the driver held it) and each `ToolRequested`, from whose (task, member, turn) the injected latency is
computed again. All clocks are of one machine.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import msgspec

from asearch.configuration.settings import Settings
from asearch.errors import AsearchError
from asearch.tools.latency import latency_s
from schemas.events import EpisodeFinished, Event, GroupAdmitted, StepTrained, ToolRequested


@dataclass(frozen=True)
class Episode:
    """One training episode. `held_s`: from the driver's taking it to its end; `injected_s`: the latencies of its tool calls."""

    group: str
    held_s: float
    injected_s: float
    n_calls: int
    n_tokens: int


@dataclass(frozen=True)
class Step:
    """One policy step: the episodes that it closed over, discarded ones included, and its update in seconds."""

    episodes: tuple[Episode, ...]
    trained_s: float
    empty: bool


@dataclass(frozen=True)
class Measured:
    """The training phase of one run."""

    settings: Settings
    wall_s: float
    """From the first admission of a training group to the last StepTrained."""
    steps: tuple[Step, ...]
    max_staleness: int

    @property
    def episodes(self) -> list[Episode]:
        """All of them."""
        return [episode for step in self.steps for episode in step.episodes]

    @property
    def training_s(self) -> float:
        """Σ over steps of the update in the rank process."""
        return sum(step.trained_s for step in self.steps)

    @property
    def sync_bound_s(self) -> float:
        """Σ over steps of (the longest episode of the step + the update): nothing that waits for its step can be faster."""
        return sum(max(episode.held_s for episode in step.episodes) + step.trained_s for step in self.steps)

    @property
    def injected_bound_s(self) -> float:
        """The same with the injected latencies alone in the place of the episode: as if tokens and messages cost nothing."""
        return sum(max(episode.injected_s for episode in step.episodes) + step.trained_s for step in self.steps)

    @property
    def generation_bound_s(self) -> float:
        """Episode seconds over the episodes that may be open at once, and no less than the longest episode.

        Admission lets at most (eta + 1) * groups_per_step groups be open: those of the steps that are not closed yet.
        """
        run = self.settings.run
        places = (run.eta + 1) * run.groups_per_step * run.group_size
        held = [episode.held_s for episode in self.episodes]
        return max(sum(held) / places, max(held))

    @property
    def async_bound_s(self) -> float:
        """The larger of generation and training: what a run could not beat where neither ever waited for the other."""
        return max(self.generation_bound_s, self.training_s)

    def to_json(self, bound_s: float) -> dict[str, object]:
        """One arm as the benchmark prints it; times are in seconds."""
        episodes = self.episodes
        return {
            "eta": self.settings.run.eta,
            "wall_s": round(self.wall_s, 2),
            "steps": len(self.steps),
            "empty_steps": sum(step.empty for step in self.steps),
            "bound_s": round(bound_s, 2),
            "efficiency": round(bound_s / self.wall_s, 3),
            "injected_bound_s": round(self.injected_bound_s, 2) if self.settings.run.eta == 0 else None,
            "trainer_s": round(self.training_s, 2),
            "generation_bound_s": round(self.generation_bound_s, 2),
            "max_staleness": self.max_staleness,
            "episodes": len(episodes),
            "episode_s": {
                "mean": round(fmean(episode.held_s for episode in episodes), 2),
                "max": round(max(episode.held_s for episode in episodes), 2),
                "injected_mean": round(fmean(episode.injected_s for episode in episodes), 2),
            },
            "tool_calls": sum(episode.n_calls for episode in episodes),
            "tokens_generated": sum(episode.n_tokens for episode in episodes),
        }


def measure(settings: Settings, admitted: Iterable[GroupAdmitted], trained: Iterable[StepTrained], archive: Path) -> Measured:
    """Fold the facts. Raises AsearchError where the archive lacks an episode that a step closed over."""
    steps = sorted(trained, key=lambda step: step.step)
    first_ns = min((group.at_ns for group in admitted if group.purpose == "train"), default=0)
    if not steps or not first_ns:
        raise AsearchError("the run has trained no step: nothing to measure; see the logs in its folder")
    episodes = _episodes(archive, settings)
    return Measured(
        settings=settings,
        wall_s=(steps[-1].at_ns - first_ns) / 1e9,
        steps=tuple(_step(step, episodes, settings.run.group_size, archive) for step in steps),
        max_staleness=max((age for step in steps for age, n in step.staleness.items() if n), default=0),
    )


def _step(trained: StepTrained, episodes: dict[str, list[Episode]], group_size: int, archive: Path) -> Step:
    found = [episode for verdict in trained.verdicts for episode in episodes.get(verdict.group, ())]
    if len(found) != group_size * len(trained.verdicts):
        raise AsearchError(
            f"{archive} holds {len(found)} ended episodes of step {trained.step}: some were dropped or are missing"
        )
    return Step(tuple(found), trained.elapsed_ns / 1e9, trained.empty)


class _Line(msgspec.Struct):
    outcome: msgspec.Raw
    facts: list[msgspec.Raw]


class _Tag(msgspec.Struct):
    type: str


def _episodes(archive: Path, settings: Settings) -> dict[str, list[Episode]]:
    """Finished training episodes by group."""
    found: dict[str, list[Episode]] = {}
    for line in archive.read_bytes().splitlines():
        facts = [fact for raw in msgspec.json.decode(line, type=_Line).facts if (fact := _fact(raw)) is not None]
        finished = next((fact for fact in facts if isinstance(fact, EpisodeFinished)), None)
        if finished is not None and finished.purpose == "train":
            calls = {fact.call: fact for fact in facts if isinstance(fact, ToolRequested)}
            found.setdefault(finished.group, []).append(_episode(finished, list(calls.values()), settings))
    return found


def _fact(raw: msgspec.Raw) -> Event | None:
    kinds: dict[str, type[EpisodeFinished] | type[ToolRequested]] = {
        "episode_finished": EpisodeFinished,
        "tool_requested": ToolRequested,
    }
    kind = kinds.get(msgspec.json.decode(raw, type=_Tag).type)
    return None if kind is None else msgspec.json.decode(raw, type=kind)


def _episode(finished: EpisodeFinished, calls: list[ToolRequested], settings: Settings) -> Episode:
    latency = settings.tools.latency
    return Episode(
        group=finished.group,
        held_s=finished.elapsed_ns / 1e9,
        injected_s=sum(latency_s(latency, call.task, call.member, call.turn) for call in calls),
        n_calls=len(calls),
        n_tokens=finished.n_tokens_generated,
    )
