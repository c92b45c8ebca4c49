"""`python -m tests.gpu`: what only a GPU can show, part by part; a part whose needs are not here is skipped by name.

`--device cpu --tiny` runs the same code on a CPU with a tiny model. Exit status: 0 where no part failed, else 1. The last line
is JSON.
"""

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.gpu.checking import CPU, CUDA, FailedError, MissingError, Part, Place, missing

PACKAGES = ("torch", "megatron-core", "transformer-engine", "transformers", "sglang", "msgspec", "safetensors")


def parts() -> list[Part]:
    """All parts, in order; those whose modules cannot be imported say so when they are run."""
    trainer = ("torch", "megatron.core", "numpy", "msgspec", "safetensors", "xxhash", "structlog")
    engine = ("torch", "numpy", "msgspec", "safetensors", "aiohttp", "uvloop", "tokenizers")

    def of(module: str, function: str) -> Any:
        async def run(place: Place) -> dict[str, Any]:
            # Imported here: a missing package is the part's matter.
            found = __import__(f"tests.gpu.{module}", fromlist=[function])
            return await getattr(found, function)(place)

        return run

    return [
        Part("parity", "the trainer's device path against its CPU path, fp32", trainer, of("trainer", "parity")),
        Part("round_trip", "weights and checkpoint out and in again", trainer, of("trainer", "round_trip")),
        Part("speed", "trainer steps in bf16 on Qwen2.5-1.5B's shape", trainer, of("trainer", "speed")),
        Part("engine", "the embedded engine against itself on a CPU", engine, of("engines", "embedded")),
        Part("sglang", "a real SGLang server", engine, of("engines", "sglang")),
    ]


def main() -> int:
    """Parse the command line, run, tell; the exit status."""
    every = parts()
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--device", choices=(CUDA, CPU), default=CUDA)
    parser.add_argument("--tiny", action="store_true", help="a tiny model in place of Qwen2.5-1.5B's shape")
    parser.add_argument("--only", action="append", choices=[part.name for part in every], help="may be repeated")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bf16, for the utilisation; known for common GPUs")
    parser.add_argument("--folder", type=Path, help="for models, up to 10 GB; a temporary folder unless given")
    chosen = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(chosen.device), "parts": {}}
    with tempfile.TemporaryDirectory(prefix="asearch-gpu-", dir=chosen.folder) as root:
        for part in every:
            if chosen.only and part.name not in chosen.only:
                continue
            folder = Path(root) / part.name
            folder.mkdir()
            place = Place(chosen.device, chosen.tiny, folder, chosen.peak_tflops)
            result["parts"][part.name] = ended = run(part, place)
            print(told(part, ended), flush=True)
    print(json.dumps(result))
    return int(any(each["status"] == "failed" for each in result["parts"].values()))


def run(part: Part, place: Place) -> dict[str, Any]:
    """What came of a part: passed, failed or skipped, and why."""
    lacking = missing(part.needs)
    if not lacking and place.device == CUDA:
        import torch

        lacking = [] if torch.cuda.is_available() else ["a CUDA device"]
    if lacking:
        return {"status": "skipped", "why": f"not here: {', '.join(lacking)}"}
    begun_s = time.monotonic()
    try:
        found = asyncio.run(part.run(place))
    except MissingError as error:
        return {"status": "skipped", "why": f"not here: {error}"}
    except ModuleNotFoundError as error:
        return {"status": "skipped", "why": f"not here: {error.name}"}
    except FailedError as error:
        return {"status": "failed", "why": str(error)}
    except Exception as error:
        # Whatever it is, the other parts are still worth knowing.
        return {"status": "failed", "why": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {"status": "passed", "seconds": round(time.monotonic() - begun_s, 1), **found}


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {"python": platform.python_version(), "packages": {}}
    for name in PACKAGES:
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            found["packages"][name] = None
    if not missing(["torch"]):
        import torch

        if device == CUDA and torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            found |= {"device": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return found


def told(part: Part, ended: dict[str, Any]) -> str:
    """A part for people."""
    lines = [f"{part.name:<11} {ended['status']:<8} {part.about}"]
    for name, value in ended.items():
        if name not in ("status",):
            text = f"{value:,.4g}" if isinstance(value, float) else str(value)
            lines.append(f"    {name:<20} {text}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
