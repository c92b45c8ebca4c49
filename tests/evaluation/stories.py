"""Hand-written runs for the tests of report, screen and audit: facts with the sequences a broker would give them."""

from dataclasses import dataclass, field

import msgspec

from asearch.configuration.settings import RunSettings, Settings
from schemas.events import (
    EpisodeDead,
    EpisodeDropped,
    EpisodeGraded,
    EpisodeRequested,
    Event,
    GroupAdmitted,
    GroupVerdict,
    PolicyPublished,
    RunEnded,
    RunStarted,
    StepTrained,
    TrainerClaimed,
)
from schemas.records import Reward, Task, Version, WeightManifest

SECOND = 1_000_000_000
SETTINGS = Settings(run=RunSettings(steps=2, groups_per_step=2, group_size=2, eta=4, max_refills=1))


@dataclass
class Story:
    """A run as it is told: every fact goes to its stream, and to `told` in the order of telling."""

    run: str = "r"
    settings: Settings = SETTINGS
    plan: list[Event] = field(default_factory=list[Event])
    outcomes: list[Event] = field(default_factory=list[Event])
    policy: list[Event] = field(default_factory=list[Event])
    told: list[tuple[str, int, Event]] = field(default_factory=list[tuple[str, int, Event]])
    requests: dict[str, EpisodeRequested] = field(default_factory=dict[str, EpisodeRequested])
    clock_s: float = 1000.0

    @property
    def now_ns(self) -> int:
        """The story's clock."""
        return int(self.clock_s * SECOND)

    def tell(self, stream: str, event: Event) -> None:
        """Append a fact."""
        facts: list[Event] = getattr(self, stream)
        facts.append(event)
        self.told.append((stream, len(facts), event))

    def start(self) -> None:
        """The run begins and a trainer publishes the first version."""
        config = msgspec.json.encode(self.settings)
        started = RunStarted(id="run", run=self.run, recipe="toy", recipe_hash="h", seed=0, config=config)
        self.tell("plan", started)
        self.claim(1, 0)

    def claim(self, lineage: int, step: int) -> None:
        """A trainer takes the model over and publishes where it stands."""
        self.tell(
            "policy",
            TrainerClaimed(id=f"claim-{lineage}", model="policy", lineage=lineage, step=step, checkpoint=None, trainer="t"),
        )
        self.publish(lineage, step, None)

    def publish(self, lineage: int, step: int, parent: Version | None) -> None:
        """A version is published."""
        version = Version(lineage=lineage, step=step)
        manifest = WeightManifest(path="/nowhere", shards=[])
        self.tell(
            "policy",
            PolicyPublished(id=f"published-{version}", model="policy", version=version, parent=parent, manifest=manifest),
        )

    def admit(
        self,
        group: str,
        slot: int,
        *,
        members: int = 2,
        purpose: str = "train",
        label: str = "",
        refill: int = 0,
        refill_of: str | None = None,
        hops: int = 1,
        progress: int = 0,
    ) -> None:
        """A group and its episodes are asked for."""
        task = Task(id=f"task-{slot}", question="who?", meta={"hops": str(hops)})
        seeds = list(range(members))
        self.tell(
            "plan",
            GroupAdmitted(
                id=f"group-{group}",
                at_ns=self.now_ns,
                group=group,
                purpose=purpose,
                slot=slot,
                task=task,
                members=members,
                seeds=seeds,
                progress=progress,
                refill=refill,
                refill_of=refill_of,
                label=label,
            ),
        )
        for member in range(members):
            request = EpisodeRequested(
                id=f"request-{group}-{member}-0",
                at_ns=self.now_ns,
                episode=f"{group}-{member}",
                group=group,
                member=member,
                members=members,
                slot=slot,
                purpose=purpose,
                task=task,
                seed=member,
                progress=progress,
                recipe_hash="h",
                refill=refill,
                label=label,
            )
            self.requests[request.episode] = request
            self.tell("plan", request)

    def ask_again(self, episode: str) -> None:
        """The scheduler asks for an open episode a second time."""
        request = msgspec.structs.replace(self.requests[episode], attempt=1, id=f"request-{episode}-1")
        self.tell("plan", request)

    def grade(self, episode: str, reward: float, *, searches: int = 1, reads: int = 0, tokens: int = 10, step: int = 0) -> None:
        """An episode is graded; it is correct if its reward is 1."""
        self.tell(
            "outcomes",
            EpisodeGraded(
                **self._identity(episode),
                reward=Reward(value=reward),
                trajectory=None,
                status="answered",
                answer="x",
                n_turns=searches + reads + 1,
                n_tokens_generated=tokens,
                n_searches=searches,
                n_reads=reads,
                oldest=Version(lineage=1, step=step),
                correct=reward == 1.0,
            ),
        )

    def drop(self, episode: str, reason: str = "tool_outage") -> None:
        """An episode is dropped."""
        self.tell("outcomes", EpisodeDropped(**self._identity(episode), reason=reason))

    def die(self, episode: str, reason: str = "no_progress") -> None:
        """An episode dies."""
        self.tell("outcomes", EpisodeDead(**self._identity(episode), reason=reason))

    def train(
        self,
        step: int,
        verdicts: list[tuple[str, int, str | None]],
        *,
        lineage: int = 1,
        staleness: dict[int, int] | None = None,
        masked: int = 0,
        train_s: float = 1.0,
        idle_s: float = 0.0,
        rest_s: float = 0.0,
    ) -> None:
        """A step is trained and published; the clock moves by wait, update and rest."""
        self.clock_s += idle_s + train_s
        ages = staleness or {}
        self.tell(
            "policy",
            StepTrained(
                id=f"step-{lineage}-{step}",
                at_ns=self.now_ns,
                model="policy",
                lineage=lineage,
                step=step,
                verdicts=[GroupVerdict(group=group, episodes=n, reason=reason) for group, n, reason in verdicts],
                staleness=ages,
                n_tokens_trained=sum(ages.values()),
                n_tokens_masked_stale=masked,
                n_tokens_discarded=0,
                empty=all(reason for _, _, reason in verdicts),
                metrics={},
                elapsed_ns=int(train_s * SECOND),
                idle_ns=int(idle_s * SECOND),
            ),
        )
        self.publish(lineage, step + 1, Version(lineage=lineage, step=step))
        self.clock_s += rest_s

    def end(self, reason: str = "completed") -> None:
        """The run is over."""
        self.tell("plan", RunEnded(id="ended", run=self.run, reason=reason))

    def _identity(self, episode: str) -> dict[str, object]:
        request = self.requests[episode]
        return {
            "id": f"outcome-{episode}",
            "at_ns": self.now_ns,
            "episode": episode,
            "group": request.group,
            "member": request.member,
            "members": request.members,
            "slot": request.slot,
            "purpose": request.purpose,
            "task": request.task.id,
            "refill": request.refill,
            "label": request.label,
        }


def two_steps() -> Story:
    """Two evaluations of three questions around two steps: one group without signal and its refill, one drop, one death.

    Step 0 closes over `t-0-0` (kept), `t-1-0` (no signal) and its refill `t-1-1` (kept); step 1 over `t-2-0` (kept) and
    `t-3-0`, `t-3-1` (incomplete both). `t-4-0` is left half done and half dropped at the end of the run.
    """
    story = Story()
    story.start()
    for number, reward in enumerate((0.0, 1.0, 0.0)):
        story.admit(f"e-before-{number}", number, members=1, purpose="eval", label="before", hops=number + 1)
        story.grade(f"e-before-{number}-0", reward, tokens=7)
    for slot in range(4):
        story.admit(f"t-{slot}-0", slot)
    story.grade("t-0-0-0", 1.0, searches=2, reads=1)
    story.grade("t-0-0-1", 0.0)
    story.grade("t-1-0-0", 0.5, tokens=11)
    story.grade("t-1-0-1", 0.5, tokens=11)
    story.admit("t-1-1", 1, refill=1, refill_of="t-1-0")
    story.grade("t-1-1-0", 0.0)
    story.grade("t-1-1-1", 1.0, searches=3)
    story.train(
        0, [("t-0-0", 2, None), ("t-1-0", 2, "no_signal"), ("t-1-1", 2, None)], staleness={0: 40}, idle_s=50.0, rest_s=1.0
    )
    story.admit("t-4-0", 4, progress=1)
    story.ask_again("t-2-0-0")
    story.grade("t-2-0-0", 0.0)
    story.drop("t-3-0-0")
    story.grade("t-3-0-1", 1.0, tokens=13)
    story.admit("t-3-1", 3, refill=1, refill_of="t-3-0", progress=1)
    story.grade("t-2-0-1", 1.0)
    story.die("t-3-1-0")
    story.die("t-3-1-1")
    story.train(
        1,
        [("t-3-0", 1, "group_incomplete"), ("t-2-0", 2, None), ("t-3-1", 0, "group_incomplete")],
        staleness={0: 5, 1: 12},
        masked=3,
        idle_s=2.0,
    )
    for number, reward in enumerate((1.0, 1.0, 1.0)):
        story.admit(f"e-after-{number}", number, members=1, purpose="eval", label="after", hops=number + 1, progress=2)
        if number < 2:
            story.grade(f"e-after-{number}-0", reward, searches=number + 1, reads=1, tokens=9)
        else:
            story.drop(f"e-after-{number}-0", "engine_outage")
    story.grade("t-4-0-0", 1.0)
    story.drop("t-4-0-1", "run_ended")
    story.end()
    return story
