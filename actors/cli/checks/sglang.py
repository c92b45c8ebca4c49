"""SGLang's environment, which is apart from ours: whether it is there, and whether it is the one that was tested."""

import re
from pathlib import Path

from actors.cli.checks.finding import Finding, Subject
from actors.cli.checks.runs import unfinished
from asearch.configuration.engine import EngineSettings
from asearch.engines.sglang.launch import FOLDER, device, interpreter
from asearch.errors import ConfigError

FIX = "sh infra/sglang/setup.sh (CPU), or set engine.python to the interpreter of an environment that has SGLang"


def environment(subject: Subject) -> list[Finding]:
    """It is there where a run that has not ended wants it, and holds the version that is tested."""
    engines = [content.settings.engine for content in unfinished(subject) if content.settings.engine.kind == "sglang"]
    launching = [engine for engine in engines if not engine.urls]
    findings = [_judge(engine, is_wanted=True) for engine in launching] or [
        _judge(EngineSettings(kind="sglang"), is_wanted=False)
    ]
    return list(dict.fromkeys(findings))


def _judge(engine: EngineSettings, *, is_wanted: bool) -> Finding:
    try:
        python = interpreter(engine)
    except ConfigError as error:
        if is_wanted:
            return Finding("sglang", "failed", str(error), FIX)
        return Finding("sglang", "info", "not installed; only engine.kind=sglang needs it (sh infra/sglang/setup.sh)")
    found = _version(python)
    if found is None:
        return Finding("sglang", "failed" if is_wanted else "warning", f"{python} has no SGLang", FIX)
    tested = _tested()
    if device(engine) == "cpu" and found != tested:
        return Finding("sglang", "warning", f"{found} at {python}; on CPU {tested} is tested", FIX)
    return Finding("sglang", "ok", f"{found} at {python}")


def _version(python: Path) -> str | None:
    """Of the SGLang beside an interpreter, by the name of its metadata: nothing is started or imported."""
    for folder in python.parents[1].glob("lib/python3*/site-packages/sglang-*.dist-info"):
        return folder.name.removeprefix("sglang-").removesuffix(".dist-info")
    return None


def _tested() -> str:
    match = re.search(r"^sglang==(\S+)$", (FOLDER / "sglang.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else ""
