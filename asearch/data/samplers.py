"""Which task stands in which slot of the plan: a pure function of the seed and the slot's number."""

import hashlib
import random
from functools import lru_cache

from asearch.errors import ConfigError


class EpochSampler:
    """Shuffled epochs without replacement: every task once an epoch, each epoch in an order of its own."""

    def __init__(self, n_tasks: int, seed: int) -> None:
        if n_tasks < 1:
            raise ConfigError("A sampler needs at least one task. Give a task file that is not empty.")
        self.n_tasks = n_tasks
        self.seed = seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def index(self, slot: int) -> int:
        """The index, below `n_tasks`, of the task in slot `slot` (from 0)."""
        epoch, place = divmod(slot, self.n_tasks)
        return self._order(epoch)[place]

    def _shuffled(self, epoch: int) -> list[int]:
        digest = hashlib.blake2b(f"{self.seed}\x1f{epoch}".encode(), digest_size=8).digest()
        order = list(range(self.n_tasks))
        random.Random(int.from_bytes(digest, "little")).shuffle(order)
        return order
