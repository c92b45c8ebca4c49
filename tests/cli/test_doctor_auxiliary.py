"""What the doctor says of the endpoints of auxiliary models."""

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from actors.cli.checks.auxiliary import endpoints
from actors.cli.checks.finding import Finding
from tests.cli.test_doctor_sglang import run_that_wants

KEY = "sk-very-secret"


async def models(request: web.Request) -> web.Response:
    if request.headers.get("Authorization") != f"Bearer {KEY}":
        return web.json_response({"error": {"message": f"wrong key {KEY[:2]}"}}, status=401)
    return web.json_response({"data": [{"id": "judge-1"}, {"id": "judge-2"}]})


async def found(root: Path, url: str, *overrides: str) -> Finding:
    settings = (f"auxiliary.judge.base_url={url}", "auxiliary.judge.api_key_env=JUDGE_KEY", *overrides)
    (finding,) = await endpoints(run_that_wants(root, *settings))
    assert finding.name == "auxiliary.judge"
    assert KEY not in finding.detail + finding.fix
    return finding


async def test_endpoints_are_asked_for_their_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    application = web.Application()
    application.router.add_get("/v1/models", models)
    async with TestServer(application) as server:
        url = str(server.make_url("/v1"))
        missing = await found(tmp_path / "0", url, "auxiliary.judge.model=judge-1")
        assert (missing.status, "JUDGE_KEY" in missing.fix) == ("failed", True)
        monkeypatch.setenv("JUDGE_KEY", "another")
        refused = await found(tmp_path / "1", url, "auxiliary.judge.model=judge-1")
        assert (refused.status, "does not accept the key" in refused.detail) == ("warning", True)
        monkeypatch.setenv("JUDGE_KEY", KEY)
        assert (await found(tmp_path / "2", url, "auxiliary.judge.model=judge-1")).status == "ok"
        unknown = await found(tmp_path / "3", url, "auxiliary.judge.model=jugde-1")
        assert (unknown.status, "judge-1, judge-2" in unknown.detail) == ("failed", True)
        elsewhere = await found(tmp_path / "4", str(server.make_url("/v2")), "auxiliary.judge.model=judge-1")
        assert elsewhere.status == "warning"
    silent = await found(tmp_path / "5", url, "auxiliary.judge.model=judge-1")
    assert (silent.status, "does not answer" in silent.detail) == ("failed", True)


async def test_without_auxiliary_models_nothing_is_asked(tmp_path: Path) -> None:
    (finding,) = await endpoints(run_that_wants(tmp_path))
    assert finding.status == "ok"
