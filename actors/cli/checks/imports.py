"""Whether the large libraries load: tried in a process of its own, for a broken one may crash it or never return."""

import asyncio
import os
import sys

from actors.cli.checks.finding import Finding, Subject

PROGRAM = """
import importlib, os, sys, warnings
warnings.simplefilter("ignore")
out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
for label, module in (pair.split("=") for pair in sys.argv[1:]):
    print("begin", label, file=out)
    try:
        loaded = importlib.import_module(module)
    except BaseException as error:
        print("error", label, type(error).__name__, str(error).replace(chr(10), " ")[:300], file=out)
        continue
    print("done", label, getattr(loaded, "__version__", ""), file=out)
    if label == "torch":
        cuda = loaded.cuda.is_available()
        print("device", label, f"CUDA, {loaded.cuda.get_device_name(0)}" if cuda else "CPU", file=out)
"""
MODULES = {"torch": "torch", "megatron-core": "asearch.training.model", "engine": "asearch.engines.embedded.server"}
"""Label and module; Megatron is loaded as the trainer does, through this project's own shim on CPU."""
FIX = "just setup; if it stays, look at `{python} -c 'import {module}'`"


async def imports(subject: Subject) -> list[Finding]:
    """torch, Megatron as the trainer uses it, and the embedded engine load; torch says which device it sees."""
    arguments = [f"{label}={module}" for label, module in MODULES.items()]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    lines: list[str] = []
    timed_out = False
    try:
        async with asyncio.timeout(subject.import_timeout_s):
            assert process.stdout is not None  # noqa: S101
            async for line in process.stdout:
                lines.append(line.decode("utf-8", "replace").rstrip("\n"))
            await process.wait()
    except TimeoutError:
        timed_out = True
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    ended = (
        f"did not return within {subject.import_timeout_s:g} s"
        if timed_out
        else f"killed the process (status {process.returncode})"
    )
    return told(lines, ended)


def told(lines: list[str], ended: str) -> list[Finding]:
    """The findings of what the process said; `ended` is what the import did that never came to its end."""
    said = [line.split(" ", 2) for line in lines]
    by_word = {(row[0], row[1]): (row[2] if len(row) > 2 else "") for row in said if len(row) > 1}
    findings: list[Finding] = []
    for label, module in MODULES.items():
        name, fix = f"import {label}", FIX.format(python=sys.executable, module=module)
        if ("done", label) in by_word:
            findings.append(Finding(name, "ok", f"loads {_device(by_word, label)}".rstrip()))
        elif ("error", label) in by_word:
            findings.append(Finding(name, "failed", f"does not load: {by_word['error', label]}", fix))
        elif ("begin", label) in by_word:
            findings.append(Finding(name, "failed", f"does not load: it {ended}", fix))
        else:
            findings.append(Finding(name, "warning", "not tried, because of the failure before it", fix))
    return [*findings, *_two_versions(by_word)]


def _device(by_word: dict[tuple[str, str], str], label: str) -> str:
    device, version = by_word.get(("device", label), ""), by_word["done", label]
    return f"{version} on {device}" if device else version


def _two_versions(by_word: dict[tuple[str, str], str]) -> list[Finding]:
    """torch says another version than its package metadata: two of them lie over one another."""
    from importlib import metadata

    loaded = by_word.get(("done", "torch"), "")
    try:
        installed = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return []
    if not loaded or loaded.partition("+")[0] == installed.partition("+")[0]:
        return []
    detail = f"the torch that is loaded says it is {loaded}, its package says {installed}"
    fix = "pip uninstall torch until none is left, then `just setup`; and look at PYTHONPATH"
    return [Finding("torch version", "failed", detail, fix)]
