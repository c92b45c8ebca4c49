"""What a command has left running."""

import os
import shutil
from pathlib import Path

import psutil

from actors.runtime.local_run import SHARED_MEMORY
from actors.runtime.run_files import read_run_file


def processes_of(folder: object) -> list[str]:
    """Command lines of live processes that name the folder."""
    found: list[str] = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line and process.pid != os.getpid():
            found.append(line)
    return found


def remove_weights(root: Path) -> None:
    """The weights that the killed runs of a folder have left in shared memory."""
    for file in root.glob("*/run.json"):
        folder = Path(read_run_file(file.parent).weights_dir)
        if SHARED_MEMORY in folder.parents:
            shutil.rmtree(folder, ignore_errors=True)
