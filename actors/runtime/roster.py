"""Which actors a run on one machine has."""

from asearch.configuration.settings import Settings


def actors_of(settings: Settings) -> list[tuple[str, str]]:
    """Kind and name of every actor of a run on one machine, in order of their start."""
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
    return [(kind, f"{kind}-{number}") for kind, n in counts.items() for number in range(n)]
