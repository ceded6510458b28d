"""Under load the server restarts, kills its backends, or is cut off: only who was served then fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import InterfaceError, OperationalError, connections

from django_executors import ThreadPoolExecutor, all_connections
from private_servers import Postgres, start_postgres
from tests.support.observers import PostgresObserver
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

WORKERS = 8
ROUNDS = 3
TASKS = 300  # a round, and as many after the outage


@pytest.fixture(scope="module")
def private_server() -> Iterator[Postgres]:
    """A PostgreSQL that may be restarted."""
    with start_postgres() as server:
        yield server


@pytest.fixture
def observed(private_server: Postgres) -> Iterator[Callable[[], PostgresObserver]]:
    """Ask the private server, by a new connection: a restart ends those before it."""
    observers: list[PostgresObserver] = []

    def observe() -> PostgresObserver:
        observers.append(PostgresObserver(private_server.url))
        return observers[-1]

    yield observe
    for observer in observers:
        observer.close()


@pytest.fixture(params=[0, 60, None], ids=lambda age: f"CONN_MAX_AGE={age}")
def proxy(
    request: pytest.FixtureRequest, private_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    """The network between the private server and the alias `private`."""
    with Proxy(private_server.host, private_server.port) as proxy:
        entry = {
            **connections.settings["default"],
            "PORT": str(proxy.port),
            "PASSWORD": private_server.password,
            "CONN_MAX_AGE": request.param,
        }
        monkeypatch.setitem(connections.settings, "private", entry)
        yield proxy


class Served:
    """When a task was run, and what became of it."""

    def __init__(self) -> None:
        self.begin = self.end = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        """Make two queries, with work for the server in the first."""
        self.begin = time.monotonic()
        try:
            with connections["private"].cursor() as cursor:
                cursor.execute("SELECT pg_sleep(0.004)")
                cursor.execute("SELECT 1")
                assert cursor.fetchone() == (1,)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.end = time.monotonic()


def restart(server: Postgres, proxy: Proxy, observe: Callable[[], PostgresObserver]) -> None:
    server.restart()


def kill_all(server: Postgres, proxy: Proxy, observe: Callable[[], PostgresObserver]) -> None:
    """Terminate every backend that there is now, a few times over."""
    observer = observe()
    for _ in range(5):
        observer.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'app'"
        )


def cut_off(server: Postgres, proxy: Proxy, observe: Callable[[], PostgresObserver]) -> None:
    proxy.cut()
    wait_until(lambda: False, within=0.1)
    proxy.restore()


@pytest.mark.parametrize("conn_max_idle", [0.0, 5.0])
@pytest.mark.parametrize("outage", [restart, kill_all, cut_off], ids=lambda outage: outage.__name__)
def test_under_load(
    outage: Callable[..., None],
    conn_max_idle: float,
    proxy: Proxy,
    private_server: Postgres,
    observed: Callable[[], PostgresObserver],
) -> None:
    """Only tasks that run during the outage fail, with Django's own exceptions, and nothing leaks."""
    failed = 0
    pool = ThreadPoolExecutor(WORKERS, conn_max_idle=conn_max_idle)
    for _ in range(ROUNDS):
        tasks = [Served() for _ in range(TASKS)]
        futures = [pool.submit(task.run) for task in tasks]
        assert futures[WORKERS].exception(20) is None
        down = time.monotonic()
        outage(private_server, proxy, observed)
        up = time.monotonic()
        # What the server has ended may be on its way to us still.
        up += 0.1
        tasks += (after := [Served() for _ in range(TASKS)])
        futures += [pool.submit(task.run) for task in after]
        for task, future in zip(tasks, futures, strict=True):
            assert future.exception(20) is task.error
            if task.error is not None:
                failed += 1
                assert type(task.error) in (OperationalError, InterfaceError)
                assert task.begin <= up
                assert task.end >= down
    assert failed  # there was a load
    pool.shutdown()
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not observed().left()


@pytest.mark.parametrize("conn_max_idle", [0.0, 5.0])
def test_a_restart_between_two_tasks(
    conn_max_idle: float,
    proxy: Proxy,
    private_server: Postgres,
    observed: Callable[[], PostgresObserver],
) -> None:
    """A restart while every worker keeps its connection for a queued task fails none of them."""
    kept, restarted = threading.Barrier(WORKERS + 1), threading.Event()
    together = threading.Barrier(WORKERS)
    pool = ThreadPoolExecutor(WORKERS, conn_max_idle=conn_max_idle)

    def ahead() -> None:
        Served().run()
        together.wait(10)

    def behind() -> None:
        kept.wait(10)
        assert restarted.wait(30)
        Served().run()

    futures: list[Any] = [pool.submit(task) for task in [ahead] * WORKERS + [behind] * WORKERS]
    kept.wait(10)
    private_server.restart()
    proxy.wait_for_the_servers_end()
    restarted.set()
    for future in futures:
        future.result(20)
    pool.shutdown()
    assert all_connections() == ()
    assert not observed().left()
