"""What the tests about kept connections share: queued tasks, backends by number, resets counted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_executors import ThreadPoolExecutor
from django_executors.lifecycle import sessions
from django_executors.lifecycle.postgresql import PostgreSQLSessions

#: One query that tells which of the server's processes or threads answers.
WHICH_BACKEND = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()"}


def backend(alias: str = "default") -> object:
    """Make one query and return the connection's identity: the server's number for it, if it has one."""
    connection = connections[alias]
    sql = WHICH_BACKEND.get(connection.vendor, "SELECT 1")
    with connection.cursor() as cursor:
        cursor.execute(sql)
        (number,) = cursor.fetchone()
    # The driver's object itself, not its id: one that is closed must not be taken for a later one.
    return number if connection.vendor in WHICH_BACKEND else connection.connection


@contextlib.contextmanager
def held_up(pool: ThreadPoolExecutor, workers: int = 1) -> Iterator[None]:
    """Occupy these workers with tasks that make no query while the block queues more behind them."""
    busy, go_on = threading.Barrier(workers + 1), threading.Event()

    def wait() -> None:
        busy.wait(10)
        go_on.wait(30)

    first = [pool.submit(wait) for _ in range(workers)]
    busy.wait(10)
    try:
        yield
    finally:
        go_on.set()
    for future in first:
        future.result(10)


def queued(pool: ThreadPoolExecutor, *tasks: Callable[[], Any], workers: int = 1) -> list[Future[Any]]:
    """Queue all tasks before a worker takes the first of them."""
    with held_up(pool, workers):
        return [pool.submit(task) for task in tasks]


def results(futures: Sequence[Future[Any]]) -> list[Any]:
    return [future.result(30) for future in futures]


class CountedResets(PostgreSQLSessions):
    """Django's own strategy, which counts what it is asked for."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.finished: list[object] = []

    def begin_reset(self, wrapper: BaseDatabaseWrapper) -> None:
        self.begun.append(wrapper.alias)
        super().begin_reset(wrapper)

    def finish_reset(self, driver: Any, deadline: float) -> None:
        super().finish_reset(driver, deadline)
        self.finished.append(driver)


class RefusedResets(CountedResets):
    """A strategy whose resets the server refuses."""

    def begin_reset(self, wrapper: BaseDatabaseWrapper) -> None:
        self.begun.append(wrapper.alias)
        driver: Any = wrapper.connection
        driver.pgconn.send_query(b"SELECT no_such_function()")
        driver.pgconn.flush()


@contextlib.contextmanager
def registered(strategy: CountedResets) -> Iterator[CountedResets]:
    """Use this strategy, then Django's own again."""
    sessions.register(strategy)
    try:
        yield strategy
    finally:
        sessions.register(PostgreSQLSessions())
