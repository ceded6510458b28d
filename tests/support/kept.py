"""What the tests about kept connections share: queued tasks, backends by number, resets counted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_executors import ThreadPoolExecutor
from django_executors.connections import sessions

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


class CountedResets:
    """The resets that were asked for, by alias."""

    def __init__(self, sql: bytes | None = None) -> None:
        self.begun: list[str] = []
        self._sql = sql

    def send_reset(self, session: Any, wrapper: BaseDatabaseWrapper) -> None:
        self.begun.append(wrapper.alias)
        if self._sql is None:
            _send_reset(session, wrapper)
        else:
            sessions._send(wrapper.connection, self._sql)


_send_reset = sessions.Session.send_reset


@contextlib.contextmanager
def counted_resets(sql: bytes | None = None) -> Iterator[CountedResets]:
    """Count resets, and send this in their place."""
    counted = CountedResets(sql)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sessions.Session, "send_reset", lambda session, wrapper: counted.send_reset(session, wrapper)
        )
        yield counted
