"""A trainer as a process of its own: `python -m tests.crash.trainer_process RUN_DIR [--fault NAME:N[:rank]] ...`.

At the Nth time that the fault point NAME is reached the process kills itself with SIGKILL, or, with `:rank`, its rank a few
milliseconds later. It ends when all steps are trained, with `--stay` when it is told to. Errors of ours are printed by name
and end it with status 3.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.runtime.actor import Context
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform, SystemProcess
from actors.runtime.run_files import read_run_file
from actors.trainer import Trainer
from asearch.errors import AsearchError
from tests.crash.light_rank import LightRank

STATUS_OF_OURS = 3
RANK_KILL_DELAY_S = 0.005


class CrashPlatform(SystemPlatform):
    """The real one, with one armed fault point."""

    def __init__(self, fault: str | None) -> None:
        super().__init__()
        name, _, rest = (fault or "").partition(":")
        number, _, victim = rest.partition(":")
        self._name, self._left, self._victim = name, int(number or 1), victim
        self._rank: SystemProcess | None = None

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> SystemProcess:
        """Start the rank, and remember it."""
        self._rank = await super().spawn(argv, env=env, log_path=log_path, pass_fds=pass_fds)
        return self._rank

    async def fault(self, name: str) -> None:
        """Kill where it is armed."""
        if name != self._name:
            return
        self._left -= 1
        if self._left == 0 and self._victim == "rank":
            assert self._rank is not None
            asyncio.get_running_loop().call_later(RANK_KILL_DELAY_S, self._rank.kill)
        elif self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


async def live(run_dir: Path, fault: str | None, step_s: float | None, stay: bool) -> None:
    """Train until the steps are done, or with `stay` until SIGTERM; with `step_s` a light rank takes the commands."""
    content = read_run_file(run_dir)
    platform = CrashPlatform(fault)
    bus = await connect(content.broker_url, content.run, "trainer", platform)
    try:
        context = Context(content.run, run_dir, content.settings, bus, platform, f"trainer-{os.getpid()}")
        rank = None if step_s is None else LightRank(step_s)
        trainer = Trainer(context, content.model_dir, Path(content.weights_dir), rank)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, trainer.stop)
        stopper = asyncio.create_task(asyncio.Event().wait() if stay else stop_when_done(trainer))
        try:
            await trainer.run()
        finally:
            stopper.cancel()
    finally:
        await bus.close()


async def stop_when_done(trainer: Trainer) -> None:
    """Stop the trainer as soon as its last version is out."""
    while trainer.version is None or trainer.version.step < trainer.settings.run.steps:  # noqa: ASYNC110 -- it has no event
        await asyncio.sleep(0.05)
    trainer.stop()


def errors_of(error: BaseException) -> list[AsearchError]:
    """Errors of ours in an exception or a group."""
    if isinstance(error, BaseExceptionGroup):
        return [found for each in error.exceptions for found in errors_of(each)]
    return [error] if isinstance(error, AsearchError) else []


def main() -> int:
    """Parse the command line and live; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--fault")
    parser.add_argument("--light", type=float, metavar="STEP_S", help="no rank process; a step takes so long")
    parser.add_argument("--stay", action="store_true")
    arguments = parser.parse_args()
    try:
        asyncio.run(live(arguments.run_dir, arguments.fault, arguments.light, arguments.stay))
    except (AsearchError, BaseExceptionGroup) as error:
        found = errors_of(error)
        if not found:
            raise
        print(*(f"{type(each).__name__}: {each}" for each in found), sep="\n", file=sys.stderr)
        return STATUS_OF_OURS
    return 0


if __name__ == "__main__":
    sys.exit(main())
