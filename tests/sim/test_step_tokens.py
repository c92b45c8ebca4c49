"""A broker that does not take the tokens of updates does not hold training up."""

from pathlib import Path

import pytest

from actors.runtime.memory import MemoryBus
from actors.trainer import Trainer
from asearch.errors import NotStoredError, StreamFullError
from schemas.events import StepTrained
from schemas.records import BlobRef
from tests.sim.simulation import Simulation


@pytest.mark.parametrize("error", [StreamFullError, NotStoredError])
def test_training_goes_on_without_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    put = MemoryBus.put_blob

    async def refuse(bus: MemoryBus, episode: str, data: bytes) -> BlobRef:
        if episode.startswith("step-"):
            raise error("no room")
        return await put(bus, episode, data)

    gauges, not_recorded = Trainer.gauges, list[float]()

    def look(trainer: Trainer) -> dict[str, float]:
        not_recorded.append(gauges(trainer)["n_tokens_not_recorded"])
        return gauges(trainer)

    monkeypatch.setattr(Trainer, "gauges", look)
    monkeypatch.setattr(MemoryBus, "put_blob", refuse)
    sim = Simulation(tmp_path)
    sim.run()
    trained = [fact for fact in sim.journal.facts["policy"].values() if isinstance(fact, StepTrained)]
    assert sim.ended.reason == "completed"
    assert [fact.step for fact in trained] == [0, 1, 2, 3]
    assert [fact.tokens for fact in trained] == [None] * 4
    assert not_recorded[-1] == sum(fact.n_tokens_trained for fact in trained)
