"""The hub's numbers for Prometheus. Needs the `metrics` extra; nothing here runs between two scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .._statistics import HubStatistics


class _HubCollector(Collector):
    def __init__(self, statistics: Callable[[], HubStatistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        now = self._statistics()
        yield GaugeMetricFamily("towline_sockets", "Sockets that are open.", now.sockets)
        yield GaugeMetricFamily("towline_streams", "Event streams that are open.", now.streams)
        yield GaugeMetricFamily(
            "towline_jobs_at_work", "Jobs whose function runs or waits for a slot.", now.jobs_at_work
        )
        yield CounterMetricFamily("towline_sockets_opened", "Sockets that were accepted.", now.sockets_opened)
        yield CounterMetricFamily("towline_streams_opened", "Event streams that were opened.", now.streams_opened)
        yield CounterMetricFamily("towline_jobs_started", "Jobs that were started.", now.jobs_started)
        yield CounterMetricFamily("towline_frames_sent", "Frames that were sent.", now.frames_sent)
        yield CounterMetricFamily("towline_log_failures", "Calls the log did not do.", now.log_failures)
        for name, help_text, label, values in (
            ("towline_jobs_ended", "Jobs that ended, by terminal type.", "type", now.jobs_ended),
            ("towline_refusals", "Requests that were refused, by HTTP status.", "status", now.refusals),
            ("towline_closes", "Sockets and event streams the hub ended, by close code.", "code", now.closes),
        ):
            family = CounterMetricFamily(name, help_text, labels=[label])
            for key, count in values.items():
                family.add_metric([str(key)], count)
            yield family


def metrics_text(statistics: Callable[[], HubStatistics]) -> Callable[[], bytes]:
    """Make the function that writes the numbers in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_HubCollector(statistics))
    return lambda: generate_latest(registry)
