"""What a command has left running."""

import os

import psutil


def processes_of(folder: object) -> list[str]:
    """Command lines of live processes that name the folder."""
    found: list[str] = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line and process.pid != os.getpid():
            found.append(line)
    return found
