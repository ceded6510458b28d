"""EXECUTORS_HOLD_WARNING: a connection that one task holds for long is told of while it lasts."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection, connections
from django.test import override_settings

from django_executors import ConnectionLimitTimeout, ThreadPoolExecutor, release_connections
from django_executors.connections import holds
from tests.projects.testapp.models import Entry
from tests.support.ceilings import ceiling
from tests.support.forks import fork
from tests.support.gates import Gate
from tests.support.waiting import wait_until

SECONDS = 0.05


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What is logged while the setting is on; afterwards nobody looks."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert record.levelno == logging.WARNING
            messages.append(record.getMessage())

    handler = Handler()
    holds.logger.addHandler(handler)
    with override_settings(EXECUTORS_HOLD_WARNING=SECONDS):
        yield messages
    assert wait_until(lambda: holds._thread is None)
    holds.logger.removeHandler(handler)


def hold(gate: Gate) -> None:
    Entry.objects.count()
    sit_there(gate)


def sit_there(gate: Gate) -> None:
    gate()


def lines(told: list[str]) -> list[str]:
    return [message.partition("\n")[0] for message in told]


def test_while_it_lasts(told: list[str]) -> None:
    """One record for each connection, with where its thread is, and one when it has come back."""
    gate = Gate()
    with ThreadPoolExecutor(2, "reports") as pool:
        running = pool.submit(hold, gate)
        assert wait_until(lambda: told)
        pid = connections_of(pool)
        assert len(told) == 1
        assert lines(told)[0].startswith(f"alias=default backend_pid={pid} executor=reports task=")
        assert "test_holds.hold has held its connection for 0." in told[0]
        assert "call release_connections() before slow work" in told[0]
        assert "in sit_there" in told[0]
        assert pool.submit(Entry.objects.count).result(20) == 0
        gate.open()
        running.result(20)
        assert wait_until(lambda: len(told) == 2)
    assert "has given its connection back after 0." in told[1]


def connections_of(pool: ThreadPoolExecutor) -> int | None:
    from django_executors import all_connections

    (found,) = [each for each in all_connections() if each.executor == pool.name]
    return found.backend_pid


def test_who_is_told_of(told: list[str]) -> None:
    """Nobody who has let go, who runs without a connection, or who is no task."""
    gate, mine, callback = Gate(), Gate(), Gate()

    def let_go() -> None:
        Entry.objects.count()
        release_connections()
        gate()

    with ThreadPoolExecutor(3, conn_max_idle=60) as pool:
        Entry.objects.count()  # of this thread's
        pool.submit(Entry.objects.count).result(20)  # kept, without a task
        quiet = [pool.submit(let_go), pool.submit(gate)]
        quiet[1].add_done_callback(lambda _: hold(callback))
        loud = pool.submit(hold, mine)
        assert wait_until(lambda: told)
        gate.open()
        [each.result(20) for each in quiet]
        callback.wait_for()
        again = pool.submit(hold, mine)  # is told of, and the callback is not
        assert wait_until(lambda: len(told) == 2)
        callback.open()
        mine.open()
        [each.result(20) for each in (loud, again)]
        assert wait_until(lambda: len(told) == 4)
    assert not any("task=None" in each for each in told)
    connection.close()


def test_again_for_the_next_task(told: list[str]) -> None:
    """A connection that is kept from task to task is held anew by each."""
    gates = [Gate() for _ in range(3)]
    with ThreadPoolExecutor(1) as pool:
        futures = [pool.submit(hold, gate) for gate in gates]
        for number, gate in enumerate(gates):
            assert wait_until(lambda number=number: len(told) == 2 * number + 1)  # type: ignore[misc]
            gate.open()
            assert wait_until(lambda number=number: len(told) == 2 * number + 2)  # type: ignore[misc]
        [each.result(20) for each in futures]


def test_of_a_tasks_coroutine(told: list[str]) -> None:
    """The thread in which its ORM calls run is the task's."""
    gate = Gate()

    async def main() -> None:
        await Entry.objects.acount()
        await asyncio.to_thread(gate)

    with ThreadPoolExecutor(1, "async") as pool:
        running = pool.submit(lambda: asyncio.run(main()))
        assert wait_until(lambda: told)
        assert "executor=async task=" in told[0]
        gate.open()
        running.result(20)


def test_a_log_handler_that_queries(told: list[str]) -> None:
    """What it opens in the watching thread is closed there."""
    queried: list[int] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            queried.append(Entry.objects.count())

    gate, handler = Gate(), Handler()
    holds.logger.addHandler(handler)
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(hold, gate)
            assert wait_until(lambda: queried)
            gate.open()
            running.result(20)
            assert wait_until(lambda: len(queried) == 2)
    finally:
        holds.logger.removeHandler(handler)


def test_a_log_handler_that_raises(told: list[str]) -> None:
    """The next hold is told of all the same."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise LookupError("of the handler")

    handler = Handler()
    holds.logger.addHandler(handler)
    try:
        with ThreadPoolExecutor(1) as pool:
            for number in (1, 2):
                gate = Gate()
                running = pool.submit(hold, gate)
                assert wait_until(lambda number=number: len(told) >= number)  # type: ignore[misc]
                gate.open()
                running.result(20)
    finally:
        holds.logger.removeHandler(handler)


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task's query is right, and the next connection tries again."""
    assert wait_until(lambda: holds._thread is None or holds._thread.is_alive())
    with override_settings(EXECUTORS_HOLD_WARNING=None):
        assert wait_until(lambda: holds._thread is None)
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == "django_executors-holds":
            raise RuntimeError("can't start new thread")
        start(self)

    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert pool.submit(Entry.objects.count).result(20) == 0
        assert holds._thread is None
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Entry.objects.count).result(20)
        assert holds._thread is not None


def test_a_fork_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no handler runs, the next connection finds out that the thread is the parent's."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Entry.objects.count).result(20)
        before = holds._thread
        monkeypatch.setattr(holds, "_pid", -1)
        pool.submit(Entry.objects.count).result(20)
        assert holds._thread is not before
        assert before is not None
    with override_settings(EXECUTORS_HOLD_WARNING=None):
        before.join(20)


def test_in_a_forked_child(told: list[str]) -> None:
    """The child has a watching thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Entry.objects.count).result(20)

        def child() -> None:
            assert holds._thread is None
            pool.submit(Entry.objects.count).result(20)
            assert holds._thread is not None
            assert holds._thread.is_alive()

        assert fork(child) == (0, "")


@override_settings(EXECUTORS_HOLD_WARNING=None)
def test_off() -> None:
    """Nobody looks."""
    assert wait_until(lambda: holds._thread is None)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Entry.objects.count).result(20)
        assert holds._thread is None
        assert "django_executors-holds" not in {each.name for each in threading.enumerate()}


@pytest.mark.parametrize("value", [0, -1, "30", True, float("nan")])
def test_wrong(value: Any) -> None:
    with override_settings(EXECUTORS_HOLD_WARNING=value), ThreadPoolExecutor(1) as pool:
        future = pool.submit(Entry.objects.count)
        with pytest.raises(ImproperlyConfigured, match="EXECUTORS_HOLD_WARNING must be"):
            future.result(20)


def test_who_holds_the_last_permit() -> None:
    """The error says where each thread is that holds one."""
    gate = Gate()
    with (
        ceiling(1),
        override_settings(EXECUTORS_CONNECTION_WAIT_TIMEOUT=0.0),
        ThreadPoolExecutor(2) as pool,
    ):
        running = pool.submit(hold, gate)
        gate.wait_for()
        with pytest.raises(ConnectionLimitTimeout, match="in sit_there"):
            pool.submit(Entry.objects.count).result(20)
        gate.open()
        running.result(20)


def test_who_fills_the_server(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """So does the record of a full server."""
    from django_executors.connections import incidents

    gate = Gate()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(hold, gate)
        gate.wait_for()
        with caplog.at_level(logging.ERROR, "django_executors.connections.incidents"):
            monkeypatch.setattr(incidents, "_next", float("-inf"))
            incidents.note("default", OperationalError("sorry, too many clients already"))
        gate.open()
        running.result(20)
    assert "in sit_there" in caplog.text
    connections.close_all()
