"""Start and stop of one server process."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import logging
import random
import signal
import socket
import sys
from pathlib import Path

import torch
import uvloop
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from asearch.engines.embedded.batch import Batch
from asearch.engines.embedded.body import Limits
from asearch.engines.embedded.options import Options
from asearch.engines.embedded.scheduler import Scheduler
from asearch.engines.embedded.server import Server
from asearch.engines.embedded.tally import Tally
from asearch.errors import EngineError, InputError
from asearch.models.config import ModelConfig
from asearch.models.decoder import Decoder
from asearch.models.kv_cache import KvCache
from asearch.models.tokenizer import Tokenizer
from asearch.models.weights import load_weights
from asearch.parent import die_with_parent

_DEFAULT_CONTEXT = 32768
_CACHE_BYTES = 64 << 30
"""Address space for the cache; only what is written becomes resident."""
_STOP_S = 1.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BODY_BYTES = 256 << 20
_SWITCH_S = 0.0005
"""Longest time for which the event loop or the scheduler's thread keeps the other from Python: the default of 5 ms is
about the length of a step, which has tens of points where it could be held up so long."""


def serve(options: Options) -> None:
    """Serves until SIGTERM or SIGINT. Raises `InputError` for a model or a device, `EngineError` for a port, not to be had."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.setswitchinterval(_SWITCH_S)
    _keep_freed_memory()
    if options.die_with_parent:
        die_with_parent(signal.SIGTERM)
    torch.set_num_threads(options.threads)
    device = _device(options.device)
    listener = _bind(options)
    config = ModelConfig.load(options.model_path)
    context_length = min(options.context_length or _DEFAULT_CONTEXT, config.max_positions)
    if options.context_length and options.context_length > config.max_positions:
        raise InputError(f"--context-length {options.context_length} exceeds the model's {config.max_positions}")
    tensors = load_weights(options.model_path, config)
    decoder = Decoder.from_tensors(config, tensors, context_length, device)
    del tensors
    cache = KvCache(config, _n_rows(options, config, context_length, device), context_length, device)
    tokenizer = _tokenizer(options.model_path)
    limits = _limits(options, config, context_length, tokenizer)
    batch = Batch(
        decoder,
        cache,
        options.weight_version,
        max_running=min(options.max_running_requests, max(1, cache.n_rows - 1)),
        max_total_tokens=options.max_total_tokens,
        prefill_tokens=options.chunked_prefill_size,
        stream_interval=options.stream_interval,
        bytes_of=tokenizer.token_bytes if tokenizer else _no_bytes,
        stream_s=options.stream_seconds,
    )
    uvloop.run(_serve(options, config, limits, batch, listener))


async def _serve(options: Options, config: ModelConfig, limits: Limits, batch: Batch, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    tally = Tally(Path(options.tally)) if options.tally else None
    scheduler = Scheduler(batch, loop, options.threads, step_delay_s=options.step_delay_ms / 1000, tally=tally)
    scheduler.start()
    server = Server(options, config, limits, scheduler)
    http = web.Server(server.handle, request_factory=_request, access_log=None, handler_cancellation=True)
    runner = web.ServerRunner(http, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=1024).start()
    port = int(listener.getsockname()[1])
    if options.port_file:
        target = Path(options.port_file)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(f"{port}\n")
        partial.replace(target)
    sys.stderr.write(f"ready http://{options.host}:{port}\n")
    sys.stderr.flush()
    await stop.wait()
    await close(runner, scheduler)


async def close(runner: web.ServerRunner, scheduler: Scheduler) -> None:
    """Ends connections and the scheduler's thread, each within `_STOP_S`: afterwards the event loop may be closed."""
    log = logging.getLogger(__name__)
    scheduler.stop()
    try:
        async with asyncio.timeout(_STOP_S):
            await runner.cleanup()
    except TimeoutError:
        log.warning("connections did not close within %s s", _STOP_S)
    if not await asyncio.to_thread(scheduler.join, _STOP_S):
        log.warning("a step did not end within %s s: the process ends in the middle of it", _STOP_S)


def _keep_freed_memory() -> None:
    """Tells glibc's allocator to reuse freed blocks instead of returning them to the system.

    Intermediate tensors of a step are larger than its threshold, so each would otherwise cost fresh page faults
    (measured: about a fifth of the time of a step). Where there is no glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_BODY_BYTES)


def _bind(options: Options) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as error:
        where = f"{options.host}:{options.port}"
        raise EngineError(f"cannot listen on {where}: {error.strerror}; choose another --port (0: any)") from error
    return listener


def _device(name: str) -> torch.device:
    """Raises InputError for a device that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: this server computes on cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here")
    return device


def _n_rows(options: Options, config: ModelConfig, context_length: int, device: torch.device) -> int:
    wanted = max(options.cache_rows or 2 * options.max_running_requests, options.max_running_requests + 1)
    # On a GPU the cache is taken at once: half of what the weights have left stays for what a step computes.
    at_most = _CACHE_BYTES if device.type == "cpu" else min(_CACHE_BYTES, torch.cuda.mem_get_info(device)[0] // 2)
    fitting = at_most // KvCache.size_bytes(config, 1, context_length)
    if fitting < 2:
        raise InputError(f"two sequences of {context_length} tokens do not fit in memory: lower --context-length")
    return min(wanted, fitting)


def _limits(options: Options, config: ModelConfig, context_length: int, tokenizer: Tokenizer | None) -> Limits:
    eos_ids = set(config.eos_ids)
    if tokenizer is not None and tokenizer.eos_id is not None:
        eos_ids.add(tokenizer.eos_id)
    return Limits(
        n_vocab=config.vocab_size,
        context_length=context_length,
        max_total_tokens=options.max_total_tokens,
        eos_ids=frozenset(token for token in eos_ids if token < config.vocab_size),
        tokenizer=tokenizer,
        seeds=itertools.count(random.Random(options.seed).getrandbits(63)),
    )


def _tokenizer(folder: str) -> Tokenizer | None:
    if (Path(folder) / "tokenizer.json").is_file():
        return Tokenizer.load(folder)
    return None


def _no_bytes(token_id: int) -> bytes:
    return b""
