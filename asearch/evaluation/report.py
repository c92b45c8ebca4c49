"""`RunReport`: everything that the live screen and the final JSON say of a run, as a pure fold of PLAN, OUTCOMES and POLICY."""

from collections import Counter
from pathlib import Path

import msgspec

from asearch.evaluation.accounting import TRAIN, Accounts, Ends
from asearch.evaluation.sums import EpisodeSums, rounded, total
from asearch.evaluation.training import Journal
from schemas.events import (
    CheckpointCommitted,
    EpisodeRequested,
    Event,
    GroupAdmitted,
    Outcome,
    PolicyPublished,
    RunEnded,
    RunStarted,
    StepTrained,
    TrainerClaimed,
)

STREAMS = ("plan", "outcomes", "policy")
N_DECILES = 10


class _RunTable(msgspec.Struct, frozen=True):
    eta: int = 0
    rule: str = ""
    steps: int = 0


class _Config(msgspec.Struct, frozen=True):
    run: _RunTable = _RunTable()


class RunReport:
    """The fold. Each stream has to come in order; the three may be interleaved in any way, and repeats change nothing."""

    def __init__(self) -> None:
        self.accounts = Accounts()
        self.journal = Journal()
        self.started: RunStarted | None = None
        self.ended: RunEnded | None = None
        self.checkpoint: CheckpointCommitted | None = None
        self.eta = 0
        self.rule = ""
        self.planned_steps = 0
        self.n_groups: Counter[str] = Counter()
        self.n_refills = 0
        self.newest_group: GroupAdmitted | None = None
        self.label_began: dict[str, tuple[int, int]] = {}
        """By label of an evaluation: policy step and time, in nanoseconds, at which it was first asked for."""
        self.folded: dict[str, int] = dict.fromkeys(STREAMS, 0)
        """The last sequence folded, by stream."""

    def fold(self, stream: str, sequence: int, event: Event | None) -> None:
        """Take the next message of a stream; None stands for one that could not be decoded."""
        if sequence <= self.folded.get(stream, 0):
            return
        self.folded[stream] = sequence
        match event:
            case Outcome():
                self.accounts.ended(event)
            case EpisodeRequested():
                self.accounts.requested(event)
            case GroupAdmitted():
                self.n_groups[event.purpose] += 1
                self.n_refills += event.refill > 0
                self.newest_group = event
                if event.label:
                    self.label_began.setdefault(event.label, (event.progress, event.at_ns))
            case RunStarted():
                self._begin(event)
            case RunEnded():
                self.ended = event
            case _:
                self._fold_policy(event)

    def _begin(self, event: RunStarted) -> None:
        self.started = event
        run = msgspec.json.decode(event.config, type=_Config).run if event.config else _RunTable()
        self.eta, self.rule, self.planned_steps = run.eta, run.rule, run.steps

    def _fold_policy(self, event: Event | None) -> None:
        match event:
            case TrainerClaimed():
                self.accounts.rewind(event.step)
                self.journal.claimed(event)
            case StepTrained():
                self.accounts.judged(event.step, event.verdicts)
                self.journal.trained(event)
            case PolicyPublished():
                self.journal.published(event)
            case CheckpointCommitted():
                self.checkpoint = event
            case _:
                pass

    # --- what it says ---

    @property
    def phase(self) -> str:
        """What the run is doing, from its facts: `starting`, `evaluation before`, `training`, `evaluation after` or `ended`."""
        if self.ended is not None:
            return "ended"
        newest = self.newest_group
        if newest is None:
            return "starting"
        return "training" if newest.purpose == TRAIN else f"evaluation {newest.label}".rstrip()

    def step_sums(self, step: int) -> EpisodeSums:
        """The graded episodes of all groups that a step closed over, discarded ones included."""
        record = self.accounts.steps.get(step)
        return total(group.sums for _, group in record.passed.values()) if record else EpisodeSums()

    def curve(self) -> list[dict[str, object]]:
        """One point a step: means over the episodes that it closed over, their staleness, and the trainer's time."""
        windows = self.journal.windows()
        points: list[dict[str, object]] = []
        for step in self.journal.in_order:
            sums, window = self.step_sums(step.step), windows[step.step]
            points.append(
                {
                    "step": step.step,
                    "n": sums.n,
                    "reward": rounded(sums.mean(sums.reward)),
                    "accuracy": rounded(sums.accuracy),
                    "searches_per_episode": rounded(sums.mean(sums.n_searches)),
                    "reads_per_episode": rounded(sums.mean(sums.n_reads)),
                    "staleness_mean": rounded(_mean(step.staleness)),
                    "staleness_max": max(step.staleness, default=0),
                    "tokens_trained": step.n_tokens_trained,
                    "empty": step.empty,
                    "train_s": rounded(step.elapsed_ns / 1e9, 3),
                    "idle_s": rounded(window.idle_ns / 1e9, 3),
                    "span_s": rounded(window.span_ns / 1e9, 3),
                }
            )
        return points

    def evaluation(self, label: str) -> dict[str, object]:
        """An evaluation: means over its graded episodes, by hops too; what was dropped or died is told apart."""
        ends = self.accounts.labels.get(label, Ends())
        return {
            **ends.sums.to_json(),
            "by_hop": {hops: ends.by_hop[hops].to_json() for hops in sorted(ends.by_hop)},
            "requested": ends.requested,
            "dropped": ends.dropped.total(),
            "dead": ends.dead.total(),
            "in_flight": len(ends.open),
        }

    def staleness(self) -> dict[str, object]:
        """Staleness of the trained tokens, in policy steps; 0 where nothing was trained."""
        histogram = self.journal.staleness()
        return {
            "max": max((age for age, n in histogram.items() if n), default=0),
            "mean": rounded(_mean(histogram)) or 0.0,
            "histogram": {str(age): histogram[age] for age in sorted(histogram)},
        }

    def tokens(self) -> dict[str, int]:
        """Generated tokens of graded training episodes, and what became of them.

        `discarded` are those of discarded groups, `queued` those that no step has closed over yet.
        """
        steps, accounts = self.journal.in_order, self.accounts
        passed = [pair for record in accounts.steps.values() for pair in record.passed.values()]
        return {
            "generated": accounts.purposes.get(TRAIN, Ends()).sums.n_tokens,
            "trained": sum(step.n_tokens_trained for step in steps),
            "masked_stale": sum(step.n_tokens_masked_stale for step in steps),
            "discarded": sum(group.sums.n_tokens for verdict, group in passed if verdict.reason),
            "queued": sum(group.sums.n_tokens for group in accounts.queued.values()),
            "dead_lineage": int(self.journal.metric("dead_lineage_tokens")),
            "evaluation": sum(ends.sums.n_tokens for purpose, ends in accounts.purposes.items() if purpose != TRAIN),
        }

    def reasons(self) -> dict[str, dict[str, int]]:
        """Episodes by reason, over all purposes; `discarded_groups` counts groups."""
        dropped: Counter[str] = Counter()
        dead: Counter[str] = Counter()
        for ends in self.accounts.purposes.values():
            dropped.update(ends.dropped)
            dead.update(ends.dead)
        return {
            "dropped": dict(sorted(dropped.items())),
            "dead": dict(sorted(dead.items())),
            "discarded": dict(sorted(self.accounts.discarded().items())),
            "discarded_groups": dict(sorted(self.accounts.discarded_groups().items())),
        }

    def oldest_ns(self) -> tuple[int | None, int | None]:
        """When the oldest open episode was requested, and when the oldest graded episode that waits for a step was graded."""
        opened = [next(iter(ends.open.values())) for ends in self.accounts.purposes.values() if ends.open]
        queued = [group.oldest_ns for group in self.accounts.queued.values()]
        return min(opened, default=None), min(queued, default=None)

    def to_json(self) -> dict[str, object]:
        """The report by the names that the command line documents. Tokens and episodes are counts, times are in seconds."""
        return {**self.summary(), "curve": self.curve()}

    def summary(self) -> dict[str, object]:
        """The same without the curve."""
        accounts, journal = self.accounts, self.journal
        version = journal.version
        return {
            "recipe": self.started.recipe if self.started else None,
            "recipe_hash": self.started.recipe_hash if self.started else None,
            "seed": self.started.seed if self.started else None,
            "eval": {label: self.evaluation(label) for label in accounts.labels},
            "training": accounts.purposes.get(TRAIN, Ends()).sums.to_json(),
            "steps": len(journal.steps),
            "empty_steps": sum(step.empty for step in journal.steps.values()),
            "policy_version": None if version is None else str(version),
            "lineages": journal.n_claims,
            "trainer_idle_fraction": rounded(journal.idle_fraction()),
            "eta": self.eta,
            "rule": self.rule,
            "staleness": self.staleness(),
            "tokens": self.tokens(),
            "masked_stale_by_length_decile": [int(journal.metric(f"masked_stale_decile_{i}")) for i in range(N_DECILES)],
            "accounting": accounts.all_terms(),
            "accounting_by_purpose": {purpose: accounts.terms(purpose) for purpose in accounts.purposes},
            "identities_broken": accounts.broken(),
            "unmatched": accounts.unmatched(),
            "reasons": self.reasons(),
            "groups": {"admitted": dict(self.n_groups), "refills": self.n_refills, "asked_again": accounts.n_asked_again},
        }

    def picture(self, path: Path) -> None:
        """Draw the learning curves into a PNG file. Raises ConfigError if matplotlib is not installed."""
        from asearch.evaluation.picture import draw

        draw(self, path)


def _mean(histogram: dict[int, int]) -> float | None:
    n = sum(histogram.values())
    return sum(age * count for age, count in histogram.items()) / n if n else None
