"""The way that an engine's settings ask for."""

from functools import partial
from pathlib import Path

from actors.runtime.actor import Context
from actors.runtime.transfer.pulled import HttpPull
from actors.runtime.transfer.shared import SharedFolder
from actors.runtime.transfer.source import origin
from actors.runtime.transfer.transfer import Transfer, pulled_folder


def transfer_of(context: Context, weights_dir: Path) -> Transfer:
    """The transfer that `engine.transfer` names."""
    settings = context.settings
    if settings.engine.transfer == "shared":
        return SharedFolder(context.platform)
    origin_of = partial(origin, run_dir=context.run_dir, timeout_s=settings.transfer.timeout_s)
    root = pulled_folder(weights_dir, context.actor_id)
    return HttpPull(context.platform, root, origin_of, settings.transfer.connections)
