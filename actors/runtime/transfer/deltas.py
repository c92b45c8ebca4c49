"""When a puller asks for a delta instead of the whole version."""

MAX_PULLS = 16
"""So many versions at most are pulled whole before a delta is tried again."""


class DeltaChoice:
    """`always` asks whenever an older version lies here. `auto` goes on as long as deltas come sooner than whole versions did.

    After one that did not, or that was not to be had, 1, 2, 4 ... `MAX_PULLS` versions are pulled whole: links and learning rates
    change, and a try costs a little. What decides is the time that a pull takes as it is, making and applying included.
    """

    def __init__(self, mode: str) -> None:
        """`mode` is `off`, `auto` or `always`."""
        self._mode = mode
        self._whole_s: float | None = None
        self._n_whole_left = 0
        self._n_next = 1

    @property
    def asks(self) -> bool:
        """Whether the next version is asked for as a delta."""
        if self._mode == "auto":
            return self._n_whole_left == 0 and self._whole_s is not None
        return self._mode == "always"

    @property
    def patience_s(self) -> float | None:
        """How long a delta may be in the making; None is as long as it takes."""
        return self._whole_s if self._mode == "auto" else None

    def pulled_whole(self, elapsed_s: float, is_from_begin: bool) -> None:
        """A version came whole; only what was not resumed tells how long that takes."""
        if is_from_begin:
            self._whole_s = elapsed_s
        self._n_whole_left = max(0, self._n_whole_left - 1)

    def pulled_delta(self, elapsed_s: float) -> None:
        """A version came as a delta, whether or not that was sooner."""
        if self._whole_s is not None and elapsed_s > self._whole_s:
            self.went_wrong()
        else:
            self._n_next = 1

    def went_wrong(self) -> None:
        """A delta was not to be had, or not what it had to be; a whole pull follows in its place."""
        self._n_whole_left, self._n_next = self._n_next, min(MAX_PULLS, 2 * self._n_next)
