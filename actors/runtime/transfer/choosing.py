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
from asearch.weights.layout import TensorPlace
from asearch.weights.pulling import pull_places
from schemas.records import WeightManifest


def transfer_of(context: Context, weights_dir: Path) -> Transfer:
    """The transfer that `engine.transfer` names."""
    settings = context.settings
    if settings.engine.transfer == "shared":
        return SharedFolder(context.platform)
    origin_of = partial(origin, run_dir=context.run_dir, timeout_s=settings.transfer.timeout_s)
    root = pulled_folder(weights_dir, context.actor_id)
    pull = HttpPull(context.platform, root, origin_of, settings.transfer.connections)
    if settings.engine.transfer == "http":
        return pull

    async def headers(manifest: WeightManifest) -> list[TensorPlace]:
        return await asyncio.to_thread(pull_places, manifest, origin_of(manifest.source))

    # SGLang 0.5.23 cannot tell xxh3-128 of what it holds, and without that nothing is served: it pulls.
    takes = settings.engine.kind == "embedded"
    return BroadcastReceiver(context.platform, context.actor_id, pull, headers, takes)
