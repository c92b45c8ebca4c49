"""Tracing on the OpenTelemetry SDK: spans go to a collector over OTLP/HTTP, from a thread, in batches.

It is configured by OpenTelemetry's own environment variables alone, and off unless they name an OTLP endpoint or exporter.
The SDK is imported when it is on. Its queue is bounded: with a collector that cannot be reached spans are dropped, never waited
for.
"""

import asyncio
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from actors.runtime.tracing import NO_TRACING, Span, SpanContext, Tracing, context_of
from asearch.errors import ConfigError
from schemas.commands import Message
from schemas.events import Event

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.trace import SpanContext as OtelContext

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER = "opentelemetry.exporter.otlp.proto.http"
QUIET_S = 60.0
"""How often the same complaint about a collector is logged at most."""


def is_asked_for(environment: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces. Raises ConfigError if it asks for what there is not."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = {name.strip().lower() for name in environment.get("OTEL_TRACES_EXPORTER", "").split(",")} - {""}
    if "none" in exporters or (not exporters and not any(environment.get(name) for name in ENDPOINTS)):
        return False
    if exporters - {"otlp"}:
        raise ConfigError(f"OTEL_TRACES_EXPORTER is {environment['OTEL_TRACES_EXPORTER']!r}: traces go to otlp, or none")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        raise ConfigError(
            f"traces are sent as http/protobuf, not {protocol}: set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf and an "
            "endpoint that takes it (port 4318 of most collectors), or OTEL_TRACES_EXPORTER=none"
        )
    if not _is_installed():
        raise ConfigError(
            "the environment asks for OpenTelemetry traces, but the exporter is not installed: pip install 'asearch[otel]', "
            "or set OTEL_TRACES_EXPORTER=none"
        )
    return True


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec(f"{EXPORTER}.trace_exporter") is not None
    except ModuleNotFoundError:
        return False


def tracing_of(kind: str, actor_id: str, run: str, environment: Mapping[str, str] = os.environ) -> Tracing:
    """The tracing of one actor process, off unless the environment asks for it. Raises ConfigError.

    Resource attributes are those of OTEL_SERVICE_NAME (else `asearch-{kind}`) and OTEL_RESOURCE_ATTRIBUTES, and the actor's own;
    sampling is OTEL_TRACES_SAMPLER's, by trace, so that all processes take or leave the same episodes.
    """
    if not is_asked_for(environment):
        return NO_TRACING
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import sampling
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    for name in ("opentelemetry", "urllib3", "requests"):
        logging.getLogger(name).setLevel(logging.ERROR)
    complaints = _Seldom()
    for handler in logging.getLogger().handlers:
        handler.addFilter(complaints)
    sampler = sampling._get_from_env_or_default()  # pyright: ignore[reportPrivateUsage]
    return OtlpTracing(run, BatchSpanProcessor(OTLPSpanExporter()), sampler, Resources(kind, actor_id, run))


class _Seldom(logging.Filter):
    """Lets a record of the SDK's loggers pass once in QUIET_S: a collector that is away is no news every second."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("opentelemetry"):
            return True
        last_s = self._last_s.get(record.name)
        if last_s is not None and record.created - last_s < QUIET_S:
            return False
        self._last_s[record.name] = record.created
        return True


class Resources:
    """Whose work a span is: the process that reports it, or another actor of the run, as a recorded fact names it."""

    def __init__(self, kind: str, actor_id: str, run: str) -> None:
        from opentelemetry.sdk.resources import Resource

        base = Resource.create({"service.namespace": "asearch", "asearch.run": run})
        self._is_named = not str(base.attributes.get("service.name", "")).startswith("unknown_service")
        self._base = base
        self._others: dict[str, Resource] = {}
        self._actor_id = actor_id
        self.own = self._of(kind, actor_id).merge(Resource({"process.pid": os.getpid()}))

    def _of(self, kind: str, actor_id: str) -> "Resource":
        from opentelemetry.sdk.resources import Resource

        named = {} if self._is_named else {"service.name": f"asearch-{kind}"}
        return self._base.merge(Resource({**named, "service.instance.id": actor_id}))

    def of(self, actor_id: str | None) -> "Resource":
        """The resource of an actor's spans; None: this process."""
        if actor_id is None or actor_id == self._actor_id:
            return self.own
        if actor_id not in self._others:
            if len(self._others) >= 1000:
                self._others.clear()
            self._others[actor_id] = self._of(actor_id.partition("-")[0], actor_id)
        return self._others[actor_id]


class OtlpTracing:
    """Hands spans to a processor of the SDK. A span has an identity of its own, so it is made as a whole, by no tracer."""

    on = True

    def __init__(self, run: str, processor: "SpanProcessor", sampler: "Sampler", resources: Resources) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import Link, SpanKind, Status, StatusCode, TraceFlags
        from opentelemetry.trace import SpanContext as OtelContext

        self._run = run
        self._processor = processor
        self._sampler = sampler
        self._resources = resources
        self._scope = InstrumentationScope("asearch")
        self._kinds = {kind.name.lower(): kind for kind in SpanKind}
        self._span, self._link, self._context = ReadableSpan, Link, OtelContext
        self._sampled_flag = TraceFlags(TraceFlags.SAMPLED)
        self._fine = Status(StatusCode.UNSET)
        self._failed: Callable[[str], Any] = lambda why: Status(StatusCode.ERROR, why)

    def emit(self, span: Span) -> None:
        """Put a span into the queue, unless its trace is not sampled."""
        if not self._is_sampled(span.context.trace_id):
            return
        self._processor.on_end(
            self._span(
                name=span.name,
                context=self._otel(span.context, is_remote=False),
                parent=self._otel(span.parent, is_remote=True) if span.parent is not None else None,
                resource=self._resources.of(span.actor),
                attributes=span.attributes,
                links=[self._link(self._otel(link.context, is_remote=True), link.attributes) for link in span.links],
                kind=self._kinds[span.kind],
                status=self._fine if span.error is None else self._failed(span.error),
                start_time=span.start_ns,
                end_time=span.end_ns,
                instrumentation_scope=self._scope,
            )
        )

    def _otel(self, context: SpanContext, *, is_remote: bool) -> "OtelContext":
        return self._context(context.trace_id, context.span_id, is_remote, self._sampled_flag)

    def _is_sampled(self, trace_id: int) -> bool:
        return self._sampler.should_sample(None, trace_id, "").decision.is_sampled()

    def traceparent(self, message: Event | Message) -> str | None:
        """The header for what is said."""
        context = context_of(self._run, message)
        return None if context is None else context.traceparent(sampled=self._is_sampled(context.trace_id))

    async def flush(self, timeout_s: float) -> bool:
        """Send what is in the queue; whether that came to an end in time, delivered or not."""
        return await _in_daemon(lambda: self._processor.force_flush(), timeout_s)

    async def close(self, timeout_s: float) -> None:
        """Send what is in the queue as far as the time allows; the process may end at once after that."""
        await _in_daemon(self._processor.shutdown, timeout_s)


async def _in_daemon(call: Callable[[], object], timeout_s: float) -> bool:
    """Run a call in a thread that no end of the process waits for; whether it came to an end in time."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            call()
        finally:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="otlp", daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            await done.wait()
    except TimeoutError:
        return False
    return True
