"""Bugs of the trainer: its claim, its checkpoints, what it publishes."""

from tests.planted.mutation import Mutation, crash, durability, sim, unit

CHECKPOINTS = "asearch/training/checkpoints.py"
CHECKPOINTING = "actors/runtime/checkpointing.py"
ORDER = "tests/training/test_checkpoint_order.py"
TWO = "tests/crash/test_two_trainers.py"
BESIDE = "tests/crash/test_checkpointing.py"

TRAINING = (
    Mutation(
        "checkpoint-not-fsynced",
        "the files of a checkpoint are not on disk when it is committed",
        CHECKPOINTS,
        "        if file.is_file():\n            _fsync(file)\n",
        "        if not file.is_file():\n            _fsync(file)\n",
        (durability(ORDER),),
    ),
    Mutation(
        "rank-does-not-fsync",
        "a rank says that its files are written while they are in memory",
        "asearch/training/state_files.py",
        "            sync(folder / name)\n",
        "",
        (durability(ORDER),),
    ),
    Mutation(
        "name-not-fsynced",
        "the name of a committed checkpoint may be lost in a power cut",
        CHECKPOINTS,
        "    aside.rename(final)\n    _fsync(aside.parent)\n",
        "    aside.rename(final)\n",
        (durability(ORDER),),
    ),
    Mutation(
        "checkpoint-not-renamed",
        "a checkpoint is copied file by file to where it is looked for",
        CHECKPOINTS,
        "    aside.rename(final)\n",
        "    shutil.copytree(aside, final)\n    shutil.rmtree(aside)\n",
        (durability(ORDER),),
    ),
    Mutation(
        "manifest-first",
        "the manifest is written before the files that it speaks of are on disk",
        CHECKPOINTS,
        '    for file in sorted(aside.rglob("*")):\n        if file.is_file():\n            _fsync(file)\n'
        "    written = aside / MANIFEST\n"
        "    written.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))\n    _fsync(written)\n",
        "    written = aside / MANIFEST\n"
        "    written.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))\n    _fsync(written)\n"
        '    for file in sorted(aside.rglob("*")):\n        if file.is_file():\n            _fsync(file)\n',
        (durability(ORDER),),
    ),
    Mutation(
        "hash-not-verified",
        "a corrupt checkpoint is restored",
        CHECKPOINTS,
        "        if found != entry:\n",
        "        if found.size_bytes != entry.size_bytes:\n",
        (unit("tests/training/test_checkpoint_store.py"),),
    ),
    Mutation(
        "policy-without-compare-and-set",
        "a trainer appends behind whatever the journal ends with by then, so one that was replaced goes on",
        "actors/runtime/policy_journal.py",
        "event, self._model, expected=self._last, waits_for",
        'event, self._model, expected=await self._bus.last_sequence("policy"), waits_for',
        (crash(BESIDE + "::test_a_fenced_trainer_commits_and_deletes_nothing"),),
    ),
    Mutation(
        "lineage-not-grown",
        "a trainer that restarts republishes under the lineage of the one before it",
        "actors/trainer.py",
        "lineage = self._journal.lineage + 1",
        "lineage = max(1, self._journal.lineage)",
        (sim("tests/sim/test_simulation.py::test_any_actor_may_die"),),
    ),
    Mutation(
        "committed-before-it-is-in-place",
        "a checkpoint is announced before its folder has its name",
        CHECKPOINTING,
        "final = await asyncio.to_thread(checkpoints.put_in_place, aside)",
        "asyncio.get_running_loop().call_later(0.5, checkpoints.put_in_place, aside)\n"
        "        final = aside.parent / checkpoints.name_of(version.lineage, version.step)",
        (crash(BESIDE), sim("tests/sim/test_simulation.py::test_any_actor_may_die")),
    ),
    Mutation(
        "pruned-before-the-commit",
        "older checkpoints are deleted before the journal has accepted the new one",
        CHECKPOINTING,
        "        await self._journal.append(\n            CheckpointCommitted(\n",
        "        checkpoints.prune(self._root, [version], version.lineage)\n"
        "        await self._journal.append(\n            CheckpointCommitted(\n",
        (crash(BESIDE + "::test_a_fenced_trainer_commits_and_deletes_nothing"),),
    ),
    Mutation(
        "checkpoint-of-another-moment",
        "the ledger of a checkpoint is that of the step before its weights",
        "actors/trainer.py",
        "        self._snapshot = closed.snapshot\n",
        "        closed = type(closed)(closed.step, closed.groups, closed.verdicts, self._snapshot or closed.snapshot)\n"
        "        self._snapshot = batch.closed.snapshot\n",
        (sim("tests/sim/test_simulation.py::test_any_actor_may_die"),),
    ),
    Mutation(
        "batch-by-arrival",
        "groups are trained in the order in which their trajectories happened to arrive",
        "actors/runtime/batches.py",
        "        segments = {name: await task for name, task in self.segments.items()}\n"
        "        return train_groups(self.closed, segments, permute_seed)\n",
        "        late = {name for name, task in self.segments.items() if not task.done()}\n"
        "        segments = {name: await task for name, task in self.segments.items()}\n"
        "        groups = train_groups(self.closed, segments, permute_seed)\n"
        "        return sorted(groups, key=lambda each: each.episodes[-1].episode in late)\n",
        (unit("tests/actors/test_batches.py"),),
    ),
    Mutation(
        "reward-of-another-episode",
        "every episode of a group is trained with the reward of the first",
        "actors/runtime/batches.py",
        "reward=rewards[each.episode], segments",
        "reward=rewards[group[0].episode], segments",
        (unit("tests/actors/test_batches.py"),),
    ),
    Mutation(
        "weights-deleted-before-the-announcement",
        "a trainer that was replaced deletes weights before the journal refuses it",
        "actors/runtime/publishing.py",
        '        await self._platform.fault("trainer.exported")\n',
        '        await self._platform.fault("trainer.exported")\n        self.remove_all()\n',
        (crash(TWO + "::test_a_trainer_that_wakes_up_publishes_nothing"),),
    ),
)
