"""Plays the scenario of one seed, and says what came of it."""

import gc
import logging
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from tests.sim.scenario import Scenario, scenario_of
from tests.sim.simulation import Simulation

MEMORY = Path("/dev/shm")
"""Where syncing a file costs nothing; a simulated power cut takes no file."""


@dataclass
class Result:
    """What came of one simulation."""

    seed: int
    problems: list[str]
    log_hash: str = ""
    ended: str = ""
    n_facts: int = 0
    virtual_ms: int = 0
    real_s: float = 0.0
    faults: dict[str, int] = field(default_factory=dict[str, int])
    fault_points: dict[str, int] = field(default_factory=dict[str, int])
    passed: dict[str, int] = field(default_factory=dict[str, int])
    """How often every fault point was passed."""
    log: list[str] = field(default_factory=list[str])
    trace: list[str] = field(default_factory=list[str])

    def to_json(self) -> dict[str, Any]:
        """Without log and trace."""
        return {name: value for name, value in vars(self).items() if name not in ("log", "trace", "passed")}


def run_seed(seed: int, folder: Path | None = None, *, lost_tails: bool = True) -> Result:
    """Play the scenario of a seed in a folder of its own, which is deleted unless it is given."""
    return run_scenario(scenario_of(seed, lost_tails=lost_tails), folder)


def run_scenario(scenario: Scenario, folder: Path | None = None) -> Result:
    """Play a scenario; whatever it raises is a problem like others."""
    begun_s = time.perf_counter()
    place = folder or Path(tempfile.mkdtemp(prefix="sim-", dir=MEMORY if MEMORY.is_dir() else None))
    simulation = Simulation(place, scenario)
    gc.disable()  # When the collector comes by depends on the process; what it closes would be seen in the log.
    _listen(simulation)
    try:
        problems = _play(simulation)
    finally:
        gc.enable()
        structlog.reset_defaults()
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)
    return _result(simulation, problems, time.perf_counter() - begun_s)


def _play(simulation: Simulation) -> list[str]:
    try:
        return simulation.run().findings
    except Exception as error:
        return [*simulation.complaints, f"{type(error).__name__}: {error}"]


def _result(simulation: Simulation, problems: list[str], real_s: float) -> Result:
    result = Result(simulation.scenario.seed, problems, real_s=round(real_s, 3))
    if hasattr(simulation, "journal"):
        result.log, result.log_hash, result.n_facts = simulation.log, simulation.hash, len(simulation.log)
        result.faults = dict(sorted(simulation.troubles.counts.items()))
        result.trace = simulation.troubles.trace
        result.fault_points = dict(sorted(simulation.killed_at.items()))
        result.passed = dict(sorted(simulation.points.items()))
    if hasattr(simulation, "ended"):
        result.ended, result.virtual_ms = simulation.ended.reason, int(simulation.duration_s * 1000)
    return result


def _listen(simulation: Simulation) -> None:
    """Errors that an actor logs with a traceback are complaints; the rest of its log is kept for the trace."""

    def hear(_logger: Any, method: str, event: dict[str, Any]) -> Any:
        if method in ("exception", "error", "critical") and event.get("exc_info"):
            simulation.complain(f"{event.get('actor')}: {event.get('event')}", event["exc_info"])
        else:
            text = " ".join(f"{name}={value}" for name, value in sorted(event.items()) if name not in ("run", "actor", "event"))
            simulation.note(f"{event.get('actor', '')} {event.get('event')} {text}")
        raise structlog.DropEvent

    structlog.configure(processors=[hear], cache_logger_on_first_use=False)
    logging.getLogger("actors").setLevel(logging.ERROR)
