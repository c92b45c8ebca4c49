"""Metrics of a run: what a scrape says equals the accounting, labels stay few, nothing is imported unused, OTLP is pushed."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from actors.runtime.bus import ConsumerInfo, StreamInfo
from actors.runtime.following import View, follow
from actors.runtime.measures import MAX_ACTORS, MAX_AGE, MAX_GAUGES, MAX_VALUES, METRICS, OTHER
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.metrics import Metrics, MetricsUnavailableError, wants_otlp
from actors.runtime.platform import SystemPlatform
from schemas.commands import Heartbeat
from schemas.events import EventRefused, EventRequeued, StepTrained
from schemas.records import Version
from tests.cli.audited import key_of, put
from tests.cli.frames import NOW_NS, busy_frame
from tests.evaluation.stories import Story, two_steps
from tests.runtime.facts import until

Scrape = dict[str, dict[tuple[tuple[str, str], ...], float]]


class Still(SystemPlatform):
    """A platform whose wall clock stands."""

    def now_ns(self) -> int:
        return NOW_NS


def scraped(metrics: Metrics) -> Scrape:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    found: Scrape = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "run"))
            assert labels not in found.setdefault(sample.name, {}), f"{sample.name}{labels} is there twice"
            found[sample.name][labels] = sample.value
    return found


def view_of(story: Story | None = None) -> View:
    frame = busy_frame(story)
    steps = frame.report.journal.steps
    for number, step in steps.items():
        steps[number] = msgspec.structs.replace(step, metrics={"entropy": 0.5 + number, "loss": 1.0})
    return View(report=frame.report, vitals=frame.vitals, queues=dict(frame.queues))


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    view = view_of()
    held = Metrics(
        "toy-1", lambda: view, platform=Still(), expected=[("grader", "grader-0"), ("grader", "grader-9")], environment={}
    )
    yield held
    held.close()


def test_a_scrape_says_what_the_accounting_says(metrics: Metrics) -> None:
    report, found = view_of().report, scraped(metrics)
    for purpose in ("train", "eval"):
        for state, n in report.accounts.terms(purpose).items():
            name = "asearch_episodes_open" if state in ("in_flight", "queued") else "asearch_episodes_total"
            assert found[name][("purpose", purpose), ("state", state)] == n
    assert found["asearch_episodes_unused_total"][("fate", "discarded"), ("reason", "no_signal")] == 2
    assert found["asearch_episodes_unused_total"][("fate", "dropped"), ("reason", "tool_outage")] == 1
    assert found["asearch_accounting_broken"][()] == 0
    assert found["asearch_run_ended"][()] == 1
    tokens = report.tokens()
    assert found["asearch_tokens_queued"][()] == tokens.pop("queued") > 0
    assert {dict(labels)["fate"]: n for labels, n in found["asearch_tokens_total"].items()} == tokens
    assert found["asearch_trained_tokens_total"] == {(("staleness", "0"),): 45, (("staleness", "1"),): 12}
    last = report.curve()[-1]
    for name, key in (("reward_mean", "reward"), ("accuracy", "accuracy"), ("searches_per_episode", "searches_per_episode")):
        assert found[f"asearch_{name}"][()] == pytest.approx(last[key], abs=1e-4)
    assert (found["asearch_staleness_max_steps"][()], found["asearch_staleness_bound_steps"][()]) == (1, 4)
    assert (found["asearch_step"][()], found["asearch_policy_step"][()], found["asearch_steps_planned"][()]) == (2, 2, 2)
    assert found["asearch_trainer_idle_ratio"][()] == report.journal.idle_fraction()
    assert found["asearch_queue_pending"][(("queue", "driver"),)] == 12
    assert found["asearch_queue_max_ack_pending"][(("queue", "driver"),)] == 1024


def test_actors_by_kind_and_id_also_those_that_never_said_a_word(metrics: Metrics) -> None:
    found = scraped(metrics)
    up = {dict(labels)["id"]: value for labels, value in found["asearch_actor_up"].items()}
    assert up["engine-0"] == 1 and up["tool-0"] == 0 and up["grader-9"] == 0
    assert (("id", "grader-9"), ("kind", "grader")) not in found["asearch_actor_heartbeat_age_seconds"]
    assert found["asearch_actor_heartbeat_age_seconds"][("id", "tool-0"), ("kind", "tool")] == pytest.approx(7.0)
    assert found["asearch_actor_gauge"][("id", "engine-0"), ("kind", "engine"), ("name", "n_running")] == 12
    assert found["asearch_engine_tokens_total"][(("id", "engine-0"),)] == 3000


def test_watched_numbers_of_the_last_update_are_scraped_by_name(metrics: Metrics) -> None:
    trained = [step.step for step in view_of().report.journal.in_order if not step.empty]
    assert scraped(metrics)["asearch_trainer_metric"] == {(("name", "entropy"),): 0.5 + trained[-1]}


def test_an_identity_that_does_not_hold_is_seen() -> None:
    view = view_of()
    view.report.accounts.purposes["train"].requested += 1
    assert scraped(Metrics("r", lambda: view, environment={}))["asearch_accounting_broken"][()] == 1


def test_what_is_gone_from_the_view_is_gone_from_the_scrape() -> None:
    view = view_of()
    metrics = Metrics("r", lambda: view, platform=Still(), environment={})
    assert len(scraped(metrics)["asearch_queue_pending"]) == 2
    view.queues = {"tool": ConsumerInfo("tool", 5, 7, 0, 1024)}
    assert scraped(metrics)["asearch_queue_pending"] == {(("queue", "tool"),): 5}


def test_no_label_has_unbounded_values() -> None:
    view = view_of()
    train = view.report.accounts.purposes["train"]
    train.dropped = Counter({f"reason-{n}": n + 1 for n in range(1000)})
    for n in range(2 * MAX_ACTORS):
        gauges = {f"g{each}": 0.0 for each in range(2 * MAX_GAUGES)}
        view.vitals.heard(Heartbeat(actor="tool", actor_id=f"t{n}", pid=n, at_ns=NOW_NS, state="ready", gauges=gauges))
    steps = view.report.journal.steps
    steps[1] = msgspec.structs.replace(steps[1], staleness=dict.fromkeys(range(1000), 1))
    found = scraped(Metrics("r", lambda: view, platform=Still(), environment={}))
    dropped = {dict(at)["reason"]: n for at, n in found["asearch_episodes_unused_total"].items() if ("fate", "dropped") in at}
    assert (
        len(dropped) <= MAX_VALUES + 1
        and sum(dropped.values()) == sum(view.report.reasons()["dropped"].values())
        and dropped[OTHER] > 0
    )
    assert len(found["asearch_actor_up"]) <= MAX_ACTORS
    per_actor = Counter(dict(labels)["id"] for labels in found["asearch_actor_gauge"])
    assert max(per_actor.values()) <= MAX_GAUGES
    ages = found["asearch_trained_tokens_total"]
    assert len(ages) <= MAX_AGE + 2 and sum(ages.values()) == sum(view.report.journal.staleness().values())


def everything() -> Metrics:
    """Metrics of a view that has a value of every kind."""
    view = view_of()
    gauges = {"engine": {"update_s": 0.1}, "tool": {"n_calls": 3.0, "n_errors": 1.0, "call_s": 0.2}, "trainer": {}}
    for kind, numbers in gauges.items():
        beat = Heartbeat(actor=kind, actor_id=kind, pid=1, at_ns=NOW_NS, state="ready", gauges=numbers)
        view.vitals.heard(msgspec.structs.replace(beat, version=Version(lineage=1, step=2)))
    view.streams["plan"] = StreamInfo("plan", "e", 1, 2, 2, 100, 1000)
    view.run_dir = Path("/")
    return Metrics("r", lambda: view, platform=Still(), environment={})


def test_every_metric_of_the_table_is_rendered_under_its_name_and_no_other() -> None:
    assert set(scraped(everything())) - {"target_info"} == {metric.exposed for metric in METRICS}


async def test_a_followed_run_has_streams_queues_and_dead_letters(tmp_path: Path) -> None:
    platform = SystemPlatform(0)
    broker = MemoryBroker(platform)
    bus = MemoryBus(broker, "r", "viewer", platform)
    story = two_steps()
    await put(bus, story)
    for sequence in (1, 2):
        refused = {"stream": "plan", "subject": "s", "sequence": sequence, "actor": "tool", "reason": "no", "data": b"x"}
        await bus.append(EventRefused(id=f"dead-{sequence}", at_ns=1, **refused), "plan", str(sequence))
    await bus.append(EventRequeued(id="again", at_ns=1, stream="plan", sequence=1, requeued=9), "plan", "1")
    async with follow(bus, tmp_path) as view:
        await until(lambda: view.dead.folded == 3 and "outcomes" in view.streams)
        metrics = Metrics("r", lambda: view, environment={})
        found = scraped(metrics)
        assert found["asearch_dead_letters_total"] == {(("state", "refused"),): 2, (("state", "requeued"),): 1}
        assert found["asearch_stream_used_bytes"][(("stream", "outcomes"),)] > 0
        assert found["asearch_stream_bound_bytes"][(("stream", "plan"),)] == 1 << 30
        assert found["asearch_disk_free_bytes"][(("disk", "runs"),)] > 0
        late = next(event for event in reversed(story.policy) if isinstance(event, StepTrained))
        again = msgspec.structs.replace(late, id="late", step=2, verdicts=[], staleness={4: 7}, n_tokens_trained=7)
        await bus.append(again, key_of(again))
        await until(lambda: 2 in view.report.journal.steps)
        assert scraped(metrics)["asearch_staleness_max_steps"][()] == 4, "a scrape is of its own moment"
        metrics.close()
    await bus.close()


def test_nothing_of_opentelemetry_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, actors.runtime.metrics as m; m.Metrics('r', lambda: None, environment={}).close();"
        "sys.exit(any(n.startswith(('opentelemetry', 'prometheus')) for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.prometheus", None)
    with pytest.raises(MetricsUnavailableError, match=r"pip install 'asearch\[otel\]'"):
        Metrics("r", View, environment={}).render()


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, True),
        ({"OTEL_METRICS_EXPORTER": "console, otlp"}, True),
        ({"OTEL_METRICS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_otlp_is_asked_for_by_the_standard_variables(environment: dict[str, str], wanted: bool) -> None:
    assert wants_otlp(environment) is wanted


async def test_otlp_metrics_reach_a_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[ExportMetricsServiceRequest] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"http://127.0.0.1:{server.server_port}/v1/metrics")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    view = view_of()
    metrics = Metrics("toy-1", lambda: view)
    pushing = asyncio.create_task(metrics.push())
    await until(lambda: len(received) > 1)
    pushing.cancel()
    with ThreadPoolExecutor(1) as threads:
        await asyncio.get_running_loop().run_in_executor(threads, metrics.close)
        await asyncio.get_running_loop().run_in_executor(threads, server.shutdown)
    points = {
        metric.name: metric for each in received[-1].resource_metrics for scope in each.scope_metrics for metric in scope.metrics
    }
    requested = [
        point.as_double
        for point in points["asearch.episodes"].sum.data_points
        if {pair.key: pair.value.string_value for pair in point.attributes}
        == {"run": "toy-1", "purpose": "train", "state": "requested"}
    ]
    assert requested == [view.report.accounts.terms("train")["requested"]]
