import socket
import threading

import pytest

from schemas.framing import FrameError, read_frame, write_frame
from schemas.local import MAX_FRAME_BYTES


def test_frames_arrive_whole_and_in_order_and_the_end_is_none() -> None:
    ours, theirs = socket.socketpair()
    frames = [b"", b"x", bytes(range(256)) * 4096]

    def send() -> None:
        for frame in frames:
            write_frame(theirs, frame)
        theirs.close()

    thread = threading.Thread(target=send)
    thread.start()
    with ours:
        assert [read_frame(ours) for _ in frames] == frames
        assert read_frame(ours) is None
    thread.join(5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((MAX_FRAME_BYTES + 1).to_bytes(4, "little"), "the limit is"),
        (b"\x05\x00", "closed after 2 of 4"),
        (b"\x05\x00\x00\x00ab", "closed after 2 of 5"),
    ],
)
def test_oversize_and_torn_frames_are_errors(data: bytes, message: str) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.close()
    with ours, pytest.raises(FrameError, match=message):
        read_frame(ours)
