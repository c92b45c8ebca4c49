"""What the contract is checked against: one running server of any kind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from asearch.models.config import ModelConfig
from engines.servers_for_tests import Running


@dataclass(frozen=True)
class Served:
    """A running server."""

    kind: str
    url: str
    folder: Path
    """`v1` and `v2` are model folders of the same shape and tokenizer in here."""
    config: ModelConfig

    def model(self, version: str) -> Path:
        return self.folder / version


async def post(session: aiohttp.ClientSession, served: Served | Running, body: Any, path: str = "/generate") -> Any:
    async with session.post(served.url + path, json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def generate(session: aiohttp.ClientSession, served: Served | Running, ids: Any, **params: Any) -> Any:
    """The whole reply, not streamed."""
    return await post(session, served, {"input_ids": ids, "sampling_params": params, "return_logprob": True})


def columns(reply: Any) -> tuple[list[int], list[float]]:
    """Ids and log-probabilities of a reply, which must name the same tokens and cover them with version spans."""
    entries = reply["meta_info"]["output_token_logprobs"]
    assert [entry[1] for entry in entries] == reply["output_ids"]
    assert reply["meta_info"]["completion_tokens"] == len(entries)
    at = 0
    for span in reply["meta_info"]["weight_versions"]:
        assert span["start"] == at < span["end"]
        at = span["end"]
    assert at == len(entries)
    return reply["output_ids"], [entry[0] for entry in entries]
