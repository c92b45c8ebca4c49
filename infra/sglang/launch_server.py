"""Starts SGLang in its own environment: `python launch_server.py FLAGS`. Imports nothing of this project.

The processes that SGLang spawns run this file's top level again. PyPI's torchvision is a CUDA build, whose operators do not load
beside a CPU build of torch; the two that are asked for at import are declared here, before anything imports it.
"""

import ctypes
import os
import runpy
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def _end_with(parent: int) -> None:
    """Have the kernel end this process with its parent: a killed engine leaves no server behind, and a server no part of it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this one has ended already")


def _runs(pid: int) -> bool:
    """Whether the process has not ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


IS_LINUX = sys.platform.startswith("linux")
if IS_LINUX and __name__ == "__main__":
    if "ASEARCH_PARENT" in os.environ:
        _end_with(int(os.environ["ASEARCH_PARENT"]))
    os.environ["ASEARCH_SERVER"] = str(os.getpid())
elif IS_LINUX and (server := int(os.environ.get("ASEARCH_SERVER", "0"))) and (os.getppid() == server or not _runs(server)):
    # SGLang asks for this too, but only after its imports, of which a server that is killed early does not live to see the end.
    _end_with(server)

import torch  # noqa: E402  -- takes seconds

if torch.version.cuda is None:
    _operators = torch.library.Library("torchvision", "DEF")  # held: dropping it would undeclare them
    _operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
