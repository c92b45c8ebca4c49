"""Bugs of the trainer: its claim, its checkpoints, what it publishes."""

from tests.planted.mutation import Mutation, durability, unit

CHECKPOINTS = "asearch/training/checkpoints.py"
CHECKPOINTING = "actors/runtime/checkpointing.py"
ORDER = "tests/training/test_checkpoint_order.py"
SIM = "tests/sim/test_simulation.py"

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
        "asearch/training/checkpoint.py",
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
)
