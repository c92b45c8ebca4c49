"""A clock for judging silence: it runs only while something is heard."""

from actors.runtime.platform import Platform

MAX_STEP_S = 2.0
"""Two heartbeats: a silence of everybody counts for no more."""


class HearingClock:
    """Seconds during which messages came.

    Whoever is silent while others are heard may be dead. When nothing at all is heard, not even one's own heartbeat, it is the
    broker or this process that is away, and nobody is judged by that.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._heard_s = platform.monotonic()
        self.now_s = 0.0

    def heard(self) -> None:
        """A message came."""
        now_s = self._platform.monotonic()
        self.now_s += min(now_s - self._heard_s, MAX_STEP_S)
        self._heard_s = now_s
