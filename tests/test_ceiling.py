"""EXECUTORS_MAX_CONNECTIONS: worker threads hold no more connections than it says, and take turns."""

from __future__ import annotations

import contextlib
import threading

import pytest
from django.db import OperationalError, connection

from django_executors import (
    ConnectionLimitTimeout,
    ExecutorError,
    ThreadPoolExecutor,
    connection_scope,
    release_connections,
)
from django_executors.lifecycle import limits

from .ceilings import Most, ceiling, count_connections, waits
from .gates import Gate
from .keeping import results
from .observers import PostgresObserver
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> Most:
    return count_connections(monkeypatch)


def count_and_return(number: int) -> tuple[int, int]:
    return Entry.objects.count(), number


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("conn_max_idle", [0.0, 60.0])
def test_never_more(most: Most, conn_max_idle: float, postgres: PostgresObserver) -> None:
    """Several pools together never hold more, and all results are right."""
    pools = [ThreadPoolExecutor(4, conn_max_idle=conn_max_idle) for _ in range(3)]
    with ceiling(3):
        futures = [
            pool.submit(lambda n: (Entry.objects.count(), n), n) for n in range(40) for pool in pools
        ]
        assert results(futures) == [(0, n) for n in range(40) for _ in pools]
        assert most.most == 3
        assert wait_until(lambda: most.now, lambda now: now == 0) == 0
        assert not postgres.left()
        for pool in pools:
            pool.shutdown()


def test_permit_is_taken_when_a_connection_is_opened(holding: Gate) -> None:
    """A task that makes no query is not held back, and one that does waits for its turn."""
    with ceiling(1), ThreadPoolExecutor(3) as pool:
        pool.submit(holding)
        holding.wait_for()
        assert pool.submit(lambda: "no query").result(10) == "no query"
        waiting = pool.submit(Entry.objects.count)
        assert not waiting.done()
        holding.open()
        assert waiting.result(10) == 0


def test_release_connections_frees_it(gate: Gate) -> None:
    """A task that has called release_connections() holds no permit during its slow work."""

    def slow_after_query() -> None:
        Entry.objects.count()
        release_connections()
        gate()

    with ceiling(1), ThreadPoolExecutor(2) as pool:
        pool.submit(slow_after_query)
        gate.wait_for()
        assert pool.submit(Entry.objects.count).result(10) == 0
        gate.open()


def test_timeout_says_who_holds_them(holding: Gate) -> None:
    """A worker that has no turn in time gets an OperationalError with the numbers and the holders."""
    with ceiling(2, timeout=0.05), ThreadPoolExecutor(3, "shop") as pool:
        held = [pool.submit(holding) for _ in range(2)]
        holding.wait_for(2)
        error = pool.submit(Entry.objects.count).exception(10)
        holding.open()
        results(held)
        assert isinstance(error, ConnectionLimitTimeout)
        assert isinstance(error, OperationalError)
        assert isinstance(error, ExecutorError)
        first, *held_by = str(error).splitlines()
        assert first == (
            "alias=default waited 0.05 s for a connection: EXECUTORS_MAX_CONNECTIONS=2 held=2 waiting=1"
        )
        assert len(held_by) == 2
        for line in held_by:
            thread, executor, task, age = line.split()
            assert thread in ("thread=shop_0", "thread=shop_1", "thread=shop_2")
            assert (executor, task) == ("executor=shop", "task=tests.ceilings.QueriesThenWaits")
            assert age.startswith("age=0.")
        assert pool.submit(Entry.objects.count).result(10) == 0


def test_first_come_first_served(holding: Gate) -> None:
    """Those who wait connect in the order in which they came, across pools."""
    served: list[int] = []

    def take_turn(number: int) -> None:
        Entry.objects.count()
        served.append(number)

    with contextlib.ExitStack() as stack:
        stack.enter_context(ceiling(1))
        pools = [stack.enter_context(ThreadPoolExecutor(1, f"pool{n}")) for n in range(6)]
        pools[0].submit(holding)
        holding.wait_for()
        waiting = []
        for number, pool in enumerate(pools[1:]):
            waiting.append(pool.submit(take_turn, number))
            wait_until(lambda: waits("default"), lambda now, n=number: now == n + 1)
        holding.open()
        for future in waiting:
            future.result(10)
    assert served == [0, 1, 2, 3, 4]


def test_main_and_request_threads_are_not_held_back(holding: Gate, postgres: PostgresObserver) -> None:
    """With all permits taken, the main thread and other threads that are no workers still connect."""
    found: list[int] = []
    with ceiling(1, timeout=0.0), ThreadPoolExecutor(1) as pool:
        pool.submit(holding)
        holding.wait_for()
        assert Entry.objects.count() == 0
        connection.close()
        with connection_scope():
            assert Entry.objects.count() == 0

        def request() -> None:
            found.append(Entry.objects.count())
            connection.close()

        thread = threading.Thread(target=request)
        thread.start()
        thread.join(10)
        holding.open()
    assert found == [0]


def test_scope_in_a_thread_is_held_back(holding: Gate) -> None:
    """A thread in a connection_scope takes a permit too, and gives it back at the scope's end."""
    found: list[object] = []

    @connection_scope
    def scoped() -> None:
        try:
            found.append(Entry.objects.count())
        except ConnectionLimitTimeout:
            found.append("no turn")

    def run() -> None:
        thread = threading.Thread(target=scoped)
        thread.start()
        thread.join(10)

    with ceiling(1, timeout=0.0), ThreadPoolExecutor(1) as pool:
        run()
        run()
        pool.submit(holding)
        holding.wait_for()
        run()
        holding.open()
    assert found == [0, 0, "no turn"]


def test_timeout_is_all_that_is_waited(holding: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has no turn waits for the timeout, and for no more."""
    waited: list[float] = []
    wait = limits.Permit.wait

    def note(permit: limits.Permit, timeout: float) -> bool:
        waited.append(timeout)
        return wait(permit, timeout)

    with ceiling(1, timeout=0.05), ThreadPoolExecutor(2) as pool:
        pool.submit(holding)
        holding.wait_for()
        monkeypatch.setattr(limits.Permit, "wait", note)
        error = pool.submit(Entry.objects.count).exception(10)
        holding.open()
    assert isinstance(error, ConnectionLimitTimeout)
    assert waited == [0, 0.05]
