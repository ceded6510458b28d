"""Metrics of executors and their connections: what `prometheus` and `opentelemetry` share.

Connections have OpenTelemetry's names, executors Micrometer's. What is now, as how many tasks run, is
read when somebody asks. How long something took is counted where it ends, by an `Observer`.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from django_executors.base import all_executors
from django_executors.connections import ceiling
from django_executors.connections.ledger import OPEN, PARKED, all_entries
from django_executors.naming import task_name

#: The upper bounds of the histograms' buckets, in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

#: How many tasks that have ended are counted at once.
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Metric:
    """One of them, under its name in OpenTelemetry."""

    name: str
    unit: str
    help: str
    labels: tuple[str, ...]


_EXECUTOR = ("executor",)
#: And the task, where task names are asked for.
_TASK = ("executor", "outcome")
_POOL = ("db.client.connection.pool.name",)

ACTIVE = Metric("executor.active", "{task}", "Tasks that run", _EXECUTOR)
QUEUED = Metric("executor.queued", "{task}", "Tasks that wait for a worker", _EXECUTOR)
POOL_SIZE = Metric("executor.pool.size", "{worker}", "Workers", _EXECUTOR)
POOL_MAX = Metric("executor.pool.max", "{worker}", "The most workers", _EXECUTOR)
COMPLETED = Metric("executor.completed", "{task}", "Tasks that have run", _TASK)
QUEUE_WAIT = Metric("executor.queue.wait", "s", "From submit until a task began", _TASK)
RUN = Metric("executor.run", "s", "From a task's begin until it had let go", _TASK)

COUNT = Metric(
    "db.client.connection.count",
    "{connection}",
    "Connections of executors and scopes: in use, or kept for a task to come",
    (*_POOL, "db.client.connection.state"),
)
MAX = Metric("db.client.connection.max", "{connection}", "EXECUTORS_MAX_CONNECTIONS", _POOL)
PENDING = Metric(
    "db.client.connection.pending_requests",
    "{request}",
    "Threads that wait for their turn under the ceiling",
    _POOL,
)
TIMEOUTS = Metric(
    "db.client.connection.timeouts",
    "{timeout}",
    "Threads that had no turn within EXECUTORS_CONNECTION_WAIT_TIMEOUT",
    _POOL,
)
CREATE_TIME = Metric("db.client.connection.create_time", "s", "Connecting", _POOL)
WAIT_TIME = Metric("db.client.connection.wait_time", "s", "Waiting for a turn under the ceiling", _POOL)
USE_TIME = Metric(
    "db.client.connection.use_time",
    "s",
    "From taking a connection until it was closed, or kept for another task",
    _POOL,
)


class Times:
    """How long something took, each time."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        #: By bucket, and last those that took longer.
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def copy(self) -> Times:
        copied = Times()
        copied.counts[:], copied.total = self.counts, self.total
        return copied


Labels = tuple[str, ...]
Values = Mapping[Labels, float]

#: Of executors that were given no name: they share one, or each would be a series that never ends.
_NUMBERED = re.compile(r"(\w+Executor)-\d+")


@lru_cache(maxsize=1000)
def label_of(executor: str) -> str:
    """Return how the executor of this name is labelled."""
    executor = str(executor)  # the standard class takes any prefix
    found = _NUMBERED.fullmatch(executor)
    return executor if found is None else found[1]


@lru_cache(maxsize=1000)
def labelled(executor: str, task: str | None, failed: bool) -> Labels:
    """Return the labels of a task that has ended.

    Args:
        task: its name, where that is one of them.
    """
    found = label_of(executor), "failed" if failed else "completed"
    return found if task is None else (*found, task)


def gauges() -> dict[Metric, Values]:
    """Return what is now."""
    found: dict[Metric, Counter[Labels]] = {
        each: Counter() for each in (ACTIVE, QUEUED, POOL_SIZE, POOL_MAX, COUNT, MAX, PENDING)
    }
    for executor in all_executors():
        stats, labels = executor.stats(), (label_of(executor.name),)
        found[ACTIVE][labels] += stats.busy
        found[QUEUED][labels] += stats.pending
        found[POOL_SIZE][labels] += stats.workers
        if most := executor._most_workers + executor._most_processes:  # a cluster's is not ours
            found[POOL_MAX][labels] += most
    with contextlib.suppress(ImproperlyConfigured):  # a check says so, and so does each task
        for alias in connections:
            found[COUNT].update({(alias, "used"): 0, (alias, "idle"): 0})
        for alias, (most, waiting) in ceiling.limits().items():
            found[MAX][alias,], found[PENDING][alias,] = most, waiting
    for entry in all_entries():
        if entry.state is PARKED:
            found[COUNT][entry.alias, "idle"] += 1
        elif entry.state is OPEN and entry.used_since is not None:
            found[COUNT][entry.alias, "used"] += 1
    return {**found}


class Tally:
    """An observer that counts, in buckets."""

    def __init__(self, *, task_names: bool) -> None:
        self._task_names = task_names
        # Reentrant: a signal's handler may run a task inline.
        self._lock = threading.RLock()
        #: The tasks that have ended and are not counted yet, fewer than a batch.
        self._ended: deque[tuple[str, str | None, bool, float, float]] = deque()
        # All guarded by _lock.
        self._tasks: dict[Labels, tuple[Times, Times]] = {}
        self._times: dict[Metric, dict[Labels, Times]] = {CREATE_TIME: {}, WAIT_TIME: {}, USE_TIME: {}}
        self._timeouts: Counter[Labels] = Counter()
        os.register_at_fork(after_in_child=self._clear)

    def _clear(self) -> None:
        """In a forked child: what was counted is the parent's, which tells it, and so is the lock."""
        self._lock = threading.RLock()
        self._ended = deque()
        self._tasks = {}
        self._times = {metric: {} for metric in self._times}
        self._timeouts = Counter()

    def names(self, metric: Metric) -> Labels:
        """Return the names of this metric's labels."""
        return (*metric.labels, "task") if self._task_names and metric.labels is _TASK else metric.labels

    def task_ended(
        self, executor: str, fn: Callable[..., Any], failed: bool, waited: float, ran: float
    ) -> None:
        ended = self._ended
        ended.append((executor, task_name(fn) if self._task_names else None, failed, waited, ran))
        if len(ended) >= _BATCH:
            self._count()

    def _count(self) -> None:
        """Count the tasks that have ended: many at once take half the time."""
        with self._lock:
            ended, tasks = self._ended, self._tasks
            while ended:
                try:
                    executor, task, failed, waited, ran = ended.popleft()
                except IndexError:  # a signal's handler has counted meanwhile
                    break
                labels = labelled(executor, task, failed)
                if (found := tasks.get(labels)) is None:
                    found = tasks[labels] = Times(), Times()
                waits, runs = found
                waits.counts[bisect_left(BUCKETS, waited)] += 1
                waits.total += waited
                runs.counts[bisect_left(BUCKETS, ran)] += 1
                runs.total += ran

    def connected(self, alias: str, seconds: float) -> None:
        self._add(CREATE_TIME, alias, seconds)

    def had_turn(self, alias: str, seconds: float) -> None:
        self._add(WAIT_TIME, alias, seconds)

    def had_no_turn(self, alias: str) -> None:
        with self._lock:
            self._timeouts[alias,] += 1

    def used(self, alias: str, seconds: float) -> None:
        self._add(USE_TIME, alias, seconds)

    def _add(self, metric: Metric, alias: str, seconds: float) -> None:
        with self._lock:
            self._times[metric].setdefault((alias,), Times()).add(seconds)

    def counters(self) -> dict[Metric, Values]:
        self._count()
        with self._lock:
            completed = {labels: sum(ran.counts) for labels, (_, ran) in self._tasks.items()}
            return {COMPLETED: completed, TIMEOUTS: self._timeouts.copy()}

    def histograms(self) -> dict[Metric, dict[Labels, Times]]:
        self._count()
        with self._lock:
            found: dict[Metric, dict[Labels, Times]] = {QUEUE_WAIT: {}, RUN: {}}
            for labels, (waited, ran) in self._tasks.items():
                found[QUEUE_WAIT][labels], found[RUN][labels] = waited.copy(), ran.copy()
            for metric, times in self._times.items():
                found[metric] = {labels: each.copy() for labels, each in times.items()}
            return found
