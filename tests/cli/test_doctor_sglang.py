"""What the doctor says of SGLang's environment."""

from pathlib import Path

import pytest

from actors.cli.checks.finding import Finding, Subject
from actors.cli.checks.sglang import environment
from actors.runtime.run_files import RunFile, write_run_file
from asearch.configuration.loading import load_settings


def run_that_wants(root: Path, *overrides: str) -> Subject:
    folder = root / "runs" / "r"
    folder.mkdir(parents=True)
    content = RunFile(
        run="r", settings=load_settings("toy", overrides), broker_url="", corpus_url="", model_dir="", train_tasks="",
        eval_tasks="", weights_dir="", supervisor_pid=1, supervisor_started=0.0,
    )  # fmt: skip
    write_run_file(folder, content)
    return Subject(root / "runs")


def made(root: Path, version: str | None) -> Path:
    """An environment with this SGLang, as far as its files say."""
    (root / "venv" / "bin").mkdir(parents=True)
    packages = root / "venv" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    if version is not None:
        (packages / f"sglang-{version}.dist-info").mkdir()
    python = root / "venv" / "bin" / "python"
    python.touch()
    return python


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


def test_it_fails_where_a_run_wants_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asearch.engines.sglang.launch.ENVIRONMENT", Path("nowhere") / "python")
    found = only(environment(run_that_wants(tmp_path, "engine.kind=sglang")))
    assert found.status == "failed"
    assert "sh infra/sglang/setup.sh" in found.fix
    assert only(environment(run_that_wants(tmp_path / "other"))).status == "info"
    attached = run_that_wants(tmp_path / "attached", "engine.kind=sglang", 'engine.urls=["http://a:1"]')
    assert only(environment(attached)).status == "info"


@pytest.mark.parametrize(("version", "status"), [("0.5.23", "ok"), ("0.5.10", "warning"), (None, "failed")])
def test_its_version_is_told(tmp_path: Path, version: str | None, status: str) -> None:
    python = made(tmp_path, version)
    subject = run_that_wants(tmp_path, "engine.kind=sglang", "engine.device=cpu", f"engine.python={python}")
    found = only(environment(subject))
    assert found.status == status
    assert (version or "has no SGLang") in found.detail
