"""Weights go to the device that the embedded server computes on, whichever way they come."""

import itertools
from pathlib import Path

import pytest
from models.models_for_tests import small_config, write_model

from asearch.engines.embedded import server as module
from asearch.engines.embedded.body import Limits
from asearch.engines.embedded.options import parse
from asearch.engines.embedded.server import Server
from asearch.models.weights import load_weights


def test_weights_from_a_folder_and_from_a_broadcast_go_to_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    folder = str(write_model(tmp_path / "model", config, 0))
    options = parse(["--model-path", folder, "--device", "cuda:1"])
    limits = Limits(config.vocab_size, 64, 1024, frozenset(), None, itertools.count())
    server = Server(options, config, limits, scheduler=None)  # type: ignore[arg-type]
    server._updates.begin()
    server._updates._staged = load_weights(folder, config)
    devices: list[object] = []
    # Few machines have that device: what is made there is not, only where is noted.
    monkeypatch.setattr(module.Decoder, "from_tensors", lambda *given: devices.append(given[3:]))
    server._received()
    server._load(folder)
    assert devices == [("cuda:1",), ("cuda:1",)]
