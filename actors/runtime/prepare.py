"""Everything a run needs before its actors start: corpus, tasks, and a model that knows the protocol."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from actors.runtime.platform import Platform
from actors.runtime.warmstart import warm_start
from asearch.configuration.settings import Settings
from asearch.data.inputs import Inputs, gather_inputs
from asearch.data.warmup import WarmupPlan, plan_warmup
from asearch.models.config import ModelConfig
from asearch.training.divisibility import check_parallel


class PhaseClock(Protocol):
    """Measures phases."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Measure one."""
        ...


@dataclass(frozen=True)
class Prepared:
    """Where things lie."""

    corpus: Path
    pages: Path | None
    train_tasks: Path
    eval_tasks: Path
    model_dir: Path


async def prepare(
    settings: Settings, run_dir: Path, platform: Platform, say: Callable[[str], None], phases: PhaseClock
) -> Prepared:
    """Generate or read the world, then give the policy its warm start (or take it from the cache)."""
    with phases.phase("world"):
        inputs = await asyncio.to_thread(gather_inputs, settings, run_dir / "data", say)
    with phases.phase("warmstart"):
        model_dir = await _policy(settings, inputs, run_dir, platform, say)
    return Prepared(inputs.corpus, inputs.pages, inputs.train_tasks, inputs.eval_tasks, model_dir)


async def _policy(settings: Settings, inputs: Inputs, run_dir: Path, platform: Platform, say: Callable[[str], None]) -> Path:
    plan: WarmupPlan = await asyncio.to_thread(plan_warmup, settings, inputs, run_dir / "model")
    # Now, and not when the ranks load it: a warm start takes minutes.
    check_parallel(ModelConfig.load(plan.ready or plan.fresh_dir), settings.trainer)
    if plan.ready is not None:
        say(f"policy: {plan.ready} ({plan.origin})")
        return plan.ready

    def progress(done: int, total: int, metrics: dict[str, float]) -> None:
        if done % max(1, total // 10) == 0:
            say(f"warm start: step {done}/{total}, loss {metrics.get('loss', float('nan')):.3f}")

    say(f"warm start: {settings.warmstart.steps} supervised steps (starting the rank process)")
    log_path = run_dir / "logs" / "warmstart-rank.log"
    await warm_start(platform, settings, plan.fresh_dir, plan.target_dir, plan.batches(), log_path, progress)
    return plan.finish()
