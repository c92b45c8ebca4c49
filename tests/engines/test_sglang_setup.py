"""Making SGLang's environment: two set-ups at once share one cache without spoiling it."""

import os
import subprocess
from pathlib import Path

from asearch.engines.sglang.launch import FOLDER

PYTHON = """#!/bin/sh
# Makes an environment whose interpreter is this file, and notes that; installs nothing.
if [ "$1 $2" = "-m venv" ]; then
    echo made >> "$JOURNAL"
    sleep 0.3
    mkdir -p "$4/bin"
    cp "$0" "$4/bin/python"
elif [ "$2" = pip ] && [ ! -x "$0" ]; then
    exit 1
fi
"""


def test_two_setups_at_once_make_one_environment(tmp_path: Path) -> None:
    python, cache, journal = tmp_path / "python", tmp_path / "cache", tmp_path / "journal"
    python.write_text(PYTHON)
    python.chmod(0o700)
    environment = os.environ | {"PYTHON": str(python), "SGLANG_CACHE": str(cache), "JOURNAL": str(journal)}
    venvs = [tmp_path / name for name in ("one", "two")]
    made = [
        subprocess.Popen(["sh", str(FOLDER / "setup.sh")], env=environment | {"SGLANG_VENV": str(venv)}, stderr=subprocess.PIPE)
        for venv in venvs
    ]
    assert [each.wait(30) for each in made] == [0, 0], [each.stderr.read() for each in made if each.stderr]
    assert journal.read_text().splitlines() == ["made"]
    assert venvs[0].resolve() == venvs[1].resolve()
    assert (venvs[0] / "asearch-setup").is_file()
