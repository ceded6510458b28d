"""Metrics: what each exporter says of executors and connections, and what it is not told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from django_executors import (
    ConnectionLimitTimeout,
    ImmediateExecutor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    connection_scope,
    observing,
)
from django_executors.metrics import BUCKETS, label_of, opentelemetry, prometheus
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support.ceilings import ceiling, waits
from tests.support.forks import fork
from tests.support.gates import Gate
from tests.support.kept import results
from tests.support.opened import run_in_thread
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

ALIAS = "db_client_connection_pool_name"
STATE = "db_client_connection_state"


@pytest.fixture(autouse=True)
def observed_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has exporters of its own."""
    monkeypatch.setattr(observing, "observer", None)


class Scraped:
    """Reads what a registry gives."""

    def __init__(self, **options: Any) -> None:
        self.registry = CollectorRegistry()
        prometheus.register(self.registry, **options)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def of_pool(self, name: str, alias: str = "default", **labels: str) -> float | None:
        return self(f"db_client_connection_{name}", **{ALIAS: alias}, **labels)

    def count(self, state: str, alias: str = "default") -> float | None:
        return self.of_pool("count", alias, **{STATE: state})


def fail() -> None:
    raise LookupError


def test_tasks(gate: Gate) -> None:
    """What runs, what waits, how many workers there are; of the ended ones how many, and how long."""
    value = Scraped()
    with ThreadPoolExecutor(2, "reports") as pool:
        futures = [pool.submit(gate) for _ in range(3)]
        gate.wait_for(2)
        assert value("executor_active", executor="reports") == 2
        assert value("executor_queued", executor="reports") == 1
        assert value("executor_pool_size", executor="reports") == 2
        assert value("executor_pool_max", executor="reports") == 2
        assert value("executor_completed_total", executor="reports", outcome="completed") is None
        gate.open()
        results(futures)
        assert isinstance(pool.submit(fail).exception(10), LookupError)
        assert value("executor_active", executor="reports") == 0
        stats = pool.stats()
    of_completed = {"executor": "reports", "outcome": "completed"}
    assert value("executor_completed_total", **of_completed) == 3
    assert value("executor_completed_total", executor="reports", outcome="failed") == 1
    for name, seconds in (("queue_wait", stats.queue_seconds), ("run", stats.run_seconds)):
        assert value(f"executor_{name}_seconds_count", **of_completed) == 3
        assert value(f"executor_{name}_seconds_bucket", **of_completed, le="+Inf") == 3
        both = [
            value(f"executor_{name}_seconds_sum", executor="reports", outcome=outcome)
            for outcome in ("completed", "failed")
        ]
        assert sum(filter(None, both)) == pytest.approx(seconds)


def test_buckets() -> None:
    """A time is in the first bucket whose bound is not below it."""
    value = Scraped()
    observer = observing.observer
    assert observer is not None
    for seconds in (BUCKETS[0], BUCKETS[1], BUCKETS[-1] + 1):
        observer.used("default", seconds)
    found = [value.of_pool("use_time_seconds_bucket", le=str(bound)) for bound in BUCKETS]
    assert found == [1, *[2] * (len(BUCKETS) - 1)]
    assert value.of_pool("use_time_seconds_bucket", le="+Inf") == 3


def test_many_tasks_that_nobody_asks_for() -> None:
    """All count, and no more than a batch of them is kept."""
    value = Scraped()
    with ThreadPoolExecutor(2, "jobs") as pool:
        results([pool.submit(int) for _ in range(2500)])
    assert observing.observer is not None
    tally: Any = observing.observer.observers[0]
    assert len(tally._ended) < 1000
    assert value("executor_run_seconds_count", executor="jobs", outcome="completed") == 2500
    assert len(tally._ended) == 0


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(1, "jobs"), ImmediateExecutor])
def test_an_exporter_that_raises(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once; tasks, connections and other exporters are as ever."""

    class Raises:
        def __getattr__(self, name: str) -> Any:
            def raises(*told: object) -> None:
                raise LookupError("of the exporter")

            return raises

    observing.observe(Raises())  # type: ignore[arg-type]
    value = Scraped()
    with caplog.at_level(logging.ERROR, observing.__name__), make() as executor:
        name = executor.name
        for _ in range(3):
            assert executor.submit(Entry.objects.count).result(10) == 0
        assert executor.stats().close_failures == 0
    connection.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"exporter={Raises.__qualname__} raised, and misses some of the metrics"
    ]
    assert value("executor_completed_total", executor=name, outcome="completed") == 3


def test_a_prefix_that_is_no_string() -> None:
    """The standard class takes it, and so does a label."""
    value = Scraped()
    with ThreadPoolExecutor(1, 7) as pool:  # type: ignore[arg-type]
        results([pool.submit(int) for _ in range(1500)])
    assert value("executor_completed_total", executor="7", outcome="completed") == 1500


def test_instrumented_twice() -> None:
    """It is refused, or each time would be recorded twice."""
    provider = MeterProvider()
    opentelemetry.instrument(provider)
    with pytest.raises(ValueError, match="instrumented already"):
        opentelemetry.instrument(provider)


def test_counters_do_not_fall() -> None:
    """Executors of one name, one after another, count on; those without a name have one together."""
    value = Scraped()
    for _ in range(2):
        with ThreadPoolExecutor(1, "of a request") as pool, ThreadPoolExecutor(1) as unnamed:
            pool.submit(int).result(10)
            unnamed.submit(int).result(10)
        del pool, unnamed
    for executor in ("of a request", "ThreadPoolExecutor"):
        assert value("executor_completed_total", executor=executor, outcome="completed") == 2


def test_executors_without_a_name() -> None:
    """The number in the name that an executor was given by itself is not in a label."""
    names = ["ThreadPoolExecutor-0", "ProcessPoolExecutor-12", "DaskExecutor-3", "jobs-3"]
    assert [label_of(name) for name in names] == [
        *("ThreadPoolExecutor", "ProcessPoolExecutor", "DaskExecutor"),
        "jobs-3",
    ]


def test_two_pools_of_one_name(gate: Gate) -> None:
    """They are one series."""
    value = Scraped()
    with ThreadPoolExecutor(2, "jobs") as one, ThreadPoolExecutor(3, "jobs") as other:
        futures = [one.submit(gate), other.submit(gate)]
        gate.wait_for(2)
        assert value("executor_active", executor="jobs") == 2
        assert value("executor_pool_max", executor="jobs") == 5
        gate.open()
        results(futures)


def test_task_names() -> None:
    """They are labels where somebody asks for them."""
    value = Scraped(task_names=True)
    with ThreadPoolExecutor(1, "jobs") as pool:
        pool.submit(Entry.objects.count).result(10)
        pool.submit(fail).exception(10)
    labels = {"executor": "jobs", "outcome": "failed", "task": f"{__name__}.fail"}
    assert value("executor_completed_total", **labels) == 1
    assert value("executor_run_seconds_count", **labels) == 1


def test_in_the_callers_thread() -> None:
    """Tasks that run where they are submitted count too; they have waited for nothing."""
    value = Scraped()
    ImmediateExecutor().submit(int).result()
    with ThreadPoolExecutor(1, "jobs") as pool, run_inline():
        pool.submit(fail).exception()
    ended = {"ImmediateExecutor": "completed", "jobs": "failed"}
    for executor, outcome in ended.items():
        assert value("executor_run_seconds_count", executor=executor, outcome=outcome) == 1
        assert value("executor_queue_wait_seconds_sum", executor=executor, outcome=outcome) == 0


@pytest.mark.servers
def test_processes() -> None:
    """A pool of processes is told of by its parent, which does not see their connections."""
    value = Scraped()
    others = value("executor_pool_max", executor="ProcessPoolExecutor") or 0  # of other tests
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(Entry.objects.count).result(60) == 0
        assert value("executor_pool_max", executor="ProcessPoolExecutor") == others + 1
    labels = {"executor": "ProcessPoolExecutor", "outcome": "completed"}
    assert value("executor_completed_total", **labels) == 1
    assert value("executor_run_seconds_count", **labels) == 1
    assert value.of_pool("create_time_seconds_count") is None


def test_connections(holding: Gate) -> None:
    """What workers hold is in use, and counted when it was opened, and when it was let go of."""
    value = Scraped()
    Entry.objects.count()  # this thread's is Django's
    assert (value.count("used"), value.count("idle")) == (0, 0)
    with ThreadPoolExecutor(2, "reports") as pool:
        futures = [pool.submit(holding) for _ in range(2)]
        holding.wait_for(2)
        assert (value.count("used"), value.count("used", "other")) == (2, 0)
        assert value.of_pool("create_time_seconds_count") == 2
        assert value.of_pool("use_time_seconds_count") is None
        holding.open()
        results(futures)
    assert (value.count("used"), value.count("idle")) == (0, 0)
    assert value.of_pool("create_time_seconds_count") == 2
    assert value.of_pool("use_time_seconds_count") == 2
    connection.close()
    assert value.of_pool("use_time_seconds_count") == 2


def test_kept_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker keeps is idle. Each task that takes it uses it once, and it is opened once."""
    value = Scraped()
    with ThreadPoolExecutor(1, conn_max_idle=60.0) as pool:
        for uses in (1, 2, 3):
            pool.submit(Entry.objects.count).result(10)
            assert (value.count("used"), value.count("idle")) == (0, 1)
            assert value.of_pool("use_time_seconds_count") == uses
    assert value.of_pool("create_time_seconds_count") == 1
    assert value.of_pool("use_time_seconds_count") == 3  # that it was closed is no use
    assert (value.count("used"), value.count("idle")) == (0, 0)


def test_scopes() -> None:
    """A scope's connections are counted as a worker's, until they are closed in it or at its end."""
    value = Scraped()
    with connection_scope():
        Entry.objects.count()
        assert value.count("used") == 1
        connection.close()
        assert value.of_pool("use_time_seconds_count") == 1
        Entry.objects.count()
    assert value.count("used") == 0
    assert value.of_pool("create_time_seconds_count") == 2
    assert value.of_pool("use_time_seconds_count") == 2


def test_ceiling(holding: Gate) -> None:
    """The ceiling, who waits for it, for how long, and who has waited in vain."""
    value = Scraped()
    assert value.of_pool("max") is None
    with ceiling(1), ThreadPoolExecutor(2) as pool:
        assert (value.of_pool("max"), value.of_pool("pending_requests")) == (1, 0)
        assert value.of_pool("max", "other") is None
        futures = [pool.submit(holding) for _ in range(2)]
        holding.wait_for(1)
        assert wait_until(lambda: waits("default"), within=20) == 1
        assert value.of_pool("pending_requests") == 1
        assert value.of_pool("wait_time_seconds_count") == 1
        holding.open()
        results(futures)
    assert value.of_pool("wait_time_seconds_count") == 2
    assert value.of_pool("timeouts_total") is None


def test_timeouts(holding: Gate) -> None:
    """A turn that has not come is a timeout, and no time of waiting."""
    value = Scraped()
    with ceiling(1, timeout=0.0), ThreadPoolExecutor(2) as pool:
        future = pool.submit(holding)
        holding.wait_for()
        assert isinstance(pool.submit(Entry.objects.count).exception(10), ConnectionLimitTimeout)
        holding.open()
        future.result(10)
    assert value.of_pool("timeouts_total") == 1
    assert value.of_pool("wait_time_seconds_count") == 1


def test_wrong_settings(settings_of_a_ceiling: None) -> None:
    """The rest is told all the same: a check says what is wrong."""
    value = Scraped()
    with ThreadPoolExecutor(1, "jobs"):
        assert value("executor_pool_max", executor="jobs") == 1
    assert value.of_pool("max") is None


@pytest.fixture
def settings_of_a_ceiling() -> Iterator[None]:
    from django.test import override_settings

    with override_settings(EXECUTORS_MAX_CONNECTIONS={"default": "many"}):
        yield


def test_registered_twice() -> None:
    """The client refuses that."""
    value = Scraped()
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        prometheus.register(value.registry)


def test_fork() -> None:
    """A forked child has its own numbers from 0 on; the parent's stay its own."""
    value = Scraped()
    labels = {"executor": "jobs", "outcome": "completed"}
    with ThreadPoolExecutor(1, "jobs") as pool:
        pool.submit(Entry.objects.count).result(10)

        def child() -> None:
            assert value("executor_completed_total", **labels) is None
            assert value.of_pool("use_time_seconds_count") is None
            for _ in range(2):
                pool.submit(Entry.objects.count).result(10)
            assert value("executor_completed_total", **labels) == 2
            assert value.of_pool("use_time_seconds_count") == 2

        assert fork(child) == (0, "")
        assert value("executor_completed_total", **labels) == 1


def points(reader: InMemoryMetricReader) -> dict[tuple[Any, ...], Any]:
    """Return what a reader gets, by name and attributes."""
    data = reader.get_metrics_data()
    return {
        (metric.name, *sorted(point.attributes.items())): point
        for of_resource in data.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        for point in metric.data.data_points
    }


class Read:
    """Reads what OpenTelemetry's SDK gives."""

    def __init__(self, **options: Any) -> None:
        self._reader = InMemoryMetricReader()
        provider = MeterProvider([self._reader], shutdown_on_exit=False)
        opentelemetry.instrument(provider, **options)

    def __call__(self) -> dict[tuple[Any, ...], Any]:
        return points(self._reader)


IN_POOL = ("db.client.connection.pool.name", "default")
USED, IDLE = ("db.client.connection.state", "used"), ("db.client.connection.state", "idle")


def test_opentelemetry(holding: Gate) -> None:
    """It has the same numbers, under its own names."""
    read = Read()
    with ceiling(1), ThreadPoolExecutor(2, "reports") as pool:
        futures = [pool.submit(holding) for _ in range(3)]
        holding.wait_for(1)
        assert wait_until(lambda: waits("default"), within=20) == 1
        found = {key: point.value for key, point in read().items() if hasattr(point, "value")}
        reports = ("executor", "reports")
        assert found["executor.active", reports] == 2
        assert found["executor.queued", reports] == 1
        assert found["executor.pool.size", reports] == 2
        assert found["executor.pool.max", reports] == 2
        assert found["db.client.connection.count", IN_POOL, USED] == 1
        assert found["db.client.connection.count", IN_POOL, IDLE] == 0
        assert found["db.client.connection.max", IN_POOL] == 1
        assert found["db.client.connection.pending_requests", IN_POOL] == 1
        holding.open()
        results(futures)
        assert isinstance(pool.submit(fail).exception(10), LookupError)
    found = read()
    completed, failed = ("outcome", "completed"), ("outcome", "failed")
    assert found["executor.completed", reports, completed].value == 3
    assert found["executor.completed", reports, failed].value == 1
    for name in ("executor.run", "executor.queue.wait"):
        assert found[name, reports, completed].count == 3
        assert found[name, reports, failed].count == 1
        assert found[name, reports, failed].explicit_bounds == BUCKETS
    stats = pool.stats()
    total = sum(found["executor.run", reports, outcome].sum for outcome in (completed, failed))
    assert total == pytest.approx(stats.run_seconds)
    of_turns = found["db.client.connection.wait_time", IN_POOL].count
    assert of_turns == found["db.client.connection.create_time", IN_POOL].count
    assert of_turns == stats.connections_opened
    uses = stats.connections_opened + stats.connections_reset
    assert found["db.client.connection.use_time", IN_POOL].count == uses


def test_opentelemetry_timeouts_and_task_names(holding: Gate) -> None:
    """Timeouts are counted; task names are attributes where somebody asks for them."""
    read = Read(task_names=True)
    with ceiling(1, timeout=0.0), ThreadPoolExecutor(2, "jobs") as pool:
        future = pool.submit(holding)
        holding.wait_for()
        assert isinstance(pool.submit(Entry.objects.count).exception(10), ConnectionLimitTimeout)
        holding.open()
        future.result(10)
        pool.submit(fail).exception(10)
    found = read()
    assert found["db.client.connection.timeouts", IN_POOL].value == 1
    key = ("executor", "jobs"), ("outcome", "failed"), ("task", f"{__name__}.fail")
    assert found["executor.completed", *key].value == 1
    assert found["executor.run", *key].count == 1


def test_several_exporters() -> None:
    """Each is told of everything."""
    values, read = [Scraped(), Scraped()], Read()
    with ceiling(1), ThreadPoolExecutor(1, "jobs") as pool:
        pool.submit(Entry.objects.count).result(10)
    for value in values:
        assert value("executor_run_seconds_count", executor="jobs", outcome="completed") == 1
        assert value.of_pool("create_time_seconds_count") == 1
        assert value.of_pool("wait_time_seconds_count") == 1
        assert value.of_pool("use_time_seconds_count") == 1
    found = read()
    assert found["executor.run", ("executor", "jobs"), ("outcome", "completed")].count == 1
    for name in ("create_time", "wait_time", "use_time"):
        assert found[f"db.client.connection.{name}", IN_POOL].count == 1


def test_told_before_the_result() -> None:
    """Whoever has a task's result finds it counted."""
    value = Scraped()
    found = []
    with ThreadPoolExecutor(1, "jobs") as pool:
        future = pool.submit(int)
        future.add_done_callback(
            lambda _: found.append(
                value("executor_run_seconds_count", executor="jobs", outcome="completed")
            )
        )
    assert found == [1]


def test_told_under_no_lock() -> None:
    """An observer may take locks of its own: none of this library's is held where it is told."""
    free: dict[str, list[bool]] = {}

    class Asks:
        def __getattr__(self, name: str) -> Any:
            def told(*_: object) -> None:
                free.setdefault(name, []).append(is_free(ledger_lock) and is_free(books_lock))

            return told

    from django_executors.connections.ledger import lock as ledger_lock

    def is_free(lock: Any) -> bool:
        taken: list[bool] = []

        def take() -> None:
            if lock.acquire(timeout=5):
                taken.append(True)
                lock.release()

        run_in_thread(take)
        return taken == [True]

    with ceiling(1), ThreadPoolExecutor(1) as pool:
        books_lock = pool._queue.lock
        observing.observe(Asks())  # type: ignore[arg-type]
        pool.submit(Entry.objects.count).result(20)
    assert free == {name: [True] for name in ("had_turn", "connected", "used", "task_ended")}


@pytest.mark.parametrize("client", ["prometheus_client", "opentelemetry"])
def test_without_the_client(client: str) -> None:
    """The error says what to install."""
    extra = client.removesuffix("_client")
    done = run_python(
        f"import sys\nsys.modules[{client!r}] = None",
        f"import django_executors.metrics.{extra}",
        settings="tests.settings",
    )
    assert f'pip install "django-executors[{extra}]"' in done.stderr
    assert done.stderr.splitlines()[-1].startswith("ImportError:")


#: Two processes, one after another, that write to one folder.
WRITES = """
from django_executors import ThreadPoolExecutor
from django_executors.metrics import prometheus
from tests.projects.testapp.models import Entry
prometheus.register()
try:
    prometheus.register()
except ValueError as error:
    print(error)
with ThreadPoolExecutor(3, "jobs") as pool, ThreadPoolExecutor(1, "lost") as lost:
    lost.submit(int)
    list(pool.map(lambda _: Entry.objects.count(), range(5)))
    prometheus._writer.write()
del lost
"""


def test_multiprocess_mode(tmp_path: Path) -> None:
    """Each process writes its numbers, and whoever reads the folder has the sum."""
    for _ in range(2):
        done = run_python(WRITES, settings="tests.settings", PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
        expected = "the metrics of django-executors are registered already\n"
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    MultiProcessCollector(registry := CollectorRegistry(), path=str(tmp_path))
    value = registry.get_sample_value
    jobs = {"executor": "jobs"}
    assert value("executor_pool_max", jobs) == 6
    assert value("executor_pool_max", {"executor": "lost"}) == 0
    assert value("executor_active", jobs) == 0
    jobs["outcome"] = "completed"
    assert value("executor_completed_total", jobs) == 10
    assert value("executor_run_seconds_count", jobs) == 10
    assert value("executor_run_seconds_bucket", jobs | {"le": "60.0"}) == 10
    assert value("db_client_connection_count", {ALIAS: "default", STATE: "used"}) == 0
    uses = value("db_client_connection_use_time_seconds_count", {ALIAS: "default"})
    assert uses is not None
    assert uses > 0
    assert b"# TYPE executor_run_seconds histogram" in generate_latest(registry)


def test_process_without_tasks(tmp_path: Path) -> None:
    """It writes nothing: a master that forks is no process that works."""
    done = run_python(
        "from django_executors import ThreadPoolExecutor",
        "from django_executors.metrics import prometheus",
        "prometheus.register()",
        "pool = ThreadPoolExecutor(3)",
        settings="tests.settings",
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [*tmp_path.iterdir()] == []
