"""Under load the server restarts or is cut off: only who was served then fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
from django.db import InterfaceError, OperationalError, connections

from django_executors import ThreadPoolExecutor, all_connections
from private_servers import Postgres, start_postgres
from tests.support.observers import PostgresObserver
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

WORKERS = 8
ROUNDS = 2
TASKS = 100  # before the outage, and as many after it


@pytest.fixture(scope="module")
def private_server() -> Iterator[Postgres]:
    """A PostgreSQL that may be restarted."""
    with start_postgres() as server:
        yield server


@pytest.fixture
def proxy(private_server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The network between the private server and the alias `private`, which has no client at the end."""
    with Proxy(private_server.host, private_server.port) as proxy:
        entry = {
            **connections.settings["default"],
            "PORT": str(proxy.port),
            "PASSWORD": private_server.password,
        }
        monkeypatch.setitem(connections.settings, "private", entry)
        yield proxy
        assert wait_until(all_connections, lambda found: not found, within=20) == ()
    observer = PostgresObserver(private_server.url)  # a new one: a restart ends those before it
    assert not observer.left()
    observer.close()


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


class Load:
    """Tasks that are submitted without a pause, as fast as they are run."""

    def __init__(self, conn_max_idle: float) -> None:
        self.pool = ThreadPoolExecutor(WORKERS, conn_max_idle=conn_max_idle, max_pending=2 * WORKERS)
        self.tasks: list[tuple[Served, Future[None]]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._submit)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        self.pool.shutdown()

    def _submit(self) -> None:
        while not self._over.is_set():
            task = Served()
            self.tasks.append((task, self.pool.submit(task.run)))

    def wait_for_more(self) -> None:
        enough = len(self.tasks) + TASKS
        assert wait_until(lambda: len(self.tasks) >= enough, within=60)

    def failed(self) -> int:
        return sum(task.error is not None for task, _ in self.tasks)


Outage = Callable[[Postgres, Proxy, Callable[[], bool]], None]


def restart(server: Postgres, proxy: Proxy, has_failed: Callable[[], bool]) -> None:
    server.restart()


def cut_off(server: Postgres, proxy: Proxy, has_failed: Callable[[], bool]) -> None:
    proxy.cut()
    assert wait_until(has_failed, within=20)
    proxy.restore()


@pytest.mark.parametrize(
    ("outage", "conn_max_age", "conn_max_idle"),
    [(restart, 0, 0.0), (restart, 60, 5.0), (cut_off, 0, 0.0), (cut_off, None, 5.0)],
)
def test_under_load(
    outage: Outage,
    conn_max_age: int | None,
    conn_max_idle: float,
    proxy: Proxy,
    private_server: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only tasks that run during the outage fail, with Django's own exceptions, and nothing leaks."""
    monkeypatch.setitem(connections.settings["private"], "CONN_MAX_AGE", conn_max_age)
    outages = []
    with Load(conn_max_idle) as load:
        for _ in range(ROUNDS):
            load.wait_for_more()
            before, down = load.failed(), time.monotonic()
            outage(private_server, proxy, lambda before=before: load.failed() > before)
            proxy.wait_until_ends_are_passed_on()
            outages.append((down, time.monotonic()))
        load.wait_for_more()
    for task, future in load.tasks:
        assert future.exception(20) is task.error
        if task.error is not None:
            assert type(task.error) in (OperationalError, InterfaceError)
            assert any(task.begin <= up and task.end >= down for down, up in outages)
