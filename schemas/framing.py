"""Frames on a blocking socket: a 4-byte little-endian length and that many bytes (`schemas.local` says what they hold)."""

import socket

from schemas.local import MAX_FRAME_BYTES

HEADER_BYTES = 4


class FrameError(ConnectionError):
    """The peer closed the channel inside a frame, or announced a frame over the limit."""


def read_frame(sock: socket.socket) -> bytes | None:
    """The next frame, or None if the peer closed the channel between two frames. Raises FrameError."""
    header = _read_exactly(sock, HEADER_BYTES, may_end=True)
    if header is None:
        return None
    n_bytes = int.from_bytes(header, "little")
    if n_bytes > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {n_bytes} bytes was announced; the limit is {MAX_FRAME_BYTES}")
    return _read_exactly(sock, n_bytes, may_end=False)


def write_frame(sock: socket.socket, payload: bytes) -> None:
    """Send one frame. Raises FrameError if it is over the limit, OSError if the peer is gone."""
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(payload)} bytes is over the limit of {MAX_FRAME_BYTES}")
    sock.sendall(len(payload).to_bytes(HEADER_BYTES, "little"))
    sock.sendall(payload)


def _read_exactly(sock: socket.socket, n_bytes: int, may_end: bool) -> bytes | None:
    buffer = bytearray(n_bytes)
    view, n_read = memoryview(buffer), 0
    while n_read < n_bytes:
        n = sock.recv_into(view[n_read:])
        if n == 0:
            if may_end and n_read == 0:
                return None
            raise FrameError(f"the channel closed after {n_read} of {n_bytes} bytes")
        n_read += n
    return bytes(buffer)
