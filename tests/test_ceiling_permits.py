"""However a connection ends, its permit is given back."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.signals import connection_created

from django_executors import ThreadPoolExecutor, connection_scope

from .ceilings import ceiling
from .forking import fork
from .gates import Gate
from .observers import PostgresObserver
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off")


@pytest.fixture(autouse=True)
def all_permits_are_there() -> Any:
    """With a ceiling of one, and no time to wait, each task after the test's gets its connection."""
    with ceiling(1, timeout=0.0):
        yield
        with ThreadPoolExecutor(1) as pool:
            for _ in range(3):
                assert pool.submit(Entry.objects.count).result(10) == 0


def run(task: Any, error: type[BaseException] | None = None, times: int = 3) -> None:
    with ThreadPoolExecutor(1) as pool:
        for _ in range(times):
            raised = pool.submit(task).exception(20)
            assert raised is None if error is None else isinstance(raised, error), raised


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connect that the server refuses."""
    monkeypatch.setitem(connections.settings["default"], "PORT", 1)
    run(Entry.objects.count, OperationalError)
    monkeypatch.undo()


def test_refused_and_survived(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """A task that was refused, and goes on without the database, holds no permit."""

    def task() -> None:
        with pytest.raises(OperationalError):
            Entry.objects.count()
        gate()

    with ThreadPoolExecutor(2) as pool:
        with monkeypatch.context() as patch:
            patch.setitem(connections.settings["default"], "PORT", 1)
            future = pool.submit(task)
            gate.wait_for()
        assert pool.submit(Entry.objects.count).result(10) == 0
        gate.open()
        future.result(10)


def test_receiver_raises() -> None:
    """A receiver of connection_created raises, after the socket has opened."""

    def receiver(**kwargs: object) -> None:
        raise LookupError

    connection_created.connect(receiver)
    try:
        run(Entry.objects.count, LookupError)
    finally:
        connection_created.disconnect(receiver)


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("closes", [False, True])
def test_killed(postgres: PostgresObserver, closes: bool) -> None:
    """The server ends the connection, and the task notices or does not."""

    def task() -> None:
        Entry.objects.count()
        postgres.execute("SELECT pg_terminate_backend(%s)", connection.connection.info.backend_pid)
        if closes:
            with pytest.raises(OperationalError):
                Entry.objects.count()
            connection.close()
            Entry.objects.count()

    run(task)


def test_task_that_raises_in_a_transaction() -> None:
    """A task leaves a transaction open and raises."""

    def task() -> None:
        transaction.set_autocommit(False)
        Entry.objects.count()
        raise LookupError

    run(task, LookupError)


@pytest.mark.assert_no_open_connections(False)  # it cannot know that the driver has closed it
def test_wrapper_thrown_away() -> None:
    """A task throws its wrapper away, connection and all."""

    def task() -> None:
        Entry.objects.count()
        driver: Any = connection.connection
        connection.connection = None
        driver.close()
        del connections["default"]
        Entry.objects.count()

    run(task)


@pytest.mark.assert_no_open_connections(False)  # it cannot know that the driver has closed it
def test_wrapper_left_to_the_collector() -> None:
    """A task throws its wrapper away in a cycle: its permit comes back with the collector."""

    def task() -> None:
        Entry.objects.count()
        wrapper: Any = connections["default"]
        wrapper.itself = wrapper
        driver = wrapper.connection
        wrapper.connection = None
        driver.close()
        del connections["default"], wrapper
        gc.collect()

    run(task)


def test_connection_taken_from_the_wrapper() -> None:
    """A task closes the driver's connection behind Django's back and connects again."""

    def task() -> None:
        for _ in range(3):
            Entry.objects.count()
            driver: Any = connection.connection
            connection.connection = None
            driver.close()

    run(task)


def test_interrupted() -> None:
    """A task ends by an exception that is no Exception."""

    def task() -> None:
        Entry.objects.count()
        raise SystemExit

    run(task, SystemExit)


def test_thread_that_ends() -> None:
    """A thread ends inside a scope that it never leaves."""

    def enters() -> None:
        connection_scope().__enter__()
        assert Entry.objects.count() == 0

    from django_executors.lifecycle import guard
    from django_executors.lifecycle.holder import current_holder

    def body() -> None:
        guard.arm(current_holder())
        enters()

    for _ in range(3):
        thread = threading.Thread(target=body)
        thread.start()
        thread.join(10)


def test_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a ceiling, connections of Django's own pool count while a worker holds them."""
    from django.test import override_settings

    from django_executors import ConnectionLimitTimeout

    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        Entry.objects.using("pooled").count()
        held.set()
        assert go_on.wait(10)

    with (
        override_settings(EXECUTORS_MAX_CONNECTIONS={"pooled": 1}, EXECUTORS_CONNECTION_WAIT_TIMEOUT=0),
        ThreadPoolExecutor(2) as pool,
    ):
        for _ in range(2):
            assert pool.submit(Entry.objects.using("pooled").count).result(10) == 0
        pool.submit(hold)
        assert held.wait(10)
        other = pool.submit(Entry.objects.using("pooled").count)
        assert isinstance(other.exception(10), ConnectionLimitTimeout)
        go_on.set()


def test_forked_child_has_all_permits() -> None:
    """A child that is forked while a worker holds the only permit has one of its own."""

    def child() -> None:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(Entry.objects.count).result(10) == 0

    held, go_on = threading.Event(), threading.Event()

    def hold() -> int:
        Entry.objects.count()
        held.set()
        assert go_on.wait(20)
        return os.getpid()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(hold)
        assert held.wait(10)
        assert fork(child) == (0, "")
        go_on.set()
        assert future.result(10) == os.getpid()
