"""EXECUTORS_MAX_CONNECTIONS: worker threads hold no more connections than it says, and take turns."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError, connection, connections
from django.db.backends.signals import connection_created

from django_executors import (
    ConnectionLimitTimeout,
    ExecutorError,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)
from tests.projects.testapp.models import Entry
from tests.support.ceilings import QueriesThenWaits, ceiling, count_connections, waits
from tests.support.endings import exits, killed
from tests.support.forks import fork
from tests.support.gates import Gate
from tests.support.kept import backend, held_up, results
from tests.support.waiting import wait_until


def in_a_thread(fn: Callable[[], object]) -> None:
    thread = threading.Thread(target=fn)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def wait_for_waiting(count: int) -> None:
    """Return when this many wait for a permit."""
    assert wait_until(lambda: waits("default"), lambda now: now == count, within=30) == count


def test_permit_is_taken_when_a_connection_is_opened(holding: Gate) -> None:
    """A task that makes no query is not held back, and one that does waits for its turn."""
    with ceiling(1), ThreadPoolExecutor(3) as pool:
        pool.submit(holding)
        holding.wait_for()
        assert pool.submit(lambda: "no query").result(20) == "no query"
        waiting = pool.submit(Entry.objects.count)
        wait_for_waiting(1)
        holding.open()
        assert waiting.result(20) == 0


def test_release_connections_frees_it(gate: Gate) -> None:
    """A task that has called release_connections() holds no permit during its slow work."""

    def slow_after_query() -> None:
        Entry.objects.count()
        release_connections()
        gate()

    with ceiling(1, timeout=0.0), ThreadPoolExecutor(2) as pool:
        pool.submit(slow_after_query)
        gate.wait_for()
        assert pool.submit(Entry.objects.count).result(20) == 0
        gate.open()


@pytest.mark.parametrize(
    ("conn_max_age", "conn_max_idle"), [(0, 0.0), (600, 60.0)], indirect=["conn_max_age"]
)
@pytest.mark.usefixtures("conn_max_age")
def test_never_more(conn_max_idle: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pools together never hold more, and all results are right."""
    counted = count_connections(monkeypatch)
    together = threading.Barrier(3)
    with ceiling(3), contextlib.ExitStack() as stack:
        pools = [
            stack.enter_context(ThreadPoolExecutor(3, conn_max_idle=conn_max_idle)) for _ in range(3)
        ]
        meeting = [pool.submit(lambda: (Entry.objects.count(), together.wait(20))) for pool in pools]
        futures = [
            pool.submit(lambda n: Entry.objects.count() + n, n) for n in range(8) for pool in pools
        ]
        assert results(futures) == [n for n in range(8) for _ in pools]
        results(meeting)
        assert counted.most == 3
        assert wait_until(lambda: counted.now, lambda now: now == 0) == 0


def test_timeout_says_who_holds_them(holding: Gate) -> None:
    """A worker that has no turn in time gets an OperationalError with the numbers and the holders."""
    with ceiling(2, timeout=0.05), ThreadPoolExecutor(3, "shop") as pool:
        held = [pool.submit(holding) for _ in range(2)]
        holding.wait_for(2)
        error = pool.submit(Entry.objects.count).exception(20)
        holding.open()
        results(held)
        assert isinstance(error, ConnectionLimitTimeout)
        assert isinstance(error, OperationalError)
        assert isinstance(error, ExecutorError)
        first, *held_by = str(error).splitlines()
        assert first == (
            "alias=default waited 0.05 s for a connection: EXECUTORS_MAX_CONNECTIONS=2 held=2 waiting=1"
        )
        held_by = [line for line in held_by if line.startswith("thread=")]  # the others are stacks
        assert len(held_by) == 2
        for line in held_by:
            thread, executor, task, age = line.split()
            assert thread in ("thread=shop_0", "thread=shop_1", "thread=shop_2")
            assert (executor, task) == ("executor=shop", "task=tests.support.ceilings.QueriesThenWaits")
            assert age.startswith("age=")
        assert pool.submit(Entry.objects.count).result(20) == 0


def test_first_come_first_served(holding: Gate) -> None:
    """Those who wait connect in the order in which they came, across pools."""
    served: list[int] = []

    def take_turn(number: int) -> None:
        Entry.objects.count()
        served.append(number)

    with ceiling(1), contextlib.ExitStack() as stack:
        first, *pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(4)]
        first.submit(holding)
        holding.wait_for()
        waiting = []
        for number, pool in enumerate(pools):
            waiting.append(pool.submit(take_turn, number))
            wait_for_waiting(number + 1)
        holding.open()
        results(waiting)
    assert served == [0, 1, 2]


def test_main_and_request_threads_are_not_held_back(holding: Gate) -> None:
    """With all permits taken, the main thread and other threads that are no workers still connect."""
    found: list[int] = []

    def request() -> None:
        found.append(Entry.objects.count())
        connection.close()

    with ceiling(1, timeout=0.0), ThreadPoolExecutor(1) as pool:
        pool.submit(holding)
        holding.wait_for()
        request()
        with connection_scope():
            request()
        in_a_thread(request)
        holding.open()
    assert found == [0, 0, 0]


def test_scope_in_a_thread_is_held_back(holding: Gate) -> None:
    """A thread in a connection_scope takes a permit too, and gives it back at the scope's end."""
    found: list[object] = []

    @connection_scope
    def scoped() -> None:
        try:
            found.append(Entry.objects.count())
        except ConnectionLimitTimeout:
            found.append("no turn")

    with ceiling(1, timeout=0.0), ThreadPoolExecutor(1) as pool:
        in_a_thread(scoped)
        in_a_thread(scoped)
        pool.submit(holding)
        holding.wait_for()
        in_a_thread(scoped)
        holding.open()
    assert found == [0, 0, "no turn"]


# Under a ceiling, a kept connection goes to a worker that waits for one.


@pytest.mark.parametrize("conn_max_age", [0, 600], indirect=True)
@pytest.mark.usefixtures("conn_max_age")
def test_kept_for_a_task_that_makes_no_query(gate: Gate, holding: Gate) -> None:
    """It goes to a worker that waits; who had kept it for a later task waits in turn like others."""
    with ceiling(1, timeout=0.0), ThreadPoolExecutor(1) as busy, ThreadPoolExecutor(1) as other:
        with held_up(busy):
            first = busy.submit(backend)
            busy.submit(gate)
            last = busy.submit(backend)
        gate.wait_for()
        held = other.submit(holding)
        holding.wait_for()
        gate.open()
        assert isinstance(last.exception(20), ConnectionLimitTimeout)
        holding.open()
        held.result(20)
        assert busy.submit(backend).result(20) != first.result(20)
        assert [pool.stats().connections_opened for pool in (busy, other)] == [2, 1]
        assert [pool.stats().connections_closed for pool in (busy, other)] == [2, 1]


def test_busy_pool_gives_way(holding: Gate) -> None:
    """A pool with a long queue gives its permit up after a task if another waits for it."""
    order: list[str] = []

    def note(name: str) -> None:
        Entry.objects.count()
        order.append(name)

    with ceiling(1), ThreadPoolExecutor(1) as busy, ThreadPoolExecutor(1) as other:
        futures = [busy.submit(holding), *(busy.submit(note, "busy") for _ in range(3))]
        holding.wait_for()
        futures.append(other.submit(note, "other"))
        wait_for_waiting(1)
        holding.open()
        results(futures)
    assert order[0] == "other"


def test_idle_worker_keeps_none(holding: Gate) -> None:
    """With conn_max_idle set, a connection under a ceiling is closed before the future resolves."""
    found: list[object] = []
    with ceiling(1), ThreadPoolExecutor(1, conn_max_idle=60.0) as pool:
        future = pool.submit(holding)
        future.add_done_callback(lambda _: found.append(all_connections()))
        holding.open()
    assert found == [()]


# However a connection ends, its permit is given back.


@pytest.fixture
def all_permits_are_there() -> Iterator[None]:
    """With a ceiling of one, and no time to wait, each task after the test's gets its connection."""
    with ceiling(1, timeout=0.0):
        yield
        with ThreadPoolExecutor(1) as pool:
            for _ in range(3):
                assert pool.submit(Entry.objects.count).result(20) == 0


def run(task: Callable[[], object], error: type[BaseException] | None = None) -> None:
    """Run the task twice in one worker, and have it end so."""
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            raised = pool.submit(task).exception(20)
            assert raised is None if error is None else isinstance(raised, error), raised


def killed_and_connects_again() -> None:
    with pytest.raises(OperationalError):
        killed()
    connection.close()
    Entry.objects.count()


def closes_the_driver() -> None:
    for _ in range(3):
        Entry.objects.count()
        driver: Any = connection.connection
        connection.connection = None
        driver.close()


def throws_the_wrapper_away() -> None:
    closes_the_driver()
    del connections["default"]
    Entry.objects.count()


def closes_after_a_patch() -> None:
    """The end of the patch deletes our hooks, of which `close` gives the permit back."""
    for _ in range(2):
        Entry.objects.count()
        with mock.patch("django.db.connection.close"), mock.patch("django.db.connection.connect"):
            pass
        connection.close()


def leaves_the_wrapper_to_the_collector() -> None:
    closes_the_driver()
    wrapper: Any = connections["default"]
    wrapper.itself = wrapper
    del connections["default"], wrapper
    gc.collect()


@pytest.mark.assert_no_open_connections(False)  # it cannot know that the driver has closed it
@pytest.mark.parametrize(
    ("task", "error"),
    [
        (exits, SystemExit),
        (killed_and_connects_again, None),
        (closes_the_driver, None),
        (throws_the_wrapper_away, None),
        (closes_after_a_patch, None),
        (leaves_the_wrapper_to_the_collector, None),
    ],
)
@pytest.mark.usefixtures("all_permits_are_there")
def test_task(task: Callable[[], object], error: type[BaseException] | None) -> None:
    """Whatever a task does to its connection."""
    run(task, error)


@pytest.mark.usefixtures("all_permits_are_there")
def test_refused(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """A connect that the server refuses costs none, while the task goes on too."""

    def task() -> None:
        with pytest.raises(OperationalError):
            Entry.objects.count()
        gate()

    with ThreadPoolExecutor(2) as pool:
        with monkeypatch.context() as patch:
            patch.setitem(connections.settings["default"], "PORT", 1)
            pool.submit(task)
            gate.wait_for()
        assert pool.submit(Entry.objects.count).result(20) == 0
        gate.open()


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


@pytest.mark.usefixtures("all_permits_are_there")
def test_thread_that_ends() -> None:
    """A thread ends inside a scope that it never leaves."""

    def enters() -> None:
        connection_scope().__enter__()
        assert Entry.objects.count() == 0

    for _ in range(3):
        in_a_thread(enters)


@pytest.mark.usefixtures("all_permits_are_there")
def test_forked_child_has_all_permits(holding: Gate) -> None:
    """A child that is forked while a worker holds the only permit has one of its own."""

    def child() -> None:
        assert ThreadPoolExecutor(1).submit(Entry.objects.count).result(20) == 0

    with ThreadPoolExecutor(1) as pool:
        pool.submit(holding)
        holding.wait_for()
        assert fork(child) == (0, "")
        holding.open()


def test_pooled() -> None:
    """Connections of Django's own pool count while a worker holds them."""
    holding = QueriesThenWaits("pooled")
    count = Entry.objects.using("pooled").count
    with ceiling(1, timeout=0.0, alias="pooled"), ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            assert pool.submit(count).result(20) == 0
        held = pool.submit(holding)
        holding.wait_for()
        error = pool.submit(count).exception(20)
        holding.open()
        held.result(20)
        assert isinstance(error, ConnectionLimitTimeout)
        assert pool.submit(count).result(20) == 0
