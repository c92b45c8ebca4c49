"""What deltas of weights save: their size by learning rate, and their time next to whole pulls by the speed of the link.

Run it as `python -m tests.bench.weight_delta [--million 64] [--rounds 3] [--gbits 1 2 0] [--published OLD NEW] [--json]`. Weights
are random and trained by AdamW on random gradients, as float32 inside, and published as asked for; `--published` adds that of a
delta between two folders that a trainer has published. Times take root and the commands ip and tc: source and puller are in two
network namespaces with a link of that rate between; making the delta, applying and checking it are in them. Medians of rounds.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import torch
from safetensors.torch import save_file

from asearch.weights import delta_serving
from asearch.weights.checking import BLOCK_BYTES
from asearch.weights.delta import OpenTensor, Patch, alike, head_bytes, part_bytes, write_delta
from asearch.weights.delta_pulling import DeltaPull
from asearch.weights.pulling import Pull
from asearch.weights.ranges import Origin
from asearch.weights.serving import announce
from schemas.records import WeightManifest
from tests.bench.weight_transfer import THERE, namespaces, source
from tests.weights.folders import TOKEN, described

WARM_STEPS = 5
SIZES = ((1e-6, "bfloat16", 1), (1e-6, "bfloat16", 4), (1e-5, "bfloat16", 1), (1e-3, "bfloat16", 1), (1e-6, "float32", 1))
"""Learning rate, type, steps between two versions."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", type=int, default=64, help="elements of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gbits", nargs="*", type=float, default=[0.5, 1, 2, 4, 8, 0], help="of the link; 0 is as fast as it is")
    parser.add_argument("--published", nargs=2, type=Path, default=None, metavar=("OLD", "NEW"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=["pull"], help="of a child process of this benchmark")
    parser.add_argument("rest", nargs="*")
    given = parser.parse_args()
    if given.role is not None:
        pull(*given.rest)
        return
    torch.set_num_threads(1)
    told: dict[str, Any] = {"million": given.million, "rounds": given.rounds}
    if given.published is not None:
        told["published"] = size(*given.published)
    root = Path(tempfile.mkdtemp(prefix="delta-bench-", dir="/dev/shm"))
    try:
        told["sizes"] = []
        for lr, dtype, n_steps in SIZES:
            make_versions(root, given.million, lr, dtype, n_steps)
            one = {"lr": lr, "dtype": dtype, "steps": n_steps, **size(root / "published" / "v1.0", root / "published" / "v1.1")}
            told["sizes"].append(one)
            print(one, file=sys.stderr, flush=True)
        make_versions(root, given.million, 1e-6, "bfloat16", 1)
        with namespaces() as (here, there):
            told["links"] = [link(root, gbits, given.rounds, here, there) for gbits in given.gbits]
    finally:
        shutil.rmtree(root)
    print(json.dumps({"weight_delta": told}, indent=None if given.json else 1))


def make_versions(root: Path, million: int, lr: float, dtype: str, n_steps: int) -> None:
    """`published/v1.0` and `published/v1.1`: a model of tensors of 4 M elements, and it again after so many steps."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(1 << 22) * 0.02) for _ in range(max(1, million // 4))]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(WARM_STEPS + n_steps + 1):
        if step in (WARM_STEPS, WARM_STEPS + n_steps):
            folder = root / "published" / ("v1.0" if step == WARM_STEPS else "v1.1")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            tensors = {f"layer.{n}": weight.detach().to(getattr(torch, dtype)) for n, weight in enumerate(weights)}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for weight in weights:
            weight.grad = torch.randn_like(weight) * 1e-3
        optimizer.step()


def size(old: Path, new: Path) -> dict[str, float]:
    """The share of the bytes that the delta is, at any size; MB of weights made and applied in a second of a core."""
    with contextlib.ExitStack() as stack:
        before: dict[str, OpenTensor] = {}
        after: list[OpenTensor] = []
        for folder in (old, new):
            after = delta_serving.opened_tensors(stack, folder, (path.name for path in folder.iterdir()))
            before = before or {tensor.place.extent.name: tensor for tensor in after}
        n_bytes = sum(tensor.place.extent.end - tensor.place.extent.start for tensor in after)
        sink = stack.enter_context(tempfile.TemporaryFile(dir="/dev/shm"))
        begun = time.process_time()
        write_delta(before, after, sink, 1 << 62)
        made_s = time.process_time() - begun
        whole = stack.enter_context(tempfile.TemporaryFile(dir="/dev/shm"))
        begun = time.process_time()
        apply(sink, before, after, whole.fileno())
        applied_s = time.process_time() - begun
        share = sink.seek(0, 2) / n_bytes
    return {
        "mib": round(n_bytes / 2**20, 1),
        "share": round(share, 4),
        "made_MB_per_cpu_s": rate(n_bytes, made_s),
        "applied_MB_per_cpu_s": rate(n_bytes, applied_s),
    }


def apply(delta: IO[bytes], old: Mapping[str, OpenTensor], new: Sequence[OpenTensor], handle: int) -> None:
    """Write the new tensors into a file, and hash them."""
    delta.seek(0)
    for n_bytes, tensor in zip(part_bytes(delta.read(head_bytes(len(new))), len(new)), new, strict=True):
        patch = Patch(alike(old, tensor.place), OpenTensor(handle, tensor.place))
        for at in range(0, n_bytes, BLOCK_BYTES):
            patch.feed(memoryview(delta.read(min(BLOCK_BYTES, n_bytes - at))))
        patch.checksum()


def link(root: Path, gbits: float, rounds: int, here: tuple[str, ...], there: tuple[str, ...]) -> dict[str, float]:
    """Seconds of a whole pull and of one by delta over a link of this rate."""
    found: dict[str, list[float]] = {"whole": [], "delta": []}
    shape(there, gbits)
    for _ in range(rounds):
        for way, times in found.items():
            times.append(pulled_s(root, way, here, there))
    told = {f"{way}_s": round(statistics.median(times), 3) for way, times in found.items()}
    told |= {"gbit_s": gbits, "whole/delta": round(statistics.median(a / b for a, b in zip(*found.values(), strict=True)), 2)}
    print(told, file=sys.stderr, flush=True)
    return told


def pulled_s(root: Path, way: str, here: tuple[str, ...], there: tuple[str, ...]) -> float:
    """One pull of v1.1 from a source that has made no delta yet, into a folder that holds v1.0."""
    pulled = root / "pulled"
    shutil.rmtree(pulled, ignore_errors=True)
    shutil.copytree(root / "published" / "v1.0", pulled / "v1.0")
    manifests = [described(root / "published" / name) for name in ("v1.0", "v1.1")]
    (root / "manifest").write_bytes(msgspec.msgpack.encode(manifests[1]))
    with source(root, manifests[1], THERE, there) as url:
        announce(root / "announced", manifests)
        command = [*here, sys.executable, "-m", "tests.bench.weight_delta", "--role", "pull", way, str(root / "manifest"), url]
        told = subprocess.run([*command, str(pulled)], stdout=subprocess.PIPE, text=True, check=True)
    return float(told.stdout)


def pull(way: str, manifest: str, url: str, to: str) -> None:
    announced = msgspec.msgpack.decode(Path(manifest).read_bytes(), type=WeightManifest)
    given = (announced, Origin(url, TOKEN), Path(to), 2, threading.Event())
    each = DeltaPull(*given, base=Path(to) / "v1.0") if way == "delta" else Pull(*given)
    print(each.run().elapsed_s)


def shape(there: tuple[str, ...], gbits: float) -> None:
    """Give the cable of the source's namespace a rate."""
    cables = subprocess.run([*there, "ip", "-o", "link"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    (cable,) = [name for line in cables if (name := line.split()[1].split("@")[0].rstrip(":")).startswith("tb")]
    subprocess.run([*there, "tc", "qdisc", "del", "dev", cable, "root"], stderr=subprocess.DEVNULL, check=False)
    if gbits:
        tbf = ["tbf", "rate", f"{gbits}gbit", "burst", "2mb", "latency", "50ms"]
        subprocess.run([*there, "tc", "qdisc", "replace", "dev", cable, "root", *tbf], check=True)


def rate(n_bytes: float, elapsed_s: float) -> int:
    """MB/s."""
    return round(n_bytes / elapsed_s / 1e6)


if __name__ == "__main__":
    main()
