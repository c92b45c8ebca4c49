"""Metrics of a run through the OpenTelemetry SDK: a Prometheus endpoint's text, and OTLP where the environment asks for it.

Nothing of OpenTelemetry is imported before a value is asked for.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from actors.runtime.following import View
from actors.runtime.measures import METRIC_BY_NAME, METRICS, Labels, Metric, measure
from actors.runtime.platform import Platform, SystemPlatform
from asearch.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from prometheus_client import CollectorRegistry

REFRESH_S = 5.0
"""How old the values that OTLP exports are at most."""
CLOSE_TIMEOUT_MS = 5000
EXTRA = "metrics need the extra 'otel': pip install 'asearch[otel]'"


class MetricsUnavailableError(ConfigError):
    """Metrics were asked for and what they need is not installed."""


def wants_otlp(environment: Mapping[str, str]) -> bool:
    """Whether metrics are to be pushed over OTLP, by the standard variables of OpenTelemetry."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    named = environment.get("OTEL_METRICS_EXPORTER", "").strip().lower()
    if named:
        return "otlp" in (each.strip() for each in named.split(","))
    return bool(environment.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"))


class Metrics:
    """The metrics of one run. All methods are called from the event loop that keeps the view.

    Values are taken from the view in that loop and held: exporters that have a thread of their own read what is held.
    `expected` are kind and id of the actors that should be there, so that one that never said a word is seen.
    """

    def __init__(
        self,
        run: str,
        view_of: Callable[[], View],
        *,
        expected: Iterable[tuple[str, str]] = (),
        platform: Platform | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.run = run
        self._view_of = view_of
        self._expected = tuple(expected)
        self._platform = platform or SystemPlatform()
        self._environment = os.environ if environment is None else environment
        self._held: dict[str, list[tuple[float, Labels]]] = {}
        self._provider: MeterProvider | None = None
        self._registry: CollectorRegistry | None = None

    def render(self) -> tuple[bytes, str]:
        """Body and content type for a Prometheus scrape. Raises MetricsUnavailableError without the extra `otel`."""
        self._start()
        self.refresh()
        from prometheus_client import generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

        assert self._registry is not None  # noqa: S101
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def refresh(self) -> None:
        """Take the values of this moment."""
        held: dict[str, list[tuple[float, Labels]]] = {}
        for value in measure(self._view_of(), self._platform.now_ns(), self._expected):
            held.setdefault(METRIC_BY_NAME[value.name].name, []).append((float(value.value), value.labels))
        self._held = held

    async def push(self) -> None:
        """Push over OTLP until cancelled, if the environment asks for it, else return at once."""
        if not wants_otlp(self._environment):
            return
        self._start()
        while True:
            self.refresh()
            await self._platform.sleep(REFRESH_S)

    def close(self) -> None:
        """Push what is held a last time, and end the exporters' threads."""
        provider, self._provider, self._registry = self._provider, None, None
        if provider is not None:
            provider.shutdown(CLOSE_TIMEOUT_MS)

    def _start(self) -> None:
        if self._provider is not None:
            return
        try:
            from opentelemetry.exporter.prometheus import PrometheusMetricReader
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.resources import Resource
            from prometheus_client import CollectorRegistry
        except ImportError as error:
            raise MetricsUnavailableError(f"{EXTRA} ({error})") from error
        self._registry = CollectorRegistry()
        readers: list[MetricReader] = [PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)]
        if wants_otlp(self._environment):
            readers.append(_otlp_reader())
        resource = Resource.create({"service.name": "asearch", "asearch.run": self.run})
        self._provider = MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
        meter = self._provider.get_meter("asearch")
        for metric in METRICS:
            self._observe(meter, metric)

    def _observe(self, meter: "Meter", metric: Metric) -> None:
        from opentelemetry.metrics import Observation

        def observe(_: "CallbackOptions") -> "list[Observation]":
            held = self._held.get(metric.name, ())
            return [Observation(value, {"run": self.run, **dict(labels)}) for value, labels in held]

        make = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
        make(metric.name, callbacks=[observe], unit=metric.unit, description=metric.meaning)


def _otlp_reader() -> "MetricReader":
    """Endpoint, headers, protocol and interval come from the environment, as OpenTelemetry documents them."""
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    except ImportError as error:
        raise MetricsUnavailableError(f"{EXTRA} ({error})") from error
    return PeriodicExportingMetricReader(OTLPMetricExporter())
