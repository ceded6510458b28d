"""Metrics for Prometheus. They need the extra `prometheus`.

In the client's multiprocess mode nobody asks a process for its numbers: whichever is asked reads the
files of all of them. There a thread writes to this process's files what it would answer.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from django_executors.base import all_executors
from django_executors.naming import log
from django_executors.observing import observe

from . import BUCKETS, COMPLETED, Metric, Tally, Values, gauges

try:
    from prometheus_client import REGISTRY, CollectorRegistry, values
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.core import Metric as Family
    from prometheus_client.registry import Collector as ClientsCollector
    from prometheus_client.utils import floatToGoString
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "prometheus_client":
        raise
    raise ImportError(
        'These metrics need the Prometheus client: pip install "django-executors[prometheus]"',
        name=error.name,
    ) from error

logger = logging.getLogger(__name__)

#: In the multiprocess mode, how often a process writes its numbers, in seconds.
INTERVAL = 1.0

_BOUNDS = [*map(floatToGoString, BUCKETS), "+Inf"]


class Collector(ClientsCollector):
    """The numbers of this process, as they are when it is asked for them. `register` makes one."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def describe(self) -> Iterator[Family]:
        """Return the same, for the registry to refuse a second one."""
        return self.collect()

    def collect(self) -> Iterator[Family]:
        """Return all metrics."""
        tally = self._tally
        yield from self._families(GaugeMetricFamily, gauges())
        yield from self._families(CounterMetricFamily, tally.counters())
        for metric, times in tally.histograms().items():
            histogram = self._family(HistogramMetricFamily, metric)
            for labels, each in times.items():
                buckets = [*zip(_BOUNDS, accumulate(each.counts), strict=True)]
                histogram.add_metric(labels, buckets, each.total)
            yield histogram

    def _families(self, of: Any, found: dict[Metric, Values]) -> Iterator[Family]:
        for metric, numbers in found.items():
            family = self._family(of, metric)
            for labels, number in numbers.items():
                family.add_metric(labels, number)
            yield family

    def _family(self, of: Any, metric: Metric) -> Any:
        name = _underscored(metric.name) + "_seconds" * (metric.unit == "s")
        return of(name, metric.help, labels=[*map(_underscored, self._tally.names(metric))])

    def has_tasks(self) -> bool:
        """Tell whether this process has submitted any."""
        ended = self._tally.counters()[COMPLETED]
        return bool(ended) or any(executor.stats().submitted for executor in all_executors())


def _underscored(name: str) -> str:
    return name.replace(".", "_")


class _Writer:
    """Writes the numbers of this process to its files, from its first task on.

    Not before: a master that forks, and a worker process of a `ProcessPoolExecutor`, have none.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._lock = threading.Lock()  # guards _values
        self._begin()
        # Or a child might have a copy of the lock of the client's files that nobody gives back.
        os.register_at_fork(
            before=lambda: self._lock.acquire(),
            after_in_parent=lambda: self._lock.release(),
            after_in_child=self._begin,
        )
        atexit.register(self.write)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[Any, Any] = {}
        threading.Thread(target=self._run, name="django_executors-metrics", daemon=True).start()

    def _run(self) -> None:
        is_told = False
        while not threading.Event().wait(INTERVAL):
            try:
                self.write()
            except Exception as error:  # noqa: BLE001 - the folder is not there, for example
                if not is_told:
                    log(logger, logging.ERROR, "the metrics could not be written", exc_info=error)
                is_told = True
            else:
                is_told = False

    def write(self) -> None:
        """Write them now."""
        with self._lock:
            if not self._values and not self._collector.has_tasks():
                return
            left = self._values.copy()
            for family in self._collector.collect():
                for name, labels, number in _written(family):
                    key = name, *labels.values()
                    left.pop(key, None)
                    value, before = self._value(key, family, name, labels)
                    value.set(before + number)
            for value, before in left.values():  # of executors that are gone
                value.set(before)

    def _value(self, key: Any, family: Family, name: str, labels: dict[str, str]) -> Any:
        """Return what the client's own metrics write by, and what an earlier process has written there.

        That class is not in the client's documentation. Numbers of processes come back; a counter must
        not fall then.
        """
        if key not in self._values:
            value = values.ValueClass(
                family.type,
                family.name,
                name,
                tuple(labels),
                tuple(labels.values()),
                family.documentation,
                multiprocess_mode="livesum",
            )
            self._values[key] = value, 0.0 if family.type == "gauge" else value.get()
        return self._values[key]


def _written(family: Family) -> Iterable[tuple[str, dict[str, str], float]]:
    """Return the numbers of a metric as the files have them: each bucket without those below it."""
    below = 0.0
    for sample in family.samples:
        number = sample.value
        if sample.name == f"{family.name}_bucket":
            number, below = number - below, number
            if sample.labels["le"] == "+Inf":
                below = 0.0
        if family.type != "histogram" or sample.name != f"{family.name}_count":
            yield sample.name, sample.labels, number


_writer: _Writer | None = None


def register(registry: CollectorRegistry = REGISTRY, *, task_names: bool = False) -> Collector:
    """Have Prometheus see the executors of this process and their connections, from now on.

    Call it once a process, before its first task: in `AppConfig.ready`, for one. With
    PROMETHEUS_MULTIPROC_DIR, the client's multiprocess mode, each process that submits a task writes
    its numbers there once a second, and when it exits; the registry is not used then.

    Args:
        registry: whose metrics they are from now on. Default: the client's own.
        task_names: label what is counted of tasks with their qualified names. When you would want it:
            a pool runs a few functions that have little in common. Each is a series of its own, for
            each bucket.

    Raises:
        ValueError: they are registered already.
    """
    global _writer
    collector = Collector(tally := Tally(task_names=task_names))
    if not getattr(values.ValueClass, "_multiprocess", False):  # as the client has found it
        registry.register(collector)
    elif _writer is not None:
        raise ValueError("the metrics of django-executors are registered already")
    else:
        _writer = _Writer(collector)
    observe(tally)
    return collector
