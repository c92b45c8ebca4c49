"""Settings of the inference servers."""

from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from asearch.configuration.transfer import check_delta, check_way
from asearch.errors import ConfigError

KINDS = ("embedded", "sglang")
DEVICES = ("auto", "cpu", "cuda")
START_TIMEOUTS_S = {"embedded": 120.0, "sglang": 900.0}
"""SGLang imports for a minute of CPU, loads a model that may be large, and compiles on GPUs."""
OWNED_FLAGS = {
    "--model-path": "the run's model is served",
    "--model": "the run's model is served",
    "--host": "servers that are started here listen on loopback only",
    "--port": "each engine takes a free one",
    "--device": "set engine.device",
    "--weight-version": "the loaded policy version is its name",
    "--skip-tokenizer-init": "stop strings need the tokenizer",
    "--config": "a file could set any of the others",
    "--api-key": "the server is on loopback, and keys are never in settings or command lines",
    "--admin-api-key": "the server is on loopback, and keys are never in settings or command lines",
}
"""Flags of SGLang that the engine sets itself, each with the reason."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The inference servers."""

    kind: str = "embedded"
    """`embedded`, or `sglang`: real SGLang servers."""
    count: int = 1
    urls: list[str] = []
    """SGLang servers that run already, one per engine: attached to, neither started nor ended. Empty: servers are started."""
    python: str | None = None
    """Interpreter of SGLang's environment; unset means `.venv-sglang/bin/python`."""
    device: str = "auto"
    """Of SGLang: `cpu`, `cuda`, or `auto`: CUDA where there is a driver."""
    args: list[str] = []
    """Flags of `sglang.launch_server`, passed on as they are; one that is set by default as well is replaced."""
    threads: int = 1
    max_running_requests: int = 128
    max_pending: int | None = None
    """Requests that may wait in an engine besides those it runs; unset: a quarter of these. The others wait in the drivers."""
    max_total_tokens: int = 65536
    """Tokens of running requests; of SGLang on CPU alone, on CUDA its memory decides."""
    stream_s: float = 0.25
    """Of the embedded server: how long sampled tokens wait for others before they are streamed. What a killed engine has not
    streamed is lost."""
    step_delay_s: float = 0.0
    """Of the embedded server: added to every step, so that a benchmark has the capacity of a slower machine."""
    start_timeout_s: float | None = None
    """Until a server is ready; unset means 120 for the embedded one, 900 for SGLang."""
    transfer: str = "shared"
    """How published weights come to an engine: `shared`, a folder that it sees; `http`, pulled from the trainer's host;
    `broadcast`, a collective, and `http` where that fails."""
    delta: str = "off"
    """Of versions that are pulled: `off`, all of it; `auto`, what has changed since the version that lies here, as long as that
    comes sooner; `always`, whenever the trainer's host has the older version too. Pays for bf16 weights at small learning rates
    on slow links."""
    health_interval_s: float = 10.0
    health_timeout_s: float = 30.0
    """A server that twice in a row does not say within so long that it is well is taken for hung, and started again."""
    max_restarts: int = 5
    """Failures of one server in `restart_period_s` that are answered by starting it again; at one more its engine gives up."""
    restart_period_s: float = 600.0

    @property
    def n_engines(self) -> int:
        """Engines of a run: one per server that is attached to, else `count`."""
        return len(self.urls) or self.count

    @property
    def start_limit_s(self) -> float:
        """How long a server may take until it is ready."""
        return START_TIMEOUTS_S[self.kind] if self.start_timeout_s is None else self.start_timeout_s


def check_engine(engine: EngineSettings) -> None:
    """Raises ConfigError where values are wrong or do not make sense together."""
    if engine.kind not in KINDS:
        raise ConfigError(
            f"engine.kind is {engine.kind!r}; it is 'embedded' (the default: small models on CPU) or 'sglang' (real servers)"
        )
    check_way(engine.transfer)
    check_delta(engine.delta, engine.transfer)
    if engine.device not in DEVICES:
        raise ConfigError(f"engine.device is {engine.device!r}; it is one of {', '.join(DEVICES)}")
    if engine.kind == "embedded" and (engine.urls or engine.args or engine.python):
        raise ConfigError("engine.urls, engine.args and engine.python are SGLang's: set engine.kind to 'sglang' too")
    if engine.urls and (engine.args or engine.python):
        raise ConfigError("engine.urls names servers that run already: engine.args and engine.python have no effect on them")
    if engine.urls and engine.count not in (1, len(engine.urls)):
        raise ConfigError(
            f"engine.count is {engine.count}, but engine.urls names {len(engine.urls)} servers: leave the count out"
        )
    for url in engine.urls:
        _check_url(url)
    if len(set(engine.urls)) != len(engine.urls):
        raise ConfigError("engine.urls names a server twice")
    for name, value in (("stream_s", engine.stream_s), ("step_delay_s", engine.step_delay_s)):
        if not 0.0 <= value < 60.0:
            raise ConfigError(f"engine.{name} must be from 0 to 60 seconds, got {value:g}")
    if engine.max_pending is not None and engine.max_pending < 0:
        raise ConfigError(f"engine.max_pending must not be negative, got {engine.max_pending}")
    check_args(engine.args)


def check_args(args: Sequence[str]) -> None:
    """Raises ConfigError for a flag that the engine owns, or for the beginning of one, which argparse takes for it."""
    for arg in args:
        flag = arg.partition("=")[0]
        owned = next((each for each in OWNED_FLAGS if len(flag) > len("--") and each.startswith(flag)), None)
        if owned is not None:
            raise ConfigError(f"engine.args may not hold {flag}: {OWNED_FLAGS[owned]}")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(f"engine.urls: {url!r} is not the address of a server; write it as http://HOST:PORT")
