"""A run whose OUTCOMES and BLOBS are all there, its trainers as processes, and what they leave in POLICY and on disk."""

import asyncio
import os
import signal
import sys
import uuid
from asyncio.subprocess import PIPE, Process
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from actors.cli.auditing.evidence import Checkpoint, Evidence, newest_checkpoint, standing_checkpoints
from actors.cli.auditing.journal import check_versions, standing_steps
from actors.cli.auditing.problems import Problems
from actors.runtime.bus import Bus
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile, write_run_file
from asearch.configuration.settings import CheckpointSettings, RunSettings, Settings
from asearch.training.settings import TrainerSettings
from schemas.codec import encode
from schemas.events import EpisodeDropped, EpisodeGraded, Event, PolicyPublished
from schemas.records import Reward, Trajectory, Version
from tests.training.material import random_groups

ROOT = Path(__file__).parents[2]
VOCABULARY = 67
MEMBERS = 3
LIFE_S = 120.0


def settings_of(steps: int, every_steps: int = 2, **trainer: Any) -> Settings:
    """A short run of a tiny model."""
    fields = {"lr": 3e-3, "token_budget": 128, "advantage": "grpo_mean", "weight_decay": 0.01} | trainer
    return Settings(
        run=RunSettings(steps=steps, groups_per_step=2, group_size=MEMBERS, eta=2, max_refills=0),
        checkpoint=CheckpointSettings(every_steps=every_steps),
        trainer=TrainerSettings(**fields),
    )


@dataclass
class Prefilled:
    """One run."""

    url: str
    folder: Path
    settings: Settings
    model_dir: Path = Path()
    run: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}")
    bus: Bus = field(init=False)

    async def fill(self) -> "Prefilled":
        """Make the streams, put all outcomes there and write what a trainer process reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.bus = await connect(self.url, self.run, "viewer", SystemPlatform())
        await self.bus.ensure_topology()
        writer = await connect(self.url, self.run, "grader", SystemPlatform())
        try:
            for step in range(self.settings.run.steps):
                await self._fill_step(writer, step)
        finally:
            await writer.close()
        content = RunFile(
            run=self.run,
            settings=self.settings,
            broker_url=self.url,
            corpus_url="",
            model_dir=str(self.model_dir),
            train_tasks="",
            eval_tasks="",
            weights_dir=str(self.weights_dir),
            supervisor_pid=os.getpid(),
            supervisor_started=0.0,
        )
        write_run_file(self.folder, content)
        return self

    @property
    def weights_dir(self) -> Path:
        """Where weights are published."""
        return self.folder / "weights"

    @property
    def log_path(self) -> Path:
        """What the trainers log."""
        return self.folder / "trainer.log"

    async def wait_for_log(self, text: str, timeout_s: float = 60.0) -> None:
        """Wait until a trainer has logged this."""
        async with asyncio.timeout(timeout_s):
            while text not in self.log_path.read_text():  # noqa: ASYNC110 -- a file has no event
                await asyncio.sleep(0.05)

    async def _fill_step(self, bus: Bus, step: int) -> None:
        """The outcomes of one step: groups to train on, one of them with stale tokens, and one that is incomplete."""
        groups = self.settings.run.groups_per_step
        version = Version(lineage=1, step=max(0, step - 1))
        made = random_groups(groups, MEMBERS, (5, 24), VOCABULARY, seed=step, version=version)
        old = Version(lineage=1, step=max(0, step - 4))
        made[0] = random_groups(1, MEMBERS, (5, 24), VOCABULARY, seed=100 + step, version=old)[0]
        for number, group in enumerate(made):
            slot = step * groups + number
            for member, each in enumerate(group.episodes):
                name = f"t-{slot}-0-{member}"
                if step % 3 == 2 and number == 1 and member == 1:
                    dropped = EpisodeDropped(**_identity(slot, member), reason="deadline")
                    await bus.append(dropped, name, expected=0)
                    continue
                ref = await bus.put_blob(name, encode(Trajectory(episode=name, segments=each.segments)))
                outcome = EpisodeGraded(
                    **_identity(slot, member),
                    reward=Reward(value=each.reward + 0.25 * member),
                    trajectory=ref,
                    status="answered",
                    answer="a",
                    n_turns=1,
                    n_tokens_generated=sum(sum(segment.columns["mask"].data) for segment in each.segments),
                    n_searches=0,
                    n_reads=0,
                    oldest=version,
                )
                await bus.append(outcome, name, expected=0)

    # --- trainers ---

    async def start(self, fault: str | None = None, light_s: float | None = None, stay: bool = False) -> Process:
        """A trainer process."""
        arguments = ["-m", "tests.crash.trainer_process", str(self.folder)]
        arguments += ["--fault", fault] if fault else []
        arguments += ["--light", str(light_s)] if light_s is not None else []
        arguments += ["--stay"] if stay else []
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.log_path.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable, *arguments, cwd=ROOT, env=environment, stdout=log, stderr=PIPE
            )

    async def live(self, fault: str | None = None, light_s: float | None = None) -> tuple[int, str]:
        """A whole life of a trainer: its exit status, and what it said at its end."""
        return await ended(await self.start(fault, light_s))

    # --- what they leave ---

    async def policy(self) -> list[tuple[int, Event]]:
        """The journal."""
        async with aclosing(self.bus.read("policy", follow=False)) as reader:
            return [(stored.sequence, stored.event) async for stored in reader if stored.event is not None]

    async def wait_for(self, kind: type[Event], n: int = 1, timeout_s: float = 60.0) -> Event:
        """The nth fact of a type in the journal."""
        async with asyncio.timeout(timeout_s), aclosing(self.bus.read("policy", events=(kind,))) as reader:
            async for stored in reader:
                n -= 1
                if n == 0:
                    assert stored.event is not None
                    return stored.event
        raise AssertionError("the journal ended")

    async def checked(self) -> Checkpoint:
        """The journal passes the audit's checks of versions; the last checkpoint, which is of the last step and intact."""
        problems = Problems()
        evidence = Evidence(policy=await self.policy())
        check_versions(evidence, problems)
        assert [step.step for step in standing_steps(evidence)] == list(range(self.settings.run.steps))
        found = newest_checkpoint(self.folder / "checkpoints", standing_checkpoints(evidence.policy), problems)
        assert problems.lines() == []
        assert found is not None
        assert found[1].step == self.settings.run.steps
        left = {path.name for path in (self.folder / "checkpoints").iterdir()}
        assert len(left) <= 2
        assert found[0] in left
        return found[1]

    async def wait_until_done(self, timeout_s: float = 60.0) -> None:
        """Wait for the version after the last step."""
        async with asyncio.timeout(timeout_s), aclosing(self.bus.read("policy", events=(PolicyPublished,))) as reader:
            async for stored in reader:
                if isinstance(stored.event, PolicyPublished) and stored.event.version.step == self.settings.run.steps:
                    return

    async def last_published(self) -> PolicyPublished:
        """The newest version."""
        return [event for _, event in await self.policy() if isinstance(event, PolicyPublished)][-1]


async def ended(process: Process, timeout_s: float = LIFE_S) -> tuple[int, str]:
    """Wait for the end of a process: its exit status and the end of its standard error; killed when it takes too long."""
    try:
        async with asyncio.timeout(timeout_s):
            _, said = await process.communicate()
    except TimeoutError:
        process.send_signal(signal.SIGCONT)
        process.kill()
        _, said = await process.communicate()
        raise AssertionError(f"the trainer did not end:\n{said.decode()[-3000:]}") from None
    assert process.returncode is not None
    return process.returncode, said.decode()[-3000:]


def weights_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Hashes of a checkpoint's files: weights, optimizer and RNG, bit for bit."""
    return {name: entry.hash for name, entry in checkpoint.files.items()}


def ledger_of(checkpoint: Checkpoint) -> bytes:
    """The ledger of a checkpoint."""
    return msgspec.json.encode(checkpoint.ledger)


def _identity(slot: int, member: int) -> dict[str, Any]:
    return {
        "id": f"outcome-t-{slot}-0-{member}",
        "episode": f"t-{slot}-0-{member}",
        "group": f"t-{slot}-0",
        "member": member,
        "members": MEMBERS,
        "slot": slot,
        "purpose": "train",
        "task": f"task-{slot}",
    }
