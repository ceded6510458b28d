"""`assert_no_open_connections` fails on what other threads have left open."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import re
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, connections

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.testing import assert_no_open_connections

from .leaking import WORKERS, collect, count, count_and_close, leaks, message_of, run, standing
from .observers import MariaDBObserver, PostgresObserver
from .testapp.models import Entry


@leaks
def test_thread_that_has_ended(postgres: PostgresObserver) -> None:
    """It names the thread that has ended, the alias, and the backend as the server knows it."""
    said = message_of(lambda: run(count))
    (pid,) = postgres.backends()
    first, line = said.splitlines()
    assert first == "1 database connection(s) left open by other threads:"
    assert re.fullmatch(
        rf"thread=orders alias=default backend_pid={pid} executor=None task=None age=\d+\.\ds", line
    )


@leaks
def test_thread_that_lives_on(postgres: PostgresObserver) -> None:
    """A thread that does something else by now, and holds its connection, is named."""
    with contextlib.ExitStack() as stack:
        said = message_of(lambda: stack.enter_context(standing(count)))
        (pid,) = postgres.backends()
        assert f"thread=orders alias=default backend_pid={pid} " in said


@leaks
def test_collected(postgres: PostgresObserver) -> None:
    """What the collector has taken before the block's end is named all the same, and that it did."""
    pids: list[set[int]] = []

    def body() -> None:
        run(count)
        pids.append(postgres.backends())
        collect()
        assert all_connections() == ()

    said = message_of(body)
    assert not postgres.left()
    ((pid,),) = pids
    assert f"thread=orders alias=default backend_pid={pid} " in said
    assert said.endswith("(left to the garbage collector, which has come for it)")


@leaks
@pytest.mark.parametrize("shut_down", [False, True])
def test_standard_pool(shut_down: bool, postgres: PostgresObserver) -> None:
    """Each worker of a standard pool is named, shut down or not."""
    together = threading.Barrier(WORKERS)

    def task() -> None:
        count()
        together.wait(10)

    def body() -> None:
        for future in [pool.submit(task) for _ in range(WORKERS)]:
            future.result(10)
        if shut_down:
            pool.shutdown()

    with concurrent.futures.ThreadPoolExecutor(WORKERS, "standard") as pool:
        first, *lines = message_of(body).splitlines()
        assert first.startswith(f"{WORKERS} database connection(s)")
        told = [re.match(r"thread=standard_\d alias=default backend_pid=(\d+) ", line) for line in lines]
        assert {int(found[1]) for found in told if found} == postgres.backends()


@leaks
def test_to_thread() -> None:
    """A thread of asyncio's own executor is named, although the loop has ended and joined it."""
    said = message_of(lambda: asyncio.run(asyncio.to_thread(count)))
    assert "thread=asyncio_0 alias=default " in said


@leaks
def test_thread_of_asgiref() -> None:
    """So is the one thread in which asgiref runs the async ORM; it lives as long as the process."""
    try:
        said = message_of(lambda: asyncio.run(Entry.objects.acount()))
    finally:
        asyncio.run(sync_to_async(connections.close_all)())
    assert said.startswith("1 database connection(s)")


@leaks
def test_worker_that_keeps_its_connection() -> None:
    """With `conn_max_idle` a worker holds what the block opened, by order: that is a leak here."""
    with ThreadPoolExecutor(1, "reports", conn_max_idle=60) as pool:
        said = message_of(lambda: pool.submit(count).result(10))
        assert "thread=reports_0 alias=default " in said
        assert " executor=reports task=None " in said
        with assert_no_open_connections(timeout=0.0):
            pool.submit(count).result(10)


@leaks
def test_alias_that_left_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is named although its alias is in the settings no more."""

    def body() -> None:
        with monkeypatch.context() as patch:
            patch.setitem(connections.settings, "former", connections.settings["default"])
            run(lambda: Entry.objects.using("former").count())

    assert "thread=orders alias=former " in message_of(body)


@leaks
def test_copied_wrapper() -> None:
    """A wrapper that a thread has made by `copy()` counts as any other."""
    kept: list[Any] = []

    def target() -> None:
        kept.append(connections["default"].copy())
        kept[0].ensure_connection()

    assert "thread=orders alias=default " in message_of(lambda: run(target))
    kept.clear()


@leaks
def test_worker_that_connects_anew() -> None:
    """A thread that held a connection before is named if it has closed it and opened another."""

    def task() -> None:
        connection.close()
        count()

    with concurrent.futures.ThreadPoolExecutor(1, "standard") as pool:
        pool.submit(count).result(10)
        said = message_of(lambda: pool.submit(task).result(10))
    assert "thread=standard_0 alias=default " in said


@leaks
def test_closed_from_another_thread() -> None:
    """Closing a connection of another thread's, which Django forbids, does not hide it."""
    kept: list[Any] = []

    def target() -> None:
        count()
        kept.append(connections["default"])

    def body() -> None:
        run(target)
        with pytest.raises(DatabaseError, match="thread"):
            kept[0].close()

    assert "thread=orders alias=default " in message_of(body)
    kept.clear()


@leaks
@pytest.mark.parametrize("alias", ["other", "sqlite", "mariadb"])
def test_every_alias(alias: str, request: pytest.FixtureRequest) -> None:
    """Not `default` alone: each alias counts, and on MariaDB by its CONNECTION_ID()."""
    numbers: set[int] = set()

    def target() -> None:
        count_and_close()
        Entry.objects.using(alias).count()

    if alias == "mariadb":
        mariadb: MariaDBObserver = request.getfixturevalue("mariadb")

    def body() -> None:
        run(target)
        if alias == "mariadb":
            numbers.update(mariadb.backends())

    said = message_of(body)
    assert said.startswith("1 database connection(s)")
    assert f"thread=orders alias={alias} " in said
    assert all(f" backend_pid={number} " in said for number in numbers)
