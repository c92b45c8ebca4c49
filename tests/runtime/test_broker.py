"""Starting the broker process."""

import socket
import sys
from pathlib import Path

import pytest

from actors.runtime import broker as broker_module
from actors.runtime.broker import answers, find_broker, start_broker
from actors.runtime.platform import SystemPlatform
from asearch.errors import BusError


async def test_it_starts_on_loopback_and_stops(tmp_path: Path) -> None:
    broker = await start_broker(tmp_path / "deep" / "er", SystemPlatform())
    assert await answers(broker.port)
    assert "sync_interval: always" in (tmp_path / "deep" / "er" / "nats.conf").read_text()
    assert not await answers(broker.port, "another")
    assert await find_broker(broker.folder) == broker.url
    assert await find_broker(tmp_path) is None
    await broker.stop()
    assert await find_broker(broker.folder) is None
    assert not await answers(broker.port)
    assert broker.process.returncode is not None
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir() if "version" in path.name] == []


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BusError, match=f"port {port} .* taken"):
            await start_broker(tmp_path, SystemPlatform(), port=port)
        assert not await answers(port)


async def test_a_server_that_ends_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "configuration", lambda _folder, _port: "no such option at all {")
    with pytest.raises(BusError, match=r"(?s)ended with status 1.*Parse error"):
        await start_broker(tmp_path, SystemPlatform())


async def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "SERVER_VERSION", "1.0.0")
    with pytest.raises(BusError, match=r"1\.0\.0 is needed"):
        await start_broker(tmp_path, SystemPlatform())


async def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BusError, match="just setup"):
        await start_broker(tmp_path, SystemPlatform())
