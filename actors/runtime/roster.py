"""Which actors a run on one machine has."""

from collections.abc import Sequence
from pathlib import Path

from actors.runtime.membership import membership_of
from asearch.configuration.settings import Settings


def actors_of(settings: Settings, engines: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Kind and name of every actor of a run on one machine, in order of their start; `engines` None: as when it begins."""
    counts = {
        "trainer": 1,
        "engine": settings.engine.n_engines,
        "grader": settings.actors.graders,
        "tool": settings.actors.tools,
        "driver": settings.actors.drivers,
        "recorder": 1,
        "scheduler": 1,
        "viewer": int(settings.viewer.enabled),
    }
    names = {kind: [f"{kind}-{number}" for number in range(n)] for kind, n in counts.items()}
    if engines is not None:
        names["engine"] = list(engines)
    return [(kind, name) for kind in counts for name in names[kind]]


def actors_now(settings: Settings, run_dir: Path) -> list[tuple[str, str]]:
    """The same with the engines that the run keeps at this moment. Raises InputError."""
    return actors_of(settings, membership_of(run_dir, settings).engines)
