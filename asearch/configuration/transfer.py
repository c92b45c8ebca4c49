"""Settings of how published weights come to the engines."""

import msgspec

from asearch.errors import ConfigError

WAYS = ("shared", "http", "broadcast")
DELTAS = ("off", "auto", "always")


class TransferSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How weights travel where `engine.transfer` is not `shared`."""

    bind: str = "127.0.0.1"
    """Address at which the trainer's host serves its weights. Whoever pulls needs the token in the run's folder; where members of
    a broadcast meet nobody is asked for one, so let only hosts of the run reach it."""
    address: str | None = None
    """The same, as engines reach it; unset means `bind`."""
    connections: int = 4
    """Of one engine at once."""
    timeout_s: float = 30.0
    """Silence after which a connection is taken for broken."""
    broadcast_timeout_s: float = 30.0
    """How long members of a broadcast wait for one another; then the version is pulled instead."""
    backend: str = "gloo"
    """Of a broadcast: `gloo`, or `nccl` between CUDA devices."""


def check_delta(delta: str, way: str) -> None:
    """Raises ConfigError for a mode that there is not, or that has no effect."""
    if delta not in DELTAS:
        raise ConfigError(
            f"engine.delta is {delta!r}; it is 'off' (the default: versions are pulled whole), 'auto' (what has changed, as long "
            "as that comes sooner) or 'always' (whenever the trainer's host has the older version too)"
        )
    if delta != "off" and way == "shared":
        raise ConfigError(f"engine.delta is {delta!r}, but nothing is pulled: set engine.transfer to 'http' or 'broadcast' too")


def check_way(way: str) -> str:
    """The way, if there is one of that name. Raises ConfigError."""
    if way not in WAYS:
        raise ConfigError(
            f"engine.transfer is {way!r}; it is 'shared' (the default: a folder that trainer and engines see), "
            "'http' (pulled from the trainer's host) or 'broadcast' (a collective; http where it fails)"
        )
    return way
