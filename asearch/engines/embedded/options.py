"""Command line of the embedded engine; imports nothing heavy, so that mistakes are answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """How one server runs. Counts of tokens unless the name says otherwise."""

    model_path: str
    host: str
    port: int
    port_file: str | None
    threads: int
    max_running_requests: int
    max_total_tokens: int
    context_length: int | None
    cache_rows: int | None
    chunked_prefill_size: int
    stream_interval: int
    stream_seconds: float
    """Tokens are streamed after so long at the latest, however few they are; 0: after `stream_interval` tokens alone."""
    step_delay_ms: float
    tally: str | None
    incremental_streaming_output: bool
    weight_version: str
    seed: int
    die_with_parent: bool
    device: str = "cpu"
    """As torch names it."""


def parse(argv: Sequence[str] | None = None) -> Options:
    """Reads the command line; a mistake prints the usage and exits with status 2."""
    parser = argparse.ArgumentParser(prog="python -m asearch.engines.embedded", description=__doc__)
    add = parser.add_argument
    add("--model-path", required=True, help="Hugging Face folder of a Qwen2, Qwen3 or Llama model")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=30000, help="0 takes a free port (see --port-file)")
    add("--port-file", help="file to write the port into, once the server is ready")
    add("--threads", type=_positive, default=1, help="threads of torch")
    add("--max-running-requests", type=_positive, default=64)
    add("--max-total-tokens", type=_positive, default=1 << 20, help="tokens that running requests may reserve")
    add("--context-length", type=_positive, help="longest prompt and output together; default: the model's, up to 32768")
    add("--cache-rows", type=_positive, help="sequences kept for prefix reuse, running ones included")
    add("--chunked-prefill-size", type=_positive, default=2048, help="prompt tokens fed between two decoding steps")
    add("--stream-interval", type=_positive, default=1, help="tokens between two events of a stream")
    add("--stream-seconds", type=_not_negative, default=0.0, help="and stream what is there after so many seconds; 0: do not")
    add("--step-delay-ms", type=_not_negative, default=0.0, help="added to every step: the capacity of a slower machine")
    add("--tally", help="file that counts the tokens sampled, by this process and those before it")
    add("--incremental-streaming-output", action="store_true", help="stream events hold only what is new")
    add("--weight-version", default="default", help="name of the weights that are loaded at start")
    add("--dtype", choices=["float32", "auto"], default="float32", help="weights are computed with in fp32 always")
    add("--seed", type=int, default=0, help="of requests that bring no sampling_seed")
    add("--die-with-parent", action="store_true", help="end when the process that started this one ends (Linux)")
    add("--device", default="cpu", help="where to compute, e.g. cuda or cuda:1")
    given = vars(parser.parse_args(argv))
    del given["dtype"]
    return Options(**given)


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value
