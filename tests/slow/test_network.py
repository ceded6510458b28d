"""A network that stalls or breaks costs a reconnect: no later task, no result, no turned-off reset."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest
from django.db import connection, connections
from django.db.backends.signals import connection_created

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.connections import sessions
from tests.projects.testapp.models import Entry
from tests.support.kept import backend, counted_resets, held_up, queued, results
from tests.support.observers import PostgresObserver
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

WORKERS = 4

at_two_ages = pytest.mark.parametrize("conn_max_age", [0, 60], indirect=True)


def behind_a_proxy(alias: str, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    settings = connections.settings[alias]
    proxy = Proxy(settings["HOST"], int(settings["PORT"]))
    monkeypatch.setitem(settings, "PORT", str(proxy.port))
    return proxy


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The network between Django and PostgreSQL."""
    with behind_a_proxy("default", monkeypatch) as proxy:
        yield proxy
        connection.close()
        assert wait_until(all_connections, lambda found: not found, within=20) == ()


def check_a_stall(pool: ThreadPoolExecutor, proxy: Proxy, alias: str, tasks_behind: int) -> None:
    """Stall after a task's last query, with so many queued: its result arrives, the others' later."""

    def task() -> object:
        found = backend(alias)
        proxy.stall()
        return found

    with held_up(pool):
        first = pool.submit(task)
        behind = [pool.submit(backend, alias) for _ in range(tasks_behind)]
    try:
        assert first.result(20)
    finally:
        proxy.restore()
    assert all(results(behind))
    assert pool.submit(backend, alias).result(20)


@at_two_ages
@pytest.mark.parametrize(("conn_max_idle", "tasks_behind"), [(0.0, 0), (0.0, 20), (5.0, 0)])
@pytest.mark.usefixtures("conn_max_age")
def test_a_stall_after_the_last_query(conn_max_idle: float, tasks_behind: int, proxy: Proxy) -> None:
    """A stalled network does not hold a task's result back, whatever the worker does next."""
    with ThreadPoolExecutor(1, conn_max_idle=conn_max_idle) as pool:
        check_a_stall(pool, proxy, "default", tasks_behind)


def test_a_reset_that_is_never_answered(proxy: Proxy) -> None:
    """After a second the connection is given up, and the next task connects anew."""

    def task() -> object:
        found = backend()
        proxy.forget()
        return found

    with ThreadPoolExecutor(1) as pool:
        first, second = queued(pool, task, backend)
        assert first.result(20) != second.result(20)


def kill(proxy: Proxy, postgres: PostgresObserver) -> None:
    postgres.kill()
    proxy.wait_for_the_servers_end()


def reset(proxy: Proxy, postgres: PostgresObserver) -> None:
    proxy.reset()
    assert not postgres.left()


def half_close(proxy: Proxy, postgres: PostgresObserver) -> None:
    proxy.half_close()


def cut_and_restore(proxy: Proxy, postgres: PostgresObserver) -> None:
    proxy.cut()
    assert not postgres.left()
    proxy.restore()


Fault = Callable[[Proxy, PostgresObserver], None]
FAULTS: list[Fault] = [kill, reset, half_close, cut_and_restore]


@at_two_ages
@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_between_two_tasks(fault: Fault, proxy: Proxy, postgres: PostgresObserver) -> None:
    """What breaks while every worker keeps its connection for a queued task fails none of them."""
    kept, broken = threading.Barrier(WORKERS + 1), threading.Event()
    together = threading.Barrier(WORKERS)

    def ahead() -> object:
        found = backend()
        together.wait(20)
        return found

    def behind() -> object:
        kept.wait(20)
        assert broken.wait(20)
        return backend()

    with ThreadPoolExecutor(WORKERS) as pool:
        futures = queued(pool, *[ahead] * WORKERS, *[behind] * WORKERS, workers=WORKERS)
        kept.wait(20)
        assert len(all_connections()) == WORKERS
        fault(proxy, postgres)
        broken.set()
        assert len(set(results(futures))) == 2 * WORKERS
        assert results([pool.submit(Entry.objects.count) for _ in range(20)]) == [0] * 20


@at_two_ages
@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_while_idle(fault: Fault, proxy: Proxy, postgres: PostgresObserver) -> None:
    """What breaks while a worker idles with its connection costs the next task a reconnect."""
    with ThreadPoolExecutor(1, conn_max_idle=60) as pool:
        used = pool.submit(backend).result(20)
        fault(proxy, postgres)
        assert pool.submit(backend).result(20) != used


@at_two_ages
@pytest.mark.usefixtures("conn_max_age")
def test_a_firewall_that_forgets(proxy: Proxy) -> None:
    """A connection whose packets are dropped without a word costs the next task a reconnect."""
    with ThreadPoolExecutor(1, conn_max_idle=60) as pool:
        used = pool.submit(backend).result(20)
        threading.Event().wait(0.8)  # a shorter rest is taken for none
        proxy.forget()
        assert pool.submit(backend).result(20) != used


def test_refused_resets(caplog: pytest.LogCaptureFixture) -> None:
    """A reset that the server refuses turns them off for its alias, with one warning; no task fails."""
    try:
        with counted_resets(b"SELECT no_such_function()"), ThreadPoolExecutor(1) as pool:
            used = results(queued(pool, *[backend] * 5))
        with ThreadPoolExecutor(1) as pool:
            used += results(queued(pool, *[backend] * 5))
            others = results(queued(pool, *[lambda: backend("other")] * 3))
        (warning,) = [record for record in caplog.records if record.name == sessions.__name__]
        assert len(set(used)) == 10
        assert len(set(others)) == 1
        assert warning.levelno == logging.WARNING
        assert "alias=default" in warning.getMessage()
        assert warning.exc_info
    finally:
        sessions._not_reset.clear()


def test_slow_answers(proxy: Proxy) -> None:
    """Where an answer takes longer than a reset may, tasks are as right as without resets."""

    def slow_down(**_: object) -> None:
        proxy.latency = 1.2

    connection_created.connect(slow_down)  # what connecting itself asks is answered at once
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(Entry.objects.count).result(60) == 0
    finally:
        connection_created.disconnect(slow_down)
    proxy.latency = 0.0
    with ThreadPoolExecutor(1) as pool:
        assert len(set(results(queued(pool, backend, backend)))) == 1  # it says nothing against resets
