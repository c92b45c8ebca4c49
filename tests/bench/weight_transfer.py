"""How fast published weights travel, checked, next to raw copies and sockets, and for how long an update pauses generation.

Run it as `python -m tests.bench.weight_transfer [--mib 512] [--rounds 5] [--updates 40] [--json]`. Rates are medians of rounds in
which every way has its turn; ratios are medians of the rounds' own ratios. As root also between two network namespaces.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from asearch.weights.checking import check_weights
from asearch.weights.pulling import Pull
from asearch.weights.ranges import Origin
from schemas.records import WeightManifest
from tests.weights.folders import TOKEN, write_folder

BLOCK_BYTES = 1 << 20
HERE, THERE = "10.197.43.1", "10.197.43.2"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=["send", "receive", "land", "pull"], help="of a child process of this benchmark")
    parser.add_argument("rest", nargs="*")
    given = parser.parse_args()
    if given.role is not None:
        ROLES[given.role](*given.rest)
        return
    root = Path(tempfile.mkdtemp(prefix="transfer-bench-", dir="/dev/shm"))
    try:
        manifest = write_folder(root / "published" / "v1.0", sizes=(4 << 20,) * (given.mib // 16), n_shards=1)
        told: dict[str, Any] = {"mib": given.mib, "rounds": given.rounds, "one_host": rates(root, manifest, given.rounds, (), ())}
        if os.geteuid() == 0 and shutil.which("ip"):
            with namespaces() as (here, there):
                told["namespaces"] = rates(root, manifest, given.rounds, here, there)
        else:
            told["namespaces"] = "skipped: it takes root and the command ip"
        told["pause"] = {way: asyncio.run(pauses(root, way, given.updates)) for way in ("shared", "http")}
    finally:
        shutil.rmtree(root)
    if given.json:
        print(json.dumps({"weight_transfer": told}))
        return
    for name, values in told.items():
        print(name, json.dumps(values, indent=1) if isinstance(values, dict) else values)


def rates(root: Path, manifest: WeightManifest, rounds: int, here: tuple[str, ...], there: tuple[str, ...]) -> dict[str, float]:
    """MB/s of every way, by rounds."""
    size = sum(shard.size_bytes for shard in manifest.shards)
    file = Path(manifest.path) / manifest.shards[0].name
    address = THERE if there else "127.0.0.1"
    (root / "manifest").write_bytes(msgspec.msgpack.encode(manifest))
    found: list[dict[str, float]] = []
    with source(root, manifest, address, there) as url:
        for _ in range(rounds):
            one = {
                "copy": size / copied_s(file, root / "copy"),
                "check": size / timed(check_weights, Path(manifest.path), manifest),
            }
            for role in ("receive", "land"):
                one[f"socket_{role}"] = size / raw_s(root, file, address, role, here, there)
            one["first_pull"] = size / pulled_s(root, url, here)
            (root / "pulled" / "v1.0").rename(root / "pulled" / "v0.9")
            one["pull"] = size / pulled_s(root, url, here, "v0.9")
            shutil.rmtree(root / "pulled")
            found.append(one)
            print("round", {name: round(value / 1e6) for name, value in one.items()}, file=sys.stderr, flush=True)
    told = {f"{name}_MB_s": round(statistics.median(one[name] for one in found) / 1e6) for name in found[0]}
    ratios = {
        "check/copy": ("check", "copy"),
        "pull/socket_land": ("pull", "socket_land"),
        "pull/socket_receive": ("pull", "socket_receive"),
        "first_pull/socket_land": ("first_pull", "socket_land"),
    }
    return told | {key: round(statistics.median(one[a] / one[b] for one in found), 2) for key, (a, b) in ratios.items()}


def timed(call: Any, *arguments: Any) -> float:
    begun = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - begun


def copied_s(file: Path, to: Path) -> float:
    """A copy from shared memory to shared memory within the kernel."""
    begun = time.perf_counter()
    with file.open("rb", buffering=0) as source, to.open("wb", buffering=0) as sink:
        size = os.fstat(source.fileno()).st_size
        at = 0
        while at < size:
            at += os.sendfile(sink.fileno(), source.fileno(), at, size - at)
    elapsed = time.perf_counter() - begun
    to.unlink()
    return elapsed


def child(prefix: tuple[str, ...], role: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [*prefix, sys.executable, "-m", "tests.bench.weight_transfer", "--role", role, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def raw_s(root: Path, file: Path, address: str, role: str, here: tuple[str, ...], there: tuple[str, ...]) -> float:
    """One connection, sendfile on one side; on the other the bytes are thrown away, or written to shared memory."""
    sender = child(there, "send", str(file), address)
    assert sender.stdout is not None
    port = sender.stdout.readline().strip()
    receiver = child(here, role, address, port, str(root / "landed"))
    elapsed = float(receiver.communicate()[0])
    sender.wait()
    (root / "landed").unlink(missing_ok=True)
    return elapsed


def pulled_s(root: Path, url: str, here: tuple[str, ...], *spare: str) -> float:
    """A pull by an engine's process; `spare` is the folder that it may write over, as it may from the third version on."""
    return float(child(here, "pull", str(root / "manifest"), url, str(root / "pulled"), *spare).communicate()[0])


def send(file: str, address: str) -> None:
    listener = socket.create_server((address, 0))
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    with open(file, "rb") as source, connection:
        connection.sendfile(source)


def receive(address: str, port: str, path: str, lands: bool = False) -> None:
    block = memoryview(bytearray(BLOCK_BYTES))
    with socket.create_connection((address, int(port))) as connection:
        begun = time.perf_counter()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600) if lands else -1
        while n := connection.recv_into(block):
            if lands:
                os.write(handle, block[:n])
        print(time.perf_counter() - begun)


def pull(manifest: str, url: str, to: str, *spare: str) -> None:
    announced = msgspec.msgpack.decode(Path(manifest).read_bytes(), type=WeightManifest)
    over = Path(to) / spare[0] if spare else None
    print(Pull(announced, Origin(url, TOKEN), Path(to), 2, threading.Event(), over).run().elapsed_s)


ROLES: dict[str, Any] = {
    "send": send,
    "receive": receive,
    "land": lambda *arguments: receive(*arguments, lands=True),
    "pull": pull,
}


@contextlib.contextmanager
def source(root: Path, manifest: WeightManifest, address: str, there: tuple[str, ...]) -> Iterator[str]:
    """The serving process, as a trainer starts it."""
    from asearch.weights.serving import announce

    (root / "token").write_text(TOKEN)
    announce(root / "announced", [manifest])
    (root / "port").unlink(missing_ok=True)
    command = [*there, sys.executable, "-m", "asearch.weights.serving", "--root", str(root / "published"), "--bind", address]
    command += ["--announced", str(root / "announced"), "--token-file", str(root / "token"), "--port-file", str(root / "port")]
    process = subprocess.Popen(command)
    try:
        while not (root / "port").is_file():
            assert process.poll() is None
            time.sleep(0.01)
        yield f"http://{address}:{(root / 'port').read_text().strip()}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Two network namespaces with one cable between them; the prefixes of commands that run in them."""
    names = [f"transfer-bench-{os.getpid()}-{n}" for n in range(2)]
    cables = [f"tb{os.getpid() % 100000}{n}" for n in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        for name, cable, address in zip(names, cables, (HERE, THERE), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield ("ip", "netns", "exec", names[0]), ("ip", "netns", "exec", names[1])
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


async def pauses(root: Path, way: str, n_updates: int) -> dict[str, float]:
    """Seconds for which generation is suspended, with sixteen generations under way on a small embedded server."""
    from asearch.engines.client import EngineClient
    from tests.engines.servers_for_tests import running
    from tests.weights.scene import Scene

    folder = root / f"pause-{way}"
    folder.mkdir()
    with running(folder, "--max-running-requests", "16") as server:
        async with aiohttp.ClientSession() as session, Scene(folder, way) as scene:
            client = EngineClient(server.url, session)
            engine = scene.engine(client)
            await engine.serves(await scene.publish(server.folder / "v1"))
            engine.follower._pauses_s.clear()

            async def busy(number: int) -> None:
                for turn in range(10**9):
                    parameters = {"max_new_tokens": 200, "ignore_eos": True}
                    async for _ in client.generate([number, 5], parameters, rid=f"{way}-{number}-{turn}", timeout_s=300):
                        pass

            tasks = [asyncio.create_task(busy(number)) for number in range(16)]
            for n in range(n_updates):
                version = await scene.publish(server.folder / ("v1" if n % 2 else "v2"))
                await engine.serves(version)
                if n >= 3:
                    scene.delete(f"1.{n - 2}")
            gauges = engine.follower.gauges()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return {"n_updates": n_updates, "p50_s": round(gauges["pause_p50_s"], 4), "p99_s": round(gauges["pause_p99_s"], 4)}


if __name__ == "__main__":
    main()
