"""Tokens per second of the trainer's rank beside Hugging Face's model (SDPA) with padded micro-batches, in one run.

Run it as `python -m tests.bench.trainer_throughput [--rounds N] [--tokens N] [--budget N] [--threads N] [--json]`; the last line
is JSON. A round is one update on the same sequences by each arm in turn, the order changing from round to round; a pass over one
sequence of T tokens counts T tokens for every arm, padding counts for none. Processor time is told beside wall time: on a machine
that does other work too it is the steadier one. The loss is the mean of the negative log-probability
of every token but the first. All arms begin with the same weights; AdamW has the same settings and gradients are clipped alike.

The Hugging Face arms are given what is to their advantage: padding is on the right, so that a causal mask alone is right and SDPA
takes its fast path, and logits are computed for real tokens only. `sorted` fills micro-batches by descending length, `unsorted`
in the order of the batch, both up to `--budget` tokens with padding; the rank packs up to `--budget` tokens without.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from actors.runtime.platform import SystemPlatform
from actors.runtime.ranks import Rank, RankProcess
from asearch.training.settings import TrainerSettings
from schemas.local import LoadModel, ModelLoaded, StepDone, TrainEpisode, TrainGroup, TrainStep
from tests.training.material import model_config, segment, write_model

SHAPE = {
    "vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1152, "n_layers": 5, "n_heads": 6, "n_kv_heads": 2,
    "head_dim": 64, "max_positions": 4096,
}  # fmt: skip
"""10.2M parameters, tied embeddings, in Qwen3's architecture."""
LENGTHS = (32, 2048)
MEDIAN, SIGMA = 220.0, 1.0
"""Of the log-normal distribution of lengths, before clipping to LENGTHS."""
STEP_TIMEOUT_S = 1800.0
Sequences = list[npt.NDArray[np.int64]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=12_000, help="least tokens of a batch")
    parser.add_argument("--budget", type=int, default=4096, help="most tokens of a micro-batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    chosen = parser.parse_args()
    settings = TrainerSettings(objective="sft", lr=1e-4, token_budget=chosen.budget, threads=chosen.threads)
    with tempfile.TemporaryDirectory(prefix="trainer-throughput-") as folder:
        result = asyncio.run(measure(Path(folder), settings, chosen.rounds, chosen.tokens))
    if not chosen.json:
        tell(result)
    print(json.dumps(result))


def batch_of(n_tokens: int, rng: np.random.Generator) -> Sequences:
    """Sequences of mixed lengths, at least `n_tokens` tokens together."""
    found: Sequences = []
    while sum(map(len, found)) < n_tokens:
        length = int(np.clip(rng.lognormal(np.log(MEDIAN), SIGMA), *LENGTHS))
        found.append(rng.integers(0, SHAPE["vocab_size"], length))
    return found


class HuggingFace:
    """One arm: the model in `transformers` with torch's AdamW."""

    def __init__(self, folder: Path, settings: TrainerSettings, is_sorted: bool) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).train()
        self._settings = settings
        self._is_sorted = is_sorted
        options = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay}
        self._optimizer = torch.optim.AdamW(self._model.parameters(), **options)
        self.n_padded = 0

    async def step(self, sequences: Sequences) -> float:
        """One update; the loss before it."""
        order = sorted(sequences, key=len, reverse=True) if self._is_sorted else sequences
        n_targets = sum(len(each) - 1 for each in sequences)
        total = 0.0
        self.n_padded = 0
        self._optimizer.zero_grad()
        for members in micro_batches(order, self._settings.token_budget):
            longest = max(map(len, members))
            self.n_padded += longest * len(members)
            ids_BT = torch.zeros(len(members), longest, dtype=torch.int64)
            for row, each in zip(ids_BT, members, strict=True):
                row[: len(each)] = torch.from_numpy(each)
            lengths_B = torch.tensor([len(each) for each in members])
            is_target_BT = torch.arange(1, longest) < lengths_B[:, None]
            hidden_BTH = self._model.model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
            logits_NV = self._model.lm_head(hidden_BTH[is_target_BT])
            loss = cross_entropy(logits_NV, ids_BT[:, 1:][is_target_BT], reduction="sum") / n_targets
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip_grad)
        self._optimizer.step()
        return total


def micro_batches(sequences: Sequences, budget: int) -> list[Sequences]:
    """In the order given; padded, none is over the budget unless it is one sequence."""
    found: list[Sequences] = []
    for each in sequences:
        last = found[-1] if found else []
        if last and max(len(each), *map(len, last)) * (len(last) + 1) <= budget:
            last.append(each)
        else:
            found.append([each])
    return found


class OurRank:
    """The other arm: a rank process, asked as a trainer asks it."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._step = 0

    async def step(self, sequences: Sequences) -> float:
        """One update; the loss before it."""
        episodes = [
            TrainEpisode(episode=f"e{i}", reward=1.0, segments=[segment(f"s{i}", ids.tolist(), [0] + [1] * (len(ids) - 1))])
            for i, ids in enumerate(sequences)
        ]
        command = TrainStep(step=self._step, lineage=0, groups=[TrainGroup(group="g", episodes=episodes)], max_staleness=None)
        done = await self._rank.ask(command, StepDone, STEP_TIMEOUT_S)
        self._step += 1
        return done.metrics["loss"]


async def measure(folder: Path, settings: TrainerSettings, n_rounds: int, n_tokens: int) -> dict[str, Any]:
    """Seconds of every arm and round, and what follows from them."""
    torch.set_num_threads(settings.threads)
    config = model_config("Qwen3ForCausalLM", **SHAPE)
    write_model(folder / "model", config)
    rank = await RankProcess.start(SystemPlatform(), folder / "rank.log")
    try:
        command = LoadModel(model_dir=str(folder / "model"), settings=msgspec.json.encode(settings), seed=0)
        loaded = await rank.ask(command, ModelLoaded, STEP_TIMEOUT_S)
        huggingface = {name: HuggingFace(folder / "model", settings, name == "sorted") for name in ("sorted", "unsorted")}
        arms: dict[str, Callable[[Sequences], Any]] = {"rank": OurRank(rank).step}
        arms |= {name: arm.step for name, arm in huggingface.items()}
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in arms}
        processes = psutil.Process(), psutil.Process(rank.process.pid)
        counts: list[int] = []
        padded: dict[str, list[float]] = {name: [] for name in huggingface}
        worst = 0.0
        for number in range(-1, n_rounds):
            sequences = batch_of(n_tokens, np.random.default_rng(number + 1))
            names = list(arms)
            losses: dict[str, float] = {}
            for name in names[number % 3 :] + names[: number % 3]:
                begun_s, begun_cpu_s = time.perf_counter(), cpu_s(processes)
                losses[name] = await arms[name](sequences)
                if number >= 0:  # the first is a warm-up
                    seconds[name].append(time.perf_counter() - begun_s)
                    cpu_seconds[name].append(cpu_s(processes) - begun_cpu_s)
            counts += [sum(map(len, sequences))] if number >= 0 else []
            for name, arm in huggingface.items():
                padded[name].append(1.0 - sum(map(len, sequences)) / arm.n_padded)
            worst = max(worst, *(abs(losses[name] - losses["rank"]) for name in huggingface))
    finally:
        await rank.stop()
    result = summary(settings, loaded.n_parameters, counts, seconds, padded, worst)
    for name in padded:
        pairs = zip(cpu_seconds[name], cpu_seconds["rank"], strict=True)
        result["ratio_of_cpu_time"][name] = statistics.median(theirs / ours for theirs, ours in pairs)
    return result


def cpu_s(processes: tuple[psutil.Process, ...]) -> float:
    """Processor time of several processes."""
    return sum(each.cpu_times().user + each.cpu_times().system for each in processes)


def summary(
    settings: TrainerSettings,
    n_parameters: int,
    counts: list[int],
    seconds: dict[str, list[float]],
    padded: dict[str, list[float]],
    worst: float,
) -> dict[str, Any]:
    """Medians of tokens per second; ratios are medians over the rounds, each of one round's arms, and of the fastest rounds."""
    speeds = {name: [n / s for n, s in zip(counts, each, strict=True)] for name, each in seconds.items()}
    ratios = {name: [a / b for a, b in zip(speeds["rank"], speeds[name], strict=True)] for name in padded}
    return {
        "n_parameters": n_parameters,
        "shape": SHAPE,
        "threads": settings.threads,
        "token_budget": settings.token_budget,
        "rounds": len(counts),
        "tokens_per_round": statistics.median(counts),
        "tokens_per_s": {name: statistics.median(each) for name, each in speeds.items()},
        "best_tokens_per_s": {name: max(each) for name, each in speeds.items()},
        "ratio": {name: statistics.median(each) for name, each in ratios.items()},
        "ratio_of_best": {name: max(speeds["rank"]) / max(speeds[name]) for name in ratios},
        "ratios": ratios,
        "ratio_of_cpu_time": {},
        "padding": {name: statistics.fmean(each) for name, each in padded.items()},
        "max_loss_difference": worst,
    }


def tell(result: dict[str, Any]) -> None:
    """The figures for people."""
    print(f"{result['n_parameters']:,} parameters, {result['threads']} thread, {result['tokens_per_round']:,.0f} tokens a round")
    print("arm       tokens/s   best   rank / arm: median     best   cpu time   padding")
    for name, speed in result["tokens_per_s"].items():
        best = result["best_tokens_per_s"][name]
        rest = ""
        if name != "rank":
            ratio, of_best, of_cpu = (result[key][name] for key in ("ratio", "ratio_of_best", "ratio_of_cpu_time"))
            rest = f"{ratio:>20.2f} {of_best:>8.2f} {of_cpu:>10.2f} {100 * result['padding'][name]:>8.0f} %"
        print(f"{name:<9} {speed:>8,.0f} {best:>6,.0f} {rest}")
    print(f"largest difference of a loss between the rank and another arm: {result['max_loss_difference']:.2e}")


if __name__ == "__main__":
    main()
