"""A `Status` in Prometheus's text format. Its figures are defined in model/status.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from relay.model.status import LATENCY_BUCKETS, Histogram, Metric, Process, Status, figures

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


def page(status: Status) -> bytes:
    """Return the metrics of a status and of this process, in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def process() -> Process | None:
    """Return the figures of this process; None if the system does not provide them."""
    found = {family.name: family.samples[0].value for family in ProcessCollector(registry=None).collect()}
    if not found:
        return None
    return Process(
        started=found["process_start_time_seconds"],
        resident_bytes=int(found["process_resident_memory_bytes"]),
        open_files=int(found["process_open_fds"]),
        max_files=int(found["process_max_fds"]),
    )


class _Collector(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Family]:
        for metric, value in figures(self._status):
            yield _family(metric, value)


def _family(metric: Metric, value: Any) -> Family:
    meaning = metric.meaning[:1].upper() + metric.meaning[1:]
    match metric.kind:
        case "info":
            info = GaugeMetricFamily(metric.name, meaning, labels=[metric.label])
            info.add_metric([value], 1)
            return info
        case "gauge":
            return GaugeMetricFamily(metric.name, meaning, float(value))
        case "histogram":
            return _histogram(metric.name, meaning, value)
    if not metric.label:
        return CounterMetricFamily(metric.name, meaning, value)
    counter = CounterMetricFamily(metric.name, meaning, labels=[metric.label])
    for label, count in sorted(value.items()):
        counter.add_metric([label], count)
    return counter


def _histogram(name: str, meaning: str, histogram: Histogram) -> HistogramMetricFamily:
    bounds = map(floatToGoString, (*LATENCY_BUCKETS, math.inf))
    upto = itertools.accumulate(histogram.counts)
    return HistogramMetricFamily(name, meaning, list(zip(bounds, upto, strict=True)), histogram.seconds)
