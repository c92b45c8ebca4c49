"""A real receiver of OTLP over HTTP, in a thread: it parses `ExportTraceServiceRequest` as collectors do and keeps the spans."""

import asyncio
import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse


@dataclass(frozen=True)
class Received:
    """A span as it came over the wire; identities in hex."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    start_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    resource: dict[str, Any]

    @property
    def actor(self) -> str:
        """Whose work it is."""
        return str(self.resource["service.instance.id"])

    @property
    def pid(self) -> int | None:
        """The process, where it reports its own work."""
        return None if "process.pid" not in self.resource else int(self.resource["process.pid"])


@dataclass
class Receiver:
    """What came in. `url` is what OTEL_EXPORTER_OTLP_ENDPOINT takes."""

    url: str = ""
    spans: list[Received] = field(default_factory=list[Received])
    n_requests: int = 0

    def traces(self) -> dict[str, list[Received]]:
        """Spans by trace, each identity once: a span that was reported again says the same."""
        traces: dict[str, dict[str, Received]] = {}
        for span in self.spans:
            traces.setdefault(span.trace, {})[span.id] = span
        return {trace: list(spans.values()) for trace, spans in traces.items()}

    async def take(self, request: web.Request) -> web.Response:
        """One export."""
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.n_requests += 1
        self.spans += _spans(ExportTraceServiceRequest.FromString(body))
        return web.Response(body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf")


def _spans(request: ExportTraceServiceRequest) -> Iterator[Received]:
    for of_resource in request.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield Received(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    kind=span.kind,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    failed=span.status.code == 2,
                    attributes=_attributes(span.attributes),
                    links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    resource=resource,
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(MessageToDict(pair.value)) for pair in pairs}


def _value(value: dict[str, Any]) -> Any:
    ((kind, content),) = value.items() if value else (("none", None),)
    if kind == "arrayValue":
        return [_value(each) for each in content.get("values", [])]
    return int(content) if kind == "intValue" else content


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port of the loopback."""
    receiver, ready, ended = Receiver(), threading.Event(), threading.Event()

    async def serve() -> None:
        application = web.Application(client_max_size=64 << 20)
        application.router.add_post("/v1/traces", receiver.take)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await asyncio.to_thread(ended.wait)
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10.0)
    try:
        yield receiver
    finally:
        ended.set()
        thread.join(10.0)
