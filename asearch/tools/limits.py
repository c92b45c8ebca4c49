"""Bounds on calls to the corpus server; apart from its client, so that whoever reads settings needs no HTTP library."""

import msgspec

from asearch.errors import ConfigError


class ClientLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on every call."""

    n_concurrent: int = 32
    attempts: int = 6
    """With the pauses between them they outlast a server that is started again."""
    timeout_s: float = 20.0
    """Per attempt."""
    backoff_s: float = 0.25
    """Pause after the first failed attempt; doubled after each further one."""
    max_reply_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        if min(self.n_concurrent, self.attempts, self.max_reply_bytes) < 1 or self.timeout_s <= 0 or self.backoff_s < 0:
            raise ConfigError(f"Tool limits must be positive: {self}. Change them in the `tools` table.")
