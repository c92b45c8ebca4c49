"""Actors take time, sleep, ids, randomness and processes from their Platform alone: without this no simulation is exact.

Ruff's TID251 says the same at the keyboard; this reads the source with rules of its own, also where names are rebound.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {"time", "uuid", "secrets", "subprocess", "multiprocessing"}
NAMES = {
    "asyncio": {"sleep", "create_subprocess_exec", "create_subprocess_shell"},
    "os": {"urandom", "system", "popen", "fork", "forkpty", "posix_spawn", "execv", "execve"},
}
CLOCKS = ("datetime.now", "datetime.utcnow", "datetime.today", "date.today")
FREE = {"actors/runtime/platform.py", "actors/runtime/workspace.py"}
PURE = ("agents", "learning", "rewards")
"""Packages of asearch that actors run: what they need of time and chance they are given."""


def broken_by(source: str) -> list[str]:
    """What a module uses that only a Platform may."""
    found: list[str] = []
    modules: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names if _banned(node.module, alias.name)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            module = modules[node.value.id]
            found += [f"{module}.{node.attr}"] if _banned(module, node.attr) else []
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Random") and not (node.args or node.keywords):
            found.append(f"{ast.unparse(node)} without a seed")
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith(CLOCKS):
            found.append(ast.unparse(node))
    return found


def _banned(module: str, name: str) -> bool:
    if module == "random":
        return name != "Random"
    return module.partition(".")[0] in MODULES or name in NAMES.get(module, ())


def sources() -> list[Path]:
    """Every module that the rule binds."""
    bound = [path for path in (ROOT / "actors").rglob("*.py") if "cli" not in path.relative_to(ROOT).parts]
    bound += [path for package in PURE for path in (ROOT / "asearch" / package).rglob("*.py")]
    return [path for path in bound if path.relative_to(ROOT).as_posix() not in FREE]


def test_only_the_platform_has_clocks_chance_and_processes() -> None:
    assert len(sources()) > 30
    broken = {path.relative_to(ROOT).as_posix(): broken_by(path.read_text()) for path in sources()}
    assert {path: names for path, names in broken.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from time import monotonic",
        "import asyncio\nasync def f(): await asyncio.sleep(1)",
        "import asyncio as a\na.create_subprocess_exec('x')",
        "from asyncio import sleep",
        "import random\nrandom.shuffle([])",
        "from random import choice",
        "import random\nx = random.Random()",
        "import os as o\no.urandom(8)",
        "from subprocess import run",
        "from datetime import datetime\ndatetime.now()",
    ],
)
def test_the_rule_sees_what_it_forbids(source: str) -> None:
    assert broken_by(source)


@pytest.mark.parametrize("source", ["import random\nrandom.Random(3).shuffle([])", "import asyncio, os\nos.getpid()"])
def test_the_rule_lets_the_rest_be(source: str) -> None:
    assert not broken_by(source)
