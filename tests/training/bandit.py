"""A bandit in the shape of episodes: the lower half of the vocabulary is right, and a policy learns to prefer it."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from schemas.local import TrainEpisode, TrainGroup
from schemas.records import TrainedEpisode
from tests.training.material import segment

VOCABULARY = 67
N_GROUPS, N_MEMBERS, N_ACTIONS = 3, 4, 6
Columns = Mapping[str, npt.NDArray[np.float32]]
"""Log-probabilities of the actions by episode and segment."""


def is_good(member: int) -> bool:
    return member % 2 == 1


def groups_of(behaviour: Columns) -> list[TrainGroup]:
    """Episodes of two segments, each a prompt token and its actions; a good member takes good actions only, and has reward 1."""
    rng = np.random.default_rng(0)
    groups: list[TrainGroup] = []
    for g in range(N_GROUPS):
        episodes: list[TrainEpisode] = []
        for m in range(N_MEMBERS):
            name, low, high = f"{g}.{m}", *((1, VOCABULARY // 2) if is_good(m) else (VOCABULARY // 2, VOCABULARY))
            parts = [
                segment(
                    part,
                    [0, *rng.integers(low, high, N_ACTIONS).tolist()],
                    [0, *[1] * N_ACTIONS],
                    [0.0, *behaviour.get(f"{name}/{part}", np.full(N_ACTIONS, -np.log(VOCABULARY))).tolist()],
                )
                for part in ("a", "b")
            ]
            episodes.append(TrainEpisode(episode=name, reward=float(is_good(m)), segments=parts))
        groups.append(TrainGroup(group=f"{g}", episodes=episodes))
    return groups


def told(episodes: list[TrainedEpisode]) -> dict[str, npt.NDArray[np.float32]]:
    """What the trainer said of the actions before its update."""
    return {
        f"{each.episode}/{part.segment}": np.frombuffer(part.columns["logprobs"].data, "<f4")
        for each in episodes
        for part in each.segments
    }


def preference(known: Columns) -> float:
    """By how many nats an action of a good member is more likely than another, on average."""
    good = [row.mean() for name, row in known.items() if is_good(int(name.split(".")[1].partition("/")[0]))]
    bad = [row.mean() for name, row in known.items() if not is_good(int(name.split(".")[1].partition("/")[0]))]
    return float(np.mean(good) - np.mean(bad))
