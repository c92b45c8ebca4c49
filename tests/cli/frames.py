"""Frames of a run for the tests of the screen."""

from actors.cli.screen import Frame
from actors.runtime.bus import ConsumerInfo
from actors.runtime.following import Vitals
from asearch.evaluation.report import RunReport
from schemas.commands import Heartbeat
from tests.evaluation.stories import SECOND, Story, two_steps

NOW_NS = 2000 * SECOND
ACTORS = ("trainer", "engine", "grader", "tool", "driver", "recorder", "scheduler")


def folded(story: Story) -> RunReport:
    """The report of a story."""
    report = RunReport()
    for stream, sequence, event in story.told:
        report.fold(stream, sequence, event)
    return report


def beat(actor: str, at_s: float, **gauges: float) -> Heartbeat:
    """A heartbeat `at_s` seconds before now; pid 100 + place among the actors."""
    return Heartbeat(
        actor=actor,
        actor_id=f"{actor}-0",
        pid=100 + ACTORS.index(actor),
        at_ns=NOW_NS - int(at_s * SECOND),
        state="ready",
        gauges=gauges,
    )


def busy_frame(story: Story | None = None) -> Frame:
    """All actors alive but the tool, which is silent, the grader, which does not run, and the driver, which starts anew."""
    vitals = Vitals()
    for actor in ACTORS:
        old = 9.0 if actor == "tool" else 2.0
        vitals.heard(beat(actor, old, n_tokens=1000.0))
        vitals.heard(beat(actor, old - 2.0, n_tokens=3000.0, n_running=12.0))
    processes: dict[str, tuple[int | None, int]] = {f"{actor}-0": (100 + place, 0) for place, actor in enumerate(ACTORS)}
    processes["grader-0"] = (None, 3)
    processes["driver-0"] = (999, 1)
    return Frame(
        run="toy-1",
        now_ns=NOW_NS,
        elapsed_s=125.0,
        phase="training",
        report=folded(story or two_steps()),
        vitals=vitals,
        queues={"driver": ConsumerInfo("driver", 12, 34, 0, 1024), "tool": ConsumerInfo("tool", 0, 7, 0, 1024)},
        processes=processes,
    )
