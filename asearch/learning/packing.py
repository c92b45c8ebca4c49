"""Which sequences share a micro-batch."""

from collections.abc import Sequence

from asearch.errors import ConfigError


def pack(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of sequences by micro-batch: first fit over lengths in descending order.

    The sum of the lengths in a micro-batch is at most `token_budget`, except that a sequence longer than the budget is a
    micro-batch of its own. Every index comes up exactly once; within a micro-batch lengths do not increase; the result is
    a function of the arguments alone. The idea of sorting by length and filling by a token budget is Algorithm 1 of
    AReaL (arXiv 2505.24298). Raises ConfigError for a budget below 1.
    """
    if token_budget < 1:
        raise ConfigError(f"token_budget must be at least 1, not {token_budget}")
    batches: list[list[int]] = []
    room: list[int] = []
    open_from = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        n = lengths[index]
        slot = next((b for b in range(open_from, len(room)) if room[b] >= n), None)
        if slot is None:
            slot = len(batches)
            batches.append([])
            room.append(token_budget)
        batches[slot].append(index)
        room[slot] -= n
        # Nothing shorter is left than what did not fit once the room is used up.
        while open_from < len(room) and room[open_from] <= 0:
            open_from += 1
    return batches


def spread(lengths: Sequence[int], n: int) -> list[list[int]]:
    """Indices of sequences by replica, each in order: the longest goes first, always to the replica with the fewest tokens.

    Every index comes up once; the result is a function of the arguments alone, so that all ranks find the same (longest
    processing time first: Graham, SIAM J. Appl. Math. 17, 1969).
    """
    shares: list[list[int]] = [[] for _ in range(n)]
    loads = [0] * n
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += lengths[index]
    return [sorted(share) for share in shares]
