"""What the connection says of itself in logs and errors."""

import logging

import pytest

from actors.runtime.platform import SystemPlatform
from actors.runtime.wire import Wire, without_user
from asearch.errors import BusError


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://viewer:secret@127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://token@127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("viewer:secret@127.0.0.1:4222", "127.0.0.1:4222"),
        ("cannot reach nats://viewer:se@cret@127.0.0.1:4222 now", "cannot reach nats://127.0.0.1:4222 now"),
    ],
)
def test_a_url_is_said_without_its_user(url: str, said: str) -> None:
    assert without_user(url) == said


async def test_no_password_is_in_a_log_line_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire("nats://viewer:secret@127.0.0.1:1", "someone", SystemPlatform())
    caplog.set_level(logging.DEBUG, "actors.runtime.wire")
    with pytest.raises(BusError) as caught:
        await wire.open(0.3)
    wire._closing = False  # pyright: ignore[reportPrivateUsage]
    await wire._on_disconnect()  # pyright: ignore[reportPrivateUsage]
    assert "127.0.0.1:1" in str(caught.value)
    assert "127.0.0.1:1" in caplog.text
    assert "secret" not in caplog.text + str(caught.value)
