"""An error at the end of a task is logged once, and costs neither a result nor another connection."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg_pool
import pytest
from django.db import connection, connections, transaction
from psycopg.pq import PipelineStatus, TransactionStatus

from django_executors import ThreadPoolExecutor, all_connections, connection_scope
from django_executors.connections import wrapper as closing
from django_executors.connections.sessions import is_silent
from tests.projects.testapp.models import Entry
from tests.support.endings import (
    autocommit_off,
    exits,
    failed_query_in_raw_begin,
    interrupted,
    killed,
    open_pipeline,
    raises,
    raw_begin,
    suspended,
    unbalanced_atomic,
)
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until

LOGGER = "django_executors"


class OfTheClosing(Exception):
    """What closing raises here."""


def break_(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Have closing `default` fail, in Django's wrapper or in the driver, while its server is well."""
    owner: Any = type(connections["default"])
    if where == "the driver's close":
        owner = owner.Database.Connection
    name = where.rpartition(" ")[2]
    own = getattr(owner, name)

    def close(self: Any) -> None:
        if where == "the driver's close" and self.info.dbname == "app":
            self.pgconn.finish()
            raise OfTheClosing
        if where != "the driver's close" and self.alias == "default":
            raise OfTheClosing
        own(self)

    monkeypatch.setattr(owner, name, close)


def query_everywhere() -> str:
    for alias in ("other", "default", "sqlite"):
        Entry.objects.using(alias).count()
    return "the result"


def query_and_raise() -> None:
    query_everywhere()
    raise LookupError("of the task")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith(LOGGER)]


def assert_nothing_left(postgres: PostgresObserver) -> None:
    assert all_connections() == ()
    assert not postgres.left("app")
    assert not postgres.left("other")


@pytest.mark.parametrize("where", ["the wrapper's close", "the wrapper's _close", "the driver's close"])
def test_an_error_on_closing(
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    postgres: PostgresObserver,
) -> None:
    """Other aliases are closed, the task's outcome arrives, one warning names it, nothing is left."""
    pool = ThreadPoolExecutor(1)
    with monkeypatch.context() as patch:
        break_(patch, where)
        assert pool.submit(query_everywhere).result(20) == "the result"
        assert_nothing_left(postgres)
        (record,) = warnings_of(caplog)
        error = pool.submit(query_and_raise).exception(20)
    assert record.levelno == logging.WARNING
    assert "task=tests.connections.test_wrapper.query_everywhere" in record.getMessage()
    assert "alias=default" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is OfTheClosing
    assert isinstance(error, LookupError)
    assert error.__context__ is None
    assert_nothing_left(postgres)
    assert pool.submit(Entry.objects.count).result(20) == 0


def test_an_error_on_closing_after_a_callback(
    monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """The worker that waits after a done-callback survives it, and serves on."""
    pool = ThreadPoolExecutor(1)
    go_on = threading.Event()
    with monkeypatch.context() as patch:
        break_(patch, "the wrapper's close")
        future = pool.submit(go_on.wait, 20)
        future.add_done_callback(lambda _: query_everywhere())
        go_on.set()
        assert pool.submit(lambda: "alive").result(20) == "alive"
    assert pool.submit(Entry.objects.count).result(20) == 0
    assert_nothing_left(postgres)


def autocommit_changed() -> None:
    """Leave it off, and make no query after that."""
    connection.ensure_connection()
    transaction.set_autocommit(False)


streams: list[Iterator[Any]] = []


def suspended_stream() -> None:
    connection.ensure_connection()
    streams.append(connection.connection.cursor().stream("SELECT generate_series(1, 9)"))
    next(streams[-1])


def lock_held() -> None:
    """Leave the connection's lock held, as a suspended generator of the driver's does."""
    connection.ensure_connection()
    connection.connection.lock.acquire()


DIRTY: dict[Callable[[], object], str] = {
    raw_begin: "an open transaction",
    failed_query_in_raw_begin: "a failed transaction",
    autocommit_off: "an open transaction",
    autocommit_changed: "autocommit changed",
    unbalanced_atomic: "an open atomic block",
    open_pipeline: "an open pipeline",
    suspended_stream: "a query in flight",
    lock_held: "a generator in progress",
    killed: "a broken connection",
    exits: "an interruption",
    interrupted: "an interruption",
}


@pytest.mark.parametrize("ending", DIRTY, ids=lambda ending: ending.__name__)
def test_a_dirty_ending_is_told_once(
    ending: Callable[[], object], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is closed and its wrapper dropped; one warning names the task and the reason."""
    monkeypatch.setattr(closing, "_PATIENCE", 0.0)  # for a lock that nobody releases
    pool = ThreadPoolExecutor(1, thread_name_prefix="reports")
    before = pool.submit(lambda: connections["default"]).result(20)
    pool.submit(ending).exception(20)
    streams.clear()
    assert all_connections() == ()
    assert pool.submit(lambda: connections["default"]).result(20) is not before
    assert pool.submit(Entry.objects.count).result(20) == 0
    (record,) = warnings_of(caplog)
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert f"task={ending.__module__}.{ending.__name__} " in message
    assert "thread=reports_0 alias=default " in message
    assert DIRTY[ending] in message


def one_clean() -> None:
    with transaction.atomic():
        Entry.objects.create(name="kept")


def rolled_back() -> None:
    with contextlib.suppress(LookupError), transaction.atomic():
        raises()


def closed_by_the_task() -> None:
    Entry.objects.count()
    connection.close()


def test_a_clean_ending_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """A task that leaves nothing amiss logs nothing, whether it returns or raises."""
    pool = ThreadPoolExecutor(1)
    for ending in (one_clean, raises, rolled_back, closed_by_the_task, int):
        pool.submit(ending).exception(20)
    assert warnings_of(caplog) == []


def query_and_fail() -> None:
    query_everywhere()
    raise ZeroDivisionError


@pytest.mark.parametrize("in_handler", [query_everywhere, raw_begin, query_and_fail])
def test_a_handler_that_uses_the_orm(
    in_handler: Callable[[], object], monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """A log handler that queries, or raises, leaves nothing, replaces nothing, and is called once."""
    handler, seen = logging.Handler(), list[logging.LogRecord]()

    def emit(record: logging.LogRecord) -> None:
        seen.append(record)
        in_handler()

    def dirty(error: type[Exception] | None) -> str:
        raw_begin()
        if error is not None:
            raise error
        return "the result"

    monkeypatch.setattr(handler, "emit", emit)
    monkeypatch.setattr(logging.getLogger(LOGGER), "handlers", [handler])
    pool = ThreadPoolExecutor(1)
    assert pool.submit(dirty, None).result(20) == "the result"
    assert len(seen) == 1
    assert_nothing_left(postgres)
    assert isinstance(pool.submit(dirty, LookupError).exception(20), LookupError)
    assert len(seen) == 2
    assert_nothing_left(postgres)


# Django's own psycopg pool: every slot comes back clean, and the pool itself is never closed.


SLOTS = 4

Pool = psycopg_pool.ConnectionPool[Any]


@pytest.fixture(params=[False, True], ids=["plain", "close_returns"])
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A new pool of Django's for the alias `pooled`, with psycopg's `close_returns` off and on."""
    connections["pooled"].close_pool()
    options = {"pool": {"max_size": SLOTS, "close_returns": request.param, "timeout": 20.0}}
    monkeypatch.setitem(connections.settings["pooled"], "OPTIONS", options)
    pool = connections["pooled"].pool
    pool.open()
    yield pool
    while suspended:
        suspended.pop().close()  # where Django's Atomic then opens a connection
    connections["pooled"].close()
    connections["pooled"].close_pool()


one_kind_of_pool = pytest.mark.parametrize("pool", [False], indirect=True, ids=["plain"])


def take_every_slot(pool: Pool) -> set[int]:
    """Take all slots at once, each in its ordinary state, and return their backends."""
    pids = set()
    with contextlib.ExitStack() as taken:
        for _ in range(SLOTS):
            slot = pool.getconn(20)
            taken.callback(pool.putconn, slot)
            assert slot.info.transaction_status == TransactionStatus.IDLE
            assert slot.info.pipeline_status == PipelineStatus.OFF
            pids.add(slot.info.backend_pid)
    assert len(pids) == SLOTS
    return pids


def assert_whole(pool: Pool, postgres: PostgresObserver) -> None:
    """Nobody holds a slot, all are there at once and clean, and the pool is the same and open."""
    assert all_connections() == ()
    slots = take_every_slot(pool)
    assert wait_until(lambda: postgres.backends("pooled"), lambda pids: pids == slots) == slots
    assert connections["pooled"].pool is pool
    assert not pool.closed


def clean() -> None:
    Entry.objects.using("pooled").create(name="kept")


def raises_in_pool() -> None:
    with transaction.atomic(using="pooled"):
        Entry.objects.using("pooled").create(name="lost")
        raise LookupError


def raw_begin_in_pool() -> None:
    with connections["pooled"].cursor() as cursor:
        cursor.execute("BEGIN")
    Entry.objects.using("pooled").create(name="lost")


def autocommit_off_in_pool() -> None:
    transaction.set_autocommit(False, using="pooled")
    Entry.objects.using("pooled").create(name="lost")


def open_pipeline_in_pool() -> Any:
    connections["pooled"].ensure_connection()
    pipeline = connections["pooled"].connection.pipeline()
    pipeline.__enter__()
    return pipeline


def unbalanced_in_pool() -> None:
    unbalanced_atomic("pooled")


def unbalanced_and_closed_in_pool() -> None:
    unbalanced_in_pool()
    connections["pooled"].close()


ODD: list[Callable[[], object]] = [
    *(raises_in_pool, raw_begin_in_pool, autocommit_off_in_pool, open_pipeline_in_pool),
    *(unbalanced_in_pool, unbalanced_and_closed_in_pool),
]


def test_many_tasks(pool: Pool, postgres: PostgresObserver) -> None:
    """After tasks on more workers than slots, clean and odd ones, all slots are back and clean."""
    tasks = [clean, *ODD] * 10
    futures = [ThreadPoolExecutor(8).submit(task) for task in tasks[:14]]
    executor = ThreadPoolExecutor(8)
    futures += [executor.submit(task) for task in tasks[14:]]
    for task, future in zip(tasks, futures, strict=True):
        assert isinstance(future.exception(60), LookupError) is (task is raises_in_pool)
    assert_whole(pool, postgres)
    assert Entry.objects.using("pooled").filter(name="kept").count() == 10
    assert not Entry.objects.using("pooled").exclude(name="kept").exists()


def test_each_ending_in_every_slot(
    pool: Pool, postgres: PostgresObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """However often a task ends so, every slot serves on, and the pool has nothing to roll back."""
    executor = ThreadPoolExecutor(1)
    for ending in (*ODD[:-1], clean):  # the last closes for itself
        for _ in range(SLOTS + 1):
            executor.submit(ending).exception(20)
    assert "rolling back" not in caplog.text
    assert_whole(pool, postgres)


def test_a_clean_slot_goes_back_open(pool: Pool) -> None:
    """A clean connection is given back, not closed; what Django's pool carries over is not dirty."""
    before = take_every_slot(pool)
    executor = ThreadPoolExecutor(SLOTS)

    def sets_a_role() -> None:
        with connections["pooled"].cursor() as cursor:
            cursor.execute("SET ROLE pg_monitor")

    for future in [executor.submit(task) for task in [clean] * 20 + [sets_a_role] * 5]:
        future.result(20)
    assert take_every_slot(pool) == before


@one_kind_of_pool
@pytest.mark.usefixtures("watch_every_thread")
@pytest.mark.parametrize("ending", [clean, raw_begin_in_pool, unbalanced_in_pool])
def test_raw_threads(ending: Callable[[], object], pool: Pool, postgres: PostgresObserver) -> None:
    """With the app installed, a plain thread gives its slot back as it ends, clean."""
    run_in_threads(ending)
    assert_whole(pool, postgres)


@one_kind_of_pool
def test_scopes(pool: Pool, postgres: PostgresObserver) -> None:
    """Without the app, `connection_scope` gives a plain thread's slot back."""
    run_in_threads(connection_scope(clean))
    assert_whole(pool, postgres)


def run_in_threads(fn: Callable[[], object]) -> None:
    """Run it in more threads than there are slots, one after another."""
    for _ in range(SLOTS + 1):
        thread = threading.Thread(target=fn)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert all_connections() == ()


def test_an_error_on_closing_loses_no_slot(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """The pool has its slot back although the wrapper's closing has raised before it gave it back."""

    def fail(self: object) -> None:
        raise OfTheClosing

    executor = ThreadPoolExecutor(1)
    with monkeypatch.context() as patch:
        patch.setattr(type(connections["pooled"]), "_close", fail)
        executor.submit(clean).result(20)
    assert_whole(pool, postgres)


# Looking into a socket without a wait.


def test_silent_sockets() -> None:
    """A socket is silent while it is open and has nothing to read; looking takes nothing out of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_silent(ours)
        theirs.sendall(b"x")
        assert not is_silent(ours)
        assert ours.recv(1) == b"x"
        assert is_silent(ours)
        theirs.close()
        assert not is_silent(ours)
    assert not is_silent(ours)
