"""Weight folders, a source that serves them, and a network between that can be told to misbehave."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import xxhash
from safetensors.numpy import save_file

from asearch.weights.checking import describe, file_places
from asearch.weights.ranges import Origin
from asearch.weights.serving import announce
from schemas.records import ShardFile, WeightManifest

TOKEN = "a-token"  # noqa: S105


def write_folder(
    folder: Path, seed: int = 0, sizes: tuple[int, ...] = (1000, 70_001, 0, 300_000), n_shards: int = 2
) -> WeightManifest:
    """Shards of random float32 tensors of these sizes, an index and a configuration."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for k in range(n_shards):
        tensors = {f"layer.{k}.{i}": rng.standard_normal(n, dtype=np.float32) for i, n in enumerate(sizes)}
        save_file(tensors, folder / f"model-{k + 1:05d}-of-{n_shards:05d}.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    return described(folder)


def described(folder: Path) -> WeightManifest:
    """What would be announced of a folder."""
    shards: list[ShardFile] = []
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        extents = [place.extent for place in file_places(path)]
        checksums = {extent.name: xxhash.xxh3_128_hexdigest(data[extent.start : extent.end]) for extent in extents}
        shards.append(ShardFile(name=path.name, size_bytes=len(data), checksums=checksums))
    return describe(WeightManifest(path=str(folder), shards=shards))


@dataclass
class Source:
    """A real serving process."""

    root: Path
    port: int
    process: "subprocess.Popen[bytes]"
    announced: list[WeightManifest] = field(default_factory=list[WeightManifest])

    @property
    def list_path(self) -> Path:
        return self.root.parent / "announced"

    def offer(self, *manifests: WeightManifest) -> None:
        """Exactly these may be pulled."""
        announce(self.list_path, manifests)

    def origin(self, port: int | None = None, timeout_s: float = 5.0) -> Origin:
        """Its address, or that of a proxy before it."""
        return Origin(f"http://127.0.0.1:{port or self.port}", TOKEN, timeout_s)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Source]:
    """A source of `folder / published`."""
    root, token, port_file = folder / "published", folder / "token", folder / "port"
    root.mkdir(exist_ok=True)
    token.write_text(TOKEN)
    command = [sys.executable, "-m", "asearch.weights.serving", "--root", str(root), "--announced", str(folder / "announced")]
    command += ["--token-file", str(token), "--port-file", str(port_file)]
    process = subprocess.Popen([*command, "--die-with-parent"])
    try:
        deadline = time.monotonic() + 20
        while not port_file.is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        yield Source(root, int(port_file.read_text()), process)
    finally:
        process.kill()
        process.wait()


def kill_puller(
    code: str, source: Source, manifest: WeightManifest, root: Path, *, after_bytes: int, pause_s: float, lag_s: float = 0.0
) -> None:
    """Run the code, which pulls into `root`, and SIGKILL it once so much has passed; what comes after that comes slowly."""
    arrived = threading.Event()

    def slow(data: bytes) -> bytes:
        if network.n_bytes > after_bytes:
            arrived.set()
            time.sleep(pause_s)
        return data

    network = Network(source.port, slow)
    told = root.with_name("manifest.json")
    told.write_bytes(msgspec.json.encode(manifest))
    process = subprocess.Popen([sys.executable, "-c", code, str(told), source.origin(network.port).url, str(root)])
    assert arrived.wait(20)
    time.sleep(lag_s)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    told.unlink()


class Network:
    """A TCP proxy before a source. `touch` sees every piece that the source sends and may change it; None cuts the connection."""

    def __init__(self, port: int, touch: Callable[[bytes], bytes | None]) -> None:
        self._target = port
        self._touch = touch
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.n_connections = 0
        self.n_bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.n_connections += 1
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                threading.Thread(target=self._forward, args=(client, server, None), daemon=True).start()
                threading.Thread(target=self._forward, args=(server, client, self._touch), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, touch: Callable[[bytes], bytes | None] | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if touch is not None:
                    self.n_bytes += len(data)
                    changed = touch(data)
                    if changed is None:
                        break
                    data = changed
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
