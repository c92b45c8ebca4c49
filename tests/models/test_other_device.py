"""The decoder and the sampler on another device than the CPU: everything they make themselves is made there."""

import numpy as np
import pytest
import torch

from asearch.engines.embedded import sampler
from asearch.engines.embedded.request import Request, Sampling
from asearch.models import fused
from asearch.models.decoder import Decoder
from asearch.models.kv_cache import KvCache
from tests.models.one_device import META, OneDevice
from tests.training.material import model_config


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_decoding_stays_on_its_device(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config(architecture)
    # Whether numbers are finite cannot be asked where there are none.
    monkeypatch.setattr(fused.torch, "isfinite", lambda _: np.ones(1))
    with OneDevice() as seen, torch.no_grad():
        tensors = {name: torch.empty(shape) for name, shape in config.shapes().items()}
        decoder = Decoder.from_tensors(config, tensors, 128, META)
        cache = KvCache(config, 6, 128, META)
        for logits in (
            decoder.prefill(cache, [(0, 0, [1, 2, 3]), (1, 4, [5, 6])]),
            decoder.decode(cache, [0, 1], [1, 2], [3, 6]),
            decoder.decode(cache, [0, 2], [1, 2], [3, 6]),
            decoder.decode(cache, [5], [1], [3]),
        ):
            assert (logits.device.type, logits.shape[1]) == (META, config.vocab_size)
        cache.copy_prefix(0, 1, 4)
        cache.swap(0, 1, 4)
        cache.clear()
    assert seen.n_operations > 100


@pytest.mark.parametrize("filtered", [False, True])
def test_drawing_stays_on_its_device(filtered: bool) -> None:
    sampling = Sampling(
        max_new_tokens=4, temperature=0.7, top_p=0.9 if filtered else 1.0, top_k=3 if filtered else 0, stop=(),
        stop_ids=frozenset({1}), min_new_tokens=2, seed=3,
    )  # fmt: skip
    requests = [Request("a", [1], sampling, False, 0.0), Request("b", [1], sampling, False, 0.0)]
    with OneDevice():
        drawn = sampler._draw(torch.empty(2, 9, device=META), requests, [sampling, sampling])
    assert (drawn.device.type, tuple(drawn.shape)) == (META, (2, 1))


def test_a_mixture_is_seen() -> None:
    with OneDevice(), pytest.raises(AssertionError, match="several devices"):
        torch.empty(3, device=META).index_select(0, torch.zeros(2, dtype=torch.long))
