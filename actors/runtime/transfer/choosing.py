"""The way that an engine's settings ask for."""

import asyncio
from functools import partial
from pathlib import Path

from actors.runtime.actor import Context
from actors.runtime.transfer.broadcast import BroadcastReceiver
from actors.runtime.transfer.pulled import HttpPull
from actors.runtime.transfer.shared import SharedFolder
from actors.runtime.transfer.source import origin
from actors.runtime.transfer.transfer import Transfer, pulled_folder
from actors.runtime.transfer.verifying import ByParameter, ByTensor
from asearch.engines.sglang.launch import tells_whole_parameters
from asearch.weights.layout import TensorPlace
from asearch.weights.pulling import pull_held, pull_places
from asearch.weights.sglang import HeldWeights
from schemas.records import WeightManifest


def transfer_of(context: Context, weights_dir: Path) -> Transfer:
    """The transfer that `engine.transfer` names."""
    settings = context.settings
    if settings.engine.transfer == "shared":
        return SharedFolder(context.platform)
    origin_of = partial(origin, run_dir=context.run_dir, timeout_s=settings.transfer.timeout_s)
    root = pulled_folder(weights_dir, context.actor_id)
    pull = HttpPull(context.platform, root, origin_of, settings.transfer.connections, settings.engine.delta)
    if settings.engine.transfer == "http":
        return pull

    async def headers(manifest: WeightManifest) -> list[TensorPlace]:
        return await asyncio.to_thread(pull_places, manifest, origin_of(manifest.source))

    async def held(manifest: WeightManifest) -> HeldWeights:
        return await asyncio.to_thread(pull_held, manifest, origin_of(manifest.source))

    is_sglang = settings.engine.kind == "sglang"
    takes = not is_sglang or tells_whole_parameters(settings.engine)
    verification = ByParameter(held) if is_sglang else ByTensor()
    return BroadcastReceiver(context.platform, context.actor_id, pull, headers, takes, verification)
