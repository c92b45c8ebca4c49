"""What a killed server has left in shared memory is found by its process group, and only that is taken away."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from asearch.engines.sglang.shared_memory import FOLDER, left_by

HOLDER = """
import mmap, multiprocessing, sys, time
maps = []
for path in sys.argv[1:]:
    with open(path, "w+b") as file:
        file.truncate(4096)
        maps.append(mmap.mmap(file.fileno(), 4096))
lock = multiprocessing.get_context("spawn").RLock()  # as SGLang's progress bars make one
print(lock._semlock.name, flush=True)
time.sleep(60)
"""
pytestmark = pytest.mark.skipif(not (sys.platform == "linux" and FOLDER.is_dir()), reason="shared memory with names is Linux's")


@pytest.fixture
def names() -> Iterator[list[Path]]:
    mark = uuid.uuid4().hex
    held = [FOLDER / f"{name}_{mark}.shm" for name in ("sglang_loads_a", "sglang_loads_b", "somebodys")]
    yield held
    for path in held:
        path.unlink(missing_ok=True)


def test_only_what_the_group_has_mapped_under_known_names_is_taken_away(names: list[Path]) -> None:
    mine, others, unknown = names
    others.touch()
    command = [sys.executable, "-c", HOLDER, str(mine), str(unknown)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True) as holder:
        assert holder.stdout is not None
        semaphore = FOLDER / f"sem.{holder.stdout.readline().strip().lstrip('/')}"
        left = left_by(holder.pid)
        os.killpg(holder.pid, signal.SIGKILL)
    assert {each.path for each in left} == {mine, semaphore}
    assert mine.exists() and semaphore.exists()
    for each in left:
        each.remove()
        each.remove()
    assert not mine.exists() and not semaphore.exists()
    assert others.exists() and unknown.exists()
    assert left_by(holder.pid) == []


def test_a_file_that_has_taken_the_name_stays(names: list[Path]) -> None:
    mine = names[0]
    command = [sys.executable, "-c", HOLDER, str(mine)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        (left, *semaphores) = sorted(left_by(holder.pid), key=lambda each: each.path != mine)
        os.killpg(holder.pid, signal.SIGKILL)
    (FOLDER / f"{mine.name}-new").touch()
    (FOLDER / f"{mine.name}-new").rename(mine)
    for each in (left, *semaphores):
        each.remove()
    assert mine.exists()


def test_nothing_is_found_of_a_process_without_shared_memory() -> None:
    assert left_by(999_999_999) == []
