"""From segments to micro-batches: no token above the bound is trained, none is lost, none comes twice."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asearch.errors import TrainingError
from asearch.learning.normalisation import TokenWeights
from asearch.learning.objectives import objectives
from asearch.training.batch import compose
from asearch.training.microbatch import micro_batches, order_of
from asearch.training.settings import TrainerSettings
from schemas.local import TrainEpisode, TrainGroup, TrainStep
from schemas.records import Column, Segment, Version, VersionRun
from tests.properties.counts import examples

STEP, LINEAGE = 6, 2
Ages = list[list[list[tuple[int, int, int]]]]
"""Groups of episodes of runs: (tokens, steps back, lineages back)."""
runs = st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(0, 1))
ages = st.lists(st.lists(st.lists(runs, min_size=1, max_size=4), min_size=2, max_size=3), min_size=1, max_size=3)


def column(dtype: str, given: object) -> Column:
    array = np.asarray(given).astype("<" + dtype)
    return Column(dtype=dtype, shape=array.shape, data=array.tobytes())


def segment(name: str, drawn: list[tuple[int, int, int]]) -> Segment:
    """One prompt token, then the runs with one foreign token after each."""
    mask, versions = [0], []
    for size, back, lineages_back in drawn:
        start = len(mask)
        mask += [1] * size + [0]
        version = Version(lineage=LINEAGE - lineages_back, step=STEP - back)
        versions.append(VersionRun(version=version, start=start, end=start + size))
    ids = range(len(mask))
    columns = {"ids": column("u4", list(ids)), "mask": column("u1", mask), "logprobs": column("f4", [-0.5 * one for one in mask])}
    return Segment(id=name, n_prompt=1, first_turn=0, last_turn=len(drawn), columns=columns, versions=versions)


def command(drawn: Ages, eta: int, rule: str, claimed: int = STEP) -> TrainStep:
    groups = [
        TrainGroup(
            group=f"g{number}",
            episodes=[
                TrainEpisode(episode=f"g{number}-{n}", reward=float(n), segments=[segment(f"g{number}-{n}", episode)])
                for n, episode in enumerate(group)
            ],
        )
        for number, group in enumerate(drawn)
    ]
    claims = (Version(lineage=LINEAGE - 1, step=0), Version(lineage=LINEAGE, step=claimed))
    return TrainStep(step=STEP, lineage=LINEAGE, groups=groups, max_staleness=eta, rule=rule, claims=claims)


@examples(100)
@given(ages, st.integers(0, 4), st.sampled_from(["mask", "keep", "discard"]), st.integers(0, STEP))
def test_no_token_above_the_bound_is_trained_and_the_sums_agree(drawn: Ages, eta: int, rule: str, claimed: int) -> None:
    tokens = Counter(back for group in drawn for episode in group for size, back, _ in episode for _ in range(size))
    too_old = sum(n for back, n in tokens.items() if back > eta)
    if rule == "discard" and too_old:
        with pytest.raises(TrainingError, match="older than"):
            compose(command(drawn, eta, rule, claimed), objectives.get("decoupled_ppo"), TrainerSettings())
        return
    batch = compose(command(drawn, eta, rule, claimed), objectives.get("decoupled_ppo"), TrainerSettings())
    kept = {back: n for back, n in tokens.items() if rule == "keep" or back <= eta}
    assert batch.staleness == kept
    assert batch.n_trained == sum(kept.values())
    assert sum(batch.masked) == (0 if rule == "keep" else too_old)
    trained = [run for group in drawn for episode in group for run in episode if run[1] in kept]
    dead = sum(size for size, back, gone in trained if gone and STEP - back > claimed)
    assert batch.n_dead_lineage == dead


@examples(100)
@given(ages, st.integers(1, 40))
def test_micro_batches_hold_every_loss_token_once_behind_its_own_input(drawn: Ages, budget: int) -> None:
    batch = compose(command(drawn, 9, "mask"), objectives.get("decoupled_ppo"), TrainerSettings())
    weights = TokenWeights(by_segment=[1.0 + n for n in range(len(batch.sequences))], divisor=7)
    packed = micro_batches(batch.sequences, batch.advantages, weights, budget)
    found = [
        (int(episode), int(target), float(advantage), float(weight))
        for each in packed
        for episode, target, advantage, weight in zip(
            each.episode_N, each.targets_N, each.advantages_N, each.weights_N, strict=True
        )
    ]
    expected = [
        (sequence.episode, int(at), float(np.float32(batch.advantages[sequence.episode])), weights.by_segment[number])
        for number, sequence in enumerate(batch.sequences)
        for at in sequence.trained_N
    ]
    assert Counter(found) == Counter(expected)
    assert sorted(order_of(batch.sequences, budget)) == list(range(len(batch.sequences)))
    assert sum(each.divisor for each in packed) == 7
    for each in packed:
        # A token's id is its position, so the input that predicts position n is n - 1.
        assert (each.ids_T[each.rows_N] + 1 == each.targets_N).all()
