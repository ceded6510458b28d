"""Metrics for OpenTelemetry. They need the extra `opentelemetry`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from django_executors.naming import task_name
from django_executors.observing import observe

from . import (
    BUCKETS,
    COMPLETED,
    CREATE_TIME,
    QUEUE_WAIT,
    RUN,
    TIMEOUTS,
    USE_TIME,
    WAIT_TIME,
    Metric,
    Tally,
    Values,
    gauges,
    labelled,
)

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise ImportError(
        'These metrics need OpenTelemetry: pip install "django-executors[opentelemetry]"',
        name=error.name,
    ) from error


class _Recorder(Tally):
    """Records each time as well: OpenTelemetry takes histograms one value at a time."""

    def __init__(self, meter: Any, *, task_names: bool) -> None:
        super().__init__(task_names=task_names)
        self._records = {
            metric: meter.create_histogram(
                metric.name, metric.unit, metric.help, explicit_bucket_boundaries_advisory=BUCKETS
            ).record
            for metric in (QUEUE_WAIT, RUN, CREATE_TIME, WAIT_TIME, USE_TIME)
        }

    def _record(self, metric: Metric, seconds: float, *labels: str) -> None:
        self._records[metric](seconds, dict(zip(self.names(metric), labels, strict=True)))

    def task_ended(
        self, executor: str, fn: Callable[..., Any], failed: bool, waited: float, ran: float
    ) -> None:
        super().task_ended(executor, fn, failed, waited, ran)
        labels = labelled(executor, task_name(fn) if self._task_names else None, failed)
        self._record(QUEUE_WAIT, waited, *labels)
        self._record(RUN, ran, *labels)

    def connected(self, alias: str, seconds: float) -> None:
        self._record(CREATE_TIME, seconds, alias)

    def had_turn(self, alias: str, seconds: float) -> None:
        self._record(WAIT_TIME, seconds, alias)

    def used(self, alias: str, seconds: float) -> None:
        self._record(USE_TIME, seconds, alias)

    def observed(
        self, metric: Metric, read: Callable[[], dict[Metric, Values]], _: CallbackOptions
    ) -> Iterable[Observation]:
        """Return the numbers that this metric has now."""
        names = self.names(metric)
        return [
            Observation(number, dict(zip(names, labels, strict=True)))
            for labels, number in read()[metric].items()
        ]


_instrumented: list[MeterProvider | None] = []


def instrument(meter_provider: MeterProvider | None = None, *, task_names: bool = False) -> None:
    """Have OpenTelemetry see the executors of this process and their connections, from now on.

    Call it once a process, before its first task, and after the provider was made. A process that
    forks and its children need a provider each, and call it after the fork, as the SDK's own
    documentation says.

    Args:
        meter_provider: whose metrics they are. Default None: the global one's.
        task_names: give what is recorded of tasks the attribute `task`, their qualified names. When
            you would want it: a pool runs a few functions that have little in common. Each is a series
            of its own.

    Raises:
        ValueError: it was called for this provider before.
    """
    if any(each is meter_provider for each in _instrumented):
        raise ValueError("the metrics of django-executors are instrumented already")
    _instrumented.append(meter_provider)
    meter = get_meter("django_executors", meter_provider=meter_provider)
    recorder = _Recorder(meter, task_names=task_names)
    for metric in gauges():
        callback = partial(recorder.observed, metric, gauges)
        meter.create_observable_up_down_counter(metric.name, [callback], metric.unit, metric.help)
    for metric in (COMPLETED, TIMEOUTS):
        callback = partial(recorder.observed, metric, recorder.counters)
        meter.create_observable_counter(metric.name, [callback], metric.unit, metric.help)
    observe(recorder)
