"""Starts SGLang in its own environment: `python launch_server.py FLAGS`. Imports nothing of this project.

The processes that SGLang spawns run this file's top level again. PyPI's torchvision is a CUDA build, whose operators do not load
beside a CPU build of torch; the two that are asked for at import are declared here, before anything imports it.
"""

import ctypes
import os
import runpy
import signal
import sys

import torch

_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Have the kernel end this process with the engine that started it (Linux): a killed engine leaves no server behind."""
    parent = os.environ.get("ASEARCH_PARENT")
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the process that started this server has ended already")


if torch.version.cuda is None:
    _operators = torch.library.Library("torchvision", "DEF")  # held: dropping it would undeclare them
    _operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

if __name__ == "__main__":
    _end_with_parent()
    runpy.run_module("sglang.launch_server", run_name="__main__")
