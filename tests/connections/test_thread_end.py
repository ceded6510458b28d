"""When a thread ends, what it opened is closed in it, at once: counted on the server, collector off."""

from __future__ import annotations

import _thread
import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, connections

from django_executors import ConnectionInfo, ThreadPoolExecutor, all_connections
from django_executors.lifecycle import guard
from tests.projects.testapp.models import Entry
from tests.support.observers import MariaDBObserver, PostgresObserver
from tests.support.waiting import wait_until

with_app = pytest.mark.usefixtures("watch_every_thread")

THREADS = 8


def run(target: Callable[[], object], name: str | None = None) -> None:
    """Run it in a plain thread, to its end."""
    thread = threading.Thread(target=target, name=name)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def count() -> None:
    Entry.objects.count()


@pytest.fixture(autouse=True)
def books_of_threading() -> Iterator[None]:
    """No thread's end adds to what `threading` knows of."""
    before = set(threading.enumerate())
    yield
    assert wait_until(lambda: set(threading.enumerate()) - before, lambda new: not new) == set()


@pytest.fixture(autouse=True)
def nothing_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """No thread's end prints anything."""
    yield
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("conn_max_age")
def test_pool_forgotten(postgres: PostgresObserver) -> None:
    """A pool that is dropped without `shutdown` leaves no connection and no worker thread."""

    def request() -> None:
        pool = ThreadPoolExecutor(20, "forgotten")
        for future in [pool.submit(count) for _ in range(3)]:
            future.result(10)

    for _ in range(5):
        request()
    assert all_connections() == ()
    assert not postgres.left()
    assert not wait_until(workers, lambda found: not found)


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("forgotten")]


@pytest.mark.usefixtures("conn_max_age")
def test_worker_ends_after_a_callback(postgres: PostgresObserver) -> None:
    """What a callback opens when the pool is already gone is closed when its worker has ended."""
    go_on, done = threading.Event(), threading.Event()

    def callback(_: object) -> None:
        count()
        done.set()

    def forget() -> None:
        pool = ThreadPoolExecutor(1, "forgotten")
        pool.submit(go_on.wait, 10).add_done_callback(callback)
        pool.shutdown(wait=False)

    forget()
    go_on.set()
    assert done.wait(10)
    # It is not among the threads any more some time before it has ended.
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left()


def test_worker_whose_initializer_raises(
    postgres: PostgresObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that ends before it ever waited closes what its initializer opened, without the app."""

    def initializer() -> None:
        count()
        raise LookupError("of the initializer")

    pool = ThreadPoolExecutor(1, "forgotten", initializer)
    assert isinstance(pool.submit(count).exception(10), concurrent.futures.BrokenExecutor)
    assert not wait_until(workers, lambda found: not found)
    # A thread leaves threading's books a moment before its own values are dropped.
    assert not wait_until(all_connections, lambda found: not found)
    assert not postgres.left()
    assert [record.name for record in caplog.records] == ["concurrent.futures"]


@with_app
@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("alias", ["default", "sqlite", "mariadb"])
def test_plain_thread(alias: str, request: pytest.FixtureRequest, postgres: PostgresObserver) -> None:
    """With the app, a thread that used the ORM has closed its connection when it has ended."""
    if alias == "mariadb":
        mariadb: MariaDBObserver = request.getfixturevalue("mariadb")
    held: list[int] = []
    all_in = threading.Barrier(THREADS, action=lambda: held.append(len(all_connections())))

    def target() -> None:
        Entry.objects.using(alias).count()
        all_in.wait(10)

    threads = [threading.Thread(target=target) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert held == [THREADS]
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left()
    if alias == "mariadb":
        assert not mariadb.left()


@with_app
def test_thread_that_raises_in_a_transaction(
    postgres: PostgresObserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that ends in an exception, with a transaction open, closes its connection."""
    raised: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))

    def target() -> None:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
        Entry.objects.create(name="not committed")
        raise LookupError("of the thread")

    run(target)
    assert raised == [LookupError]
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left()
    assert not Entry.objects.exists()


@with_app
def test_two_aliases(postgres: PostgresObserver) -> None:
    """Every alias that the thread opened is closed."""

    def target() -> None:
        Entry.objects.count()
        Entry.objects.using("other").count()

    run(target)
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left("app")
    assert not postgres.left("other")


@with_app
def test_slots_of_djangos_pool() -> None:
    """More threads than Django's pool has slots each give theirs back when they end."""
    failed: list[BaseException] = []

    def target() -> None:
        try:
            Entry.objects.using("pooled").count()
        except BaseException as error:
            failed.append(error)

    for _ in range(10):  # max_size is 4
        run(target)
    assert not failed
    assert wait_until(all_connections, lambda found: not found) == ()
    statistics = connections["pooled"].pool.get_stats()
    assert statistics["pool_available"] == statistics["pool_size"]


@with_app
def test_raw_thread(postgres: PostgresObserver) -> None:
    """A thread that `threading` knows nothing of closes too, and stays out of its books."""
    ended = threading.Event()

    class OnEnd:
        def __del__(self) -> None:
            ended.set()

    def target(local: threading.local) -> None:
        local.on_end = OnEnd()
        count()

    _thread.start_new_thread(target, (threading.local(),))
    assert ended.wait(10)
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left()


@with_app
def test_standard_pool(postgres: PostgresObserver) -> None:
    """The workers of a standard pool close when they end."""
    held: list[int] = []
    all_in = threading.Barrier(THREADS, action=lambda: held.append(len(all_connections())))

    def task() -> None:
        count()
        all_in.wait(10)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(task) for _ in range(THREADS)]:
            future.result(10)
    assert held == [THREADS]
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left()


@with_app
def test_closing_that_raises(postgres: PostgresObserver, caplog: pytest.LogCaptureFixture) -> None:
    """An error on closing is silent in the dying thread, and logged once by the next live release."""

    def target() -> None:
        Entry.objects.count()
        Entry.objects.using("other").count()

        def _close() -> None:
            raise OSError("of the close")

        vars(connections["default"])["_close"] = _close

    run(target, "dying")
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left("app")
    assert not postgres.left("other")
    assert caplog.messages == []
    pool = ThreadPoolExecutor(1)
    assert pool.submit(Entry.objects.count).result(10) == 0
    assert pool.submit(Entry.objects.count).result(10) == 0
    assert caplog.messages == ["thread=dying alias=default closing failed when the thread ended"]
    assert str(caplog.records[0].exc_info[1]) == "of the close"


# What the end of a thread leaves alone: what is lent, what another thread drops, what is Django's.


with_app = pytest.mark.usefixtures("watch_every_thread")


def the_only_one(postgres: PostgresObserver) -> ConnectionInfo:
    """Return what is open, which is one connection, on the server too."""
    (info,) = all_connections()
    pids = {info.backend_pid}
    assert wait_until(postgres.backends, lambda found: found == pids) == pids
    return info


def in_a_plain_thread(target: Callable[[], None]) -> None:
    run(target)


def in_a_task(target: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(target).result(10)


def in_an_initializer(target: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1, initializer=target) as pool:
        assert pool.submit(int).result(10) == 0


@with_app
@pytest.mark.parametrize("borrow", [in_a_plain_thread, in_a_task, in_an_initializer])
@pytest.mark.parametrize("kind", ["own", "copy"])
def test_lent_connection(
    kind: str, borrow: Callable[[Callable[[], None]], None], postgres: PostgresObserver
) -> None:
    """A lent wrapper is its lender's, even if it first connects in the borrower's thread."""
    lent = connections["default"] if kind == "own" else connections["default"].copy()
    assert lent.connection is None
    lent.inc_thread_sharing()

    def target() -> None:
        connections["default"] = lent
        lent.set_autocommit(False)
        Entry.objects.create(name="of the borrower")

    try:
        borrow(target)
        the_only_one(postgres)
        with lent.cursor() as cursor:
            cursor.execute("SELECT name FROM testapp_entry")
            assert cursor.fetchall() == [("of the borrower",)]
        lent.rollback()
    finally:
        lent.close()
        lent.dec_thread_sharing()
    assert all_connections() == ()
    assert not postgres.left()


def close_of_dead_thread(wrapper: Any) -> None:
    """Close what a thread has left behind, as nobody but a test should."""
    wrapper.inc_thread_sharing()
    wrapper.close()
    assert all_connections() == ()


@with_app
def test_thread_that_lent_its_connection(postgres: PostgresObserver) -> None:
    """A connection that a thread has lent to another stays open when the lender ends first."""
    lent: list[Any] = []

    def target() -> None:
        count()
        lent.append(connections["default"])
        lent[0].inc_thread_sharing()

    run(target)
    the_only_one(postgres)
    with lent[0].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM testapp_entry")
        assert cursor.fetchall() == [(0,)]
    close_of_dead_thread(lent.pop())


@with_app
def test_guard_that_another_thread_drops(postgres: PostgresObserver) -> None:
    """Where Python drops a thread's guard in another thread (a daemon's, at exit), it does nothing."""
    kept: list[Any] = []

    def target() -> None:
        count()
        kept.extend([connections["default"], guard._local.end])

    run(target)
    kept.pop()
    the_only_one(postgres)
    close_of_dead_thread(kept.pop())


def test_without_the_app(postgres: PostgresObserver) -> None:
    """Without the app plain threads are Django's own business: what they open stays, and is seen."""
    kept: list[Any] = []

    def target() -> None:
        count()
        kept.append(connections["default"])

    run(target, "left alone")
    assert the_only_one(postgres).thread_name == "left alone"
    close_of_dead_thread(kept.pop())
