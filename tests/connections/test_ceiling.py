"""EXECUTORS_MAX_CONNECTIONS: worker threads hold no more connections than it says, and take turns."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.signals import connection_created

from django_executors import (
    ConnectionLimitTimeout,
    ExecutorError,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)
from django_executors.lifecycle import limits
from tests.projects.testapp.models import Entry
from tests.support.ceilings import Most, ceiling, count_connections, waits
from tests.support.forks import fork
from tests.support.gates import Gate
from tests.support.kept import backend, held_up, results
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until


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
            assert (executor, task) == ("executor=shop", "task=tests.support.ceilings.QueriesThenWaits")
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


# Under a ceiling a kept connection goes to whoever waits for one.


def opened_and_closed(pool: ThreadPoolExecutor) -> tuple[int, int]:
    stats = pool.stats()
    return stats.connections_opened, stats.connections_closed


@pytest.mark.usefixtures("conn_max_age")
def test_kept_for_a_task_that_makes_no_query(gate: Gate) -> None:
    """A connection that is kept for a task which makes no query goes to a worker that waits for it."""
    with ceiling(1, timeout=10.0), ThreadPoolExecutor(1) as busy, ThreadPoolExecutor(1) as other:
        with held_up(busy):
            first = busy.submit(backend)
            busy.submit(gate)
            last = busy.submit(backend)
        gate.wait_for()
        assert other.submit(Entry.objects.count).result(10) == 0
        gate.open()
        assert last.result(10) != first.result(10)
    assert all_connections() == ()


@pytest.mark.usefixtures("conn_max_age")
def test_what_was_taken_away_is_waited_for(gate: Gate, holding: Gate) -> None:
    """A worker whose kept connection went to another waits in turn like everybody."""
    with ceiling(1, timeout=0.05), ThreadPoolExecutor(1) as busy, ThreadPoolExecutor(1) as other:
        with held_up(busy):
            first = busy.submit(backend)
            busy.submit(gate)
            last = busy.submit(backend)
        gate.wait_for()
        held = other.submit(holding)
        holding.wait_for()
        assert opened_and_closed(busy) == (1, 1)
        gate.open()
        first.result(10)
        assert isinstance(last.exception(10), ConnectionLimitTimeout)
        holding.open()
        held.result(10)
        assert opened_and_closed(busy) == opened_and_closed(other) == (1, 1)


def test_busy_pool_gives_way() -> None:
    """A pool with a long queue gives its permit up after a task if another waits for it."""
    began, go_on = threading.Event(), threading.Event()

    def first() -> None:
        Entry.objects.count()
        began.set()
        assert go_on.wait(10)

    order: list[str] = []

    def note(name: str) -> None:
        Entry.objects.count()
        order.append(name)

    with ceiling(1), ThreadPoolExecutor(1) as busy, ThreadPoolExecutor(1) as other:
        futures = [busy.submit(first), *(busy.submit(note, "busy") for _ in range(3))]
        assert began.wait(10)
        futures.append(other.submit(note, "other"))
        wait_until(lambda: waits("default"))
        go_on.set()
        results(futures)
    assert order[0] == "other"


def test_idle_worker_keeps_none() -> None:
    """With conn_max_idle set, a connection under a ceiling is closed before the future resolves."""
    found: list[object] = []
    go_on = threading.Event()
    with ceiling(1), ThreadPoolExecutor(1, conn_max_idle=60.0) as pool:
        future = pool.submit(lambda: (Entry.objects.count(), go_on.wait(10)))
        future.add_done_callback(lambda _: found.append(all_connections()))
        go_on.set()
    assert found == [()]


def test_kept_for_work_that_another_has_taken(gate: Gate) -> None:
    """With conn_max_idle set, what was kept for queued work goes as soon as its worker is idle."""
    other, release_other = threading.Event(), threading.Event()

    def occupy() -> None:
        other.set()
        assert release_other.wait(10)

    with ceiling(1), ThreadPoolExecutor(2, conn_max_idle=60.0) as pool:
        busy = pool.submit(occupy)
        assert other.wait(10)
        go_on = threading.Event()
        keeps = pool.submit(lambda: (Entry.objects.count(), go_on.wait(10)))
        keeps.add_done_callback(gate)
        queued = pool.submit(lambda: None)
        go_on.set()
        gate.wait_for()
        assert len(all_connections()) == 1
        release_other.set()
        queued.result(10)
        busy.result(10)
        gate.open()
        assert wait_until(all_connections, lambda found: not found) == ()


# However a connection ends, its permit is given back.


@pytest.fixture
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


@pytest.mark.usefixtures("all_permits_are_there")
def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connect that the server refuses."""
    monkeypatch.setitem(connections.settings["default"], "PORT", 1)
    run(Entry.objects.count, OperationalError)
    monkeypatch.undo()


@pytest.mark.usefixtures("all_permits_are_there")
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


@pytest.mark.usefixtures("all_permits_are_there")
def test_receiver_raises() -> None:
    """A receiver of connection_created raises, after the socket has opened."""

    def receiver(**kwargs: object) -> None:
        raise LookupError

    connection_created.connect(receiver)
    try:
        run(Entry.objects.count, LookupError)
    finally:
        connection_created.disconnect(receiver)


@pytest.mark.usefixtures("all_permits_are_there", "conn_max_age")
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


@pytest.mark.usefixtures("all_permits_are_there")
def test_task_that_raises_in_a_transaction() -> None:
    """A task leaves a transaction open and raises."""

    def task() -> None:
        transaction.set_autocommit(False)
        Entry.objects.count()
        raise LookupError

    run(task, LookupError)


@pytest.mark.assert_no_open_connections(False)  # it cannot know that the driver has closed it
@pytest.mark.usefixtures("all_permits_are_there")
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
@pytest.mark.usefixtures("all_permits_are_there")
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


@pytest.mark.usefixtures("all_permits_are_there")
def test_connection_taken_from_the_wrapper() -> None:
    """A task closes the driver's connection behind Django's back and connects again."""

    def task() -> None:
        for _ in range(3):
            Entry.objects.count()
            driver: Any = connection.connection
            connection.connection = None
            driver.close()

    run(task)


@pytest.mark.usefixtures("all_permits_are_there")
def test_interrupted() -> None:
    """A task ends by an exception that is no Exception."""

    def task() -> None:
        Entry.objects.count()
        raise SystemExit

    run(task, SystemExit)


@pytest.mark.usefixtures("all_permits_are_there")
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


@pytest.mark.usefixtures("all_permits_are_there")
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


@pytest.mark.usefixtures("all_permits_are_there")
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
