"""The exporter: what switches it on, what it sends, and that a collector that is away costs nothing."""

import asyncio
import os
import time
from typing import Any

import pytest

from actors.runtime import otlp
from actors.runtime.actor import Context
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.otlp import is_asked_for, tracing_of
from actors.runtime.platform import SystemPlatform
from actors.runtime.tracing import NO_TRACING, Span, SpanLink, Tracing, episode_context, turn_context
from asearch.errors import ConfigError
from schemas.events import EpisodeTaken
from tests.runtime.facts import call, requested
from tests.sim.scenario import SETTINGS
from tests.tracing.receiver import Receiver, receiving

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
DEAD = "http://127.0.0.1:9"
"""Nobody listens on the port of `discard`."""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def started(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Tracing:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return tracing_of("tool", "tool-0", "r", os.environ)


def span(episode: str = "e-0", **changes: Any) -> Span:
    root = episode_context("r", episode)
    return Span(
        **{"name": "turn 0", "context": turn_context("r", episode, 0), "parent": root, "start_ns": 1, "end_ns": 2} | changes
    )


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x/v1/metrics"}, False),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
    ],
)
def test_the_standard_variables_switch_it(environment: dict[str, str], asked: bool) -> None:
    assert is_asked_for(environment) is asked


@pytest.mark.parametrize(
    ("environment", "named"),
    [({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"), (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf")],
)
def test_what_there_is_not_is_refused(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        is_asked_for(environment)


def test_a_missing_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "EXPORTER", "opentelemetry.exporter.otlp.proto.absent")
    with pytest.raises(ConfigError, match=r"pip install 'asearch\[otel\]'"):
        tracing_of("tool", "tool-0", "r", ENDPOINT)


async def received(monkeypatch: pytest.MonkeyPatch, spans: list[Span], **environment: str) -> Receiver:
    with receiving() as receiver:
        tracing = started(monkeypatch, {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url} | environment)
        for each in spans:
            tracing.emit(each)
        await tracing.close(5.0)
    return receiver


async def test_a_span_arrives_as_it_was_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    link = SpanLink(episode_context("r", "e-1"), {"asearch.reward": 0.5})
    attributes = {"asearch.turn": 3, "gen_ai.response.finish_reasons": ["stop"], "asearch.correct": True}
    sent = span(kind="server", attributes=attributes, links=[link], error="too late")
    (found,) = (await received(monkeypatch, [sent])).spans
    assert (found.trace, found.id) == (f"{sent.context.trace_id:032x}", f"{sent.context.span_id:016x}")
    assert found.parent == f"{episode_context('r', 'e-0').span_id:016x}"
    assert (found.name, found.start_ns, found.end_ns, found.kind, found.failed) == ("turn 0", 1, 2, 2, True)
    assert found.attributes == attributes
    assert found.links == [(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}")]


async def test_the_resource_is_the_actor_whose_work_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    own, others = (await received(monkeypatch, [span(), span("e-1", actor="driver-3")])).spans
    assert own.resource["service.name"] == "asearch-tool" and own.actor == "tool-0"
    assert own.resource["asearch.run"] == "r" and own.pid is not None
    assert others.resource["service.name"] == "asearch-driver" and others.actor == "driver-3"
    assert others.pid is None


async def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=lab"}
    (found,) = (await received(monkeypatch, [span()], **names)).spans
    assert found.resource["service.name"] == "mine"
    assert found.resource["deployment.environment"] == "lab"


async def test_a_sampler_takes_or_leaves_whole_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    spans = [
        each
        for n in range(200)
        for each in (span(f"e-{n}"), span(f"e-{n}", context=turn_context("r", f"e-{n}", 1), name="turn 1"))
    ]
    traces = (await received(monkeypatch, spans, **ratio)).traces()
    assert 25 < len(traces) < 80
    assert {len(each) for each in traces.values()} == {2}


async def test_a_collector_that_is_away_slows_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BSP_MAX_QUEUE_SIZE": "1000", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100"}
    tracing = started(monkeypatch, {"OTEL_EXPORTER_OTLP_ENDPOINT": DEAD} | fast)
    slowest_s, begun_s = 0.0, time.perf_counter()
    for n in range(5000):
        before_s = time.perf_counter()
        tracing.emit(span(f"e-{n}"))
        slowest_s = max(slowest_s, time.perf_counter() - before_s)
        if n % 50 == 0:
            await asyncio.sleep(0.001)
    assert time.perf_counter() - begun_s < 3.0
    assert slowest_s < 0.5
    closing_s = time.perf_counter()
    await tracing.close(0.5)
    assert time.perf_counter() - closing_s < 1.0


async def appended(tracing: Tracing, tmp_path: Any) -> list[str | None]:
    """The headers of two facts that an actor appends."""
    platform = SystemPlatform()
    bus = MemoryBus(MemoryBroker(platform), "r", "driver-0", platform)
    await bus.open()
    await bus.ensure_topology()
    context = Context("r", tmp_path, SETTINGS, bus, platform, "driver-0", tracing)
    await context.bus.append(call("e-0", 0), "e-0")
    taken = EpisodeTaken(id="x", at_ns=1, episode="e-0", driver="driver-0", attempt=0, request=requested("e-0", 0))
    await context.bus.append(taken, "e-0")
    headers = [stored.traceparent for stored in await bus.read_key("trace", "e-0")]
    await bus.close()
    return headers


async def test_headers_are_there_where_it_is_on_and_only_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    assert await appended(NO_TRACING, tmp_path) == [None, None]
    tracing = started(monkeypatch, {"OTEL_EXPORTER_OTLP_ENDPOINT": DEAD})
    fact = call("e-0", 0)
    expected = [turn_context("r", "e-0", fact.turn).traceparent(), episode_context("r", "e-0").traceparent()]
    assert await appended(tracing, tmp_path) == expected
    await tracing.close(0.1)
