"""An error at the end of a task is logged once, and costs neither a result nor another connection."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import psycopg_pool
import pytest
from django.db import close_old_connections, connection, connections, transaction
from psycopg.pq import PipelineStatus, TransactionStatus

from django_executors import ThreadPoolExecutor, all_connections, connection_scope
from django_executors.lifecycle.asking import is_silent
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
    unbalanced_atomic,
)
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until

LOGGER = "django_executors"


class OfTheClosing(Exception):
    """What closing raises here."""


def break_(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Have closing `default` fail, in Django's wrapper or in the driver, while its server is well."""

    django_class = type(connections["default"])
    if where == "the wrapper's close":
        own = django_class.close

        def close(self: Any) -> None:
            if self.alias == "default":
                raise OfTheClosing
            own(self)

        monkeypatch.setattr(django_class, "close", close)
    elif where == "the wrapper's _close":
        own = django_class._close

        def _close(self: Any) -> None:
            if self.alias == "default":
                raise OfTheClosing
            own(self)

        monkeypatch.setattr(django_class, "_close", _close)
    else:
        own = django_class.Database.Connection.close

        def driver_close(self: Any) -> None:
            if self.info.dbname == "app":
                self.pgconn.finish()
                raise OfTheClosing
            own(self)

        monkeypatch.setattr(django_class.Database.Connection, "close", driver_close)


PLACES = ["the wrapper's close", "the wrapper's _close", "the driver's close"]


def query_everywhere() -> str:
    for alias in ("other", "default", "sqlite"):
        Entry.objects.using(alias).count()
    return "the result"


def query_and_raise() -> None:
    query_everywhere()
    raise LookupError("of the task")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith(LOGGER)]


@pytest.mark.parametrize("where", PLACES)
def test_the_result_arrives(
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    postgres: PostgresObserver,
) -> None:
    """The other aliases are closed, the result arrives, one warning names the task, nothing is left."""
    pool = ThreadPoolExecutor(1)
    with monkeypatch.context() as patch:
        break_(patch, where)
        assert pool.submit(query_everywhere).result(10) == "the result"
    assert all_connections() == ()
    assert not postgres.left("app")
    assert not postgres.left("other")
    (record,) = warnings_of(caplog)
    assert record.levelno == logging.WARNING
    assert "task=tests.connections.test_wrapper.query_everywhere" in record.getMessage()
    assert "alias=default" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is OfTheClosing
    assert pool.submit(Entry.objects.count).result(10) == 0


@pytest.mark.parametrize("where", PLACES)
def test_the_tasks_own_exception_arrives(
    where: str, monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """A task's own exception is not replaced by an error on closing, nor chained to it."""
    with monkeypatch.context() as patch:
        break_(patch, where)
        error = ThreadPoolExecutor(1).submit(query_and_raise).exception(10)
    assert isinstance(error, LookupError)
    assert error.__context__ is None
    assert all_connections() == ()
    assert not postgres.left("app")
    assert not postgres.left("other")


@pytest.mark.parametrize("where", PLACES)
def test_after_a_callback(
    where: str, monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """The worker that waits after a done-callback survives an error on closing, and serves on."""
    pool = ThreadPoolExecutor(1)
    go_on = threading.Event()
    with monkeypatch.context() as patch:
        break_(patch, where)
        future = pool.submit(go_on.wait, 10)
        future.add_done_callback(lambda _: query_everywhere())
        go_on.set()
        assert future.result(10)
        assert pool.submit(lambda: "alive").result(10) == "alive"
    assert pool.submit(Entry.objects.count).result(10) == 0
    assert all_connections() == ()
    assert not postgres.left()


def one_clean() -> None:
    with transaction.atomic():
        Entry.objects.create(name="kept")


def swallowed_error() -> None:
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")
    except Exception:
        return


def closed_by_the_task() -> None:
    Entry.objects.count()
    connection.close()


DIRTY: dict[Callable[[], object], str] = {
    raw_begin: "an open transaction",
    failed_query_in_raw_begin: "a failed transaction",
    autocommit_off: "an open transaction",
    unbalanced_atomic: "an open atomic block",
    open_pipeline: "an open pipeline",
    killed: "a broken connection",
    exits: "an interruption",
    interrupted: "an interruption",
}


@pytest.mark.parametrize("ending", DIRTY, ids=lambda ending: ending.__name__)
def test_a_dirty_ending_is_told_once(
    ending: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    """A task that ends dirty is named in exactly one warning, which says what was found."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="reports")
    pool.submit(ending).exception(10)
    pool.submit(Entry.objects.count).result(10)
    (record,) = warnings_of(caplog)
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert f"task=tests.support.endings.{ending.__name__} " in message
    assert "thread=reports_0 " in message
    assert "alias=default " in message
    assert DIRTY[ending] in message


@pytest.mark.parametrize(
    "ending",
    [one_clean, raises, swallowed_error, closed_by_the_task, lambda: None],
    ids=["committed", "raising", "rolled back", "closed", "no query"],
)
def test_a_clean_ending_is_not_told(
    ending: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    """A task that leaves nothing amiss logs nothing, whether it returns or raises."""
    pool = ThreadPoolExecutor(1)
    pool.submit(ending).exception(10)
    pool.submit(Entry.objects.count).result(10)
    assert warnings_of(caplog) == []


def test_closed_inside_a_suspended_atomic() -> None:
    """A worker serves on after a task that closed its connection in a suspended `atomic`."""

    def task() -> None:
        unbalanced_atomic()
        close_old_connections()  # inside atomic this closes, as autocommit is off

    pool = ThreadPoolExecutor(1)
    pool.submit(task).result(10)
    assert pool.submit(Entry.objects.count).result(10) == 0


@pytest.mark.parametrize("connect", [True, False])
def test_flags_on_a_wrapper_without_a_connection(connect: bool) -> None:
    """A flag on a wrapper that the task closed itself, or never connected, is gone with the task."""

    def task() -> None:
        connection.force_debug_cursor = True
        if connect:
            closed_by_the_task()

    pool = ThreadPoolExecutor(1)
    pool.submit(task).result(10)
    assert pool.submit(lambda: connection.force_debug_cursor).result(10) is False


class Handler(logging.Handler):
    """A log handler of a project's."""

    def __init__(self, emit: Callable[[], object]) -> None:
        super().__init__()
        self._emit = emit
        self.seen = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.seen += 1
        self._emit()


@pytest.fixture
def handle() -> Iterator[Callable[[Callable[[], object]], Handler]]:
    """Add a log handler for the length of a test."""
    added: list[Handler] = []

    def add(emit: Callable[[], object]) -> Handler:
        added.append(Handler(emit))
        logging.getLogger(LOGGER).addHandler(added[-1])
        return added[-1]

    yield add
    for handler in added:
        logging.getLogger(LOGGER).removeHandler(handler)


@pytest.mark.parametrize("in_handler", [query_everywhere, raw_begin], ids=["clean", "dirty"])
def test_a_handler_that_uses_the_orm(
    in_handler: Callable[[], object],
    handle: Callable[[Callable[[], object]], Handler],
    postgres: PostgresObserver,
) -> None:
    """A log handler that queries leaves nothing, and is not called for what it did itself."""
    handler = handle(in_handler)
    pool = ThreadPoolExecutor(1)
    for number in (1, 2):
        pool.submit(raw_begin).result(10)
        assert all_connections() == ()
        assert not postgres.left("app")
        assert not postgres.left("other")
        assert handler.seen == number


def test_a_handler_that_raises(
    handle: Callable[[Callable[[], object]], Handler], postgres: PostgresObserver
) -> None:
    """A log handler that raises, with a connection open, replaces neither result nor exception."""

    def query_and_fail() -> None:
        query_everywhere()
        raise ZeroDivisionError

    handler = handle(query_and_fail)
    pool = ThreadPoolExecutor(1)

    def dirty(error: type[Exception] | None) -> str:
        raw_begin()
        if error is not None:
            raise error
        return "the result"

    assert pool.submit(dirty, None).result(10) == "the result"
    assert isinstance(pool.submit(dirty, LookupError).exception(10), LookupError)
    assert handler.seen == 2
    assert all_connections() == ()
    assert not postgres.left("app")
    assert not postgres.left("other")


# Django's own psycopg pool: every slot comes back clean, and the pool itself is never closed.


SLOTS = 4
WORKERS = 8
TASKS = 1000

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
    connections["pooled"].close_pool()


def take_every_slot(pool: Pool) -> set[int]:
    """Take all slots at once, each in its ordinary state, and return their backends."""
    pids = set()
    with contextlib.ExitStack() as taken:
        for _ in range(SLOTS):
            slot = pool.getconn(10)
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


def raises_django_pool() -> None:
    with transaction.atomic(using="pooled"):
        Entry.objects.using("pooled").create(name="lost")
        raise LookupError


def raw_begin_django_pool() -> None:
    with connections["pooled"].cursor() as cursor:
        cursor.execute("BEGIN")
    Entry.objects.using("pooled").create(name="lost")


def autocommit_off_django_pool() -> None:
    transaction.set_autocommit(False, using="pooled")
    Entry.objects.using("pooled").create(name="lost")


def open_pipeline_django_pool() -> Any:
    connections["pooled"].ensure_connection()
    pipeline = connections["pooled"].connection.pipeline()
    pipeline.__enter__()
    return pipeline


suspended: list[Generator[None, None, None]] = []


def half_an_atomic() -> Generator[None, None, None]:
    with transaction.atomic(using="pooled"):
        Entry.objects.using("pooled").create(name="lost")
        yield


def unbalanced_atomic_django_pool() -> None:
    generator = half_an_atomic()
    next(generator)
    suspended.append(generator)


@pytest.fixture(autouse=True)
def closed_generators_django_pool() -> Iterator[None]:
    """Close what a task has suspended here, where Django's Atomic then opens a connection."""
    yield
    while suspended:
        suspended.pop().close()
    connections["pooled"].close()


# Half of them clean, then one of each other kind.
MIXTURE: list[Callable[[], object]] = [clean] * 5 + [
    raises_django_pool,
    raw_begin_django_pool,
    autocommit_off_django_pool,
    open_pipeline_django_pool,
    unbalanced_atomic_django_pool,
]


def test_a_thousand_tasks(pool: Pool, postgres: PostgresObserver) -> None:
    """After 1,000 tasks on pools forgotten or shut down, all slots are back and clean."""
    outcomes: dict[str, int] = {"fine": 0, "LookupError": 0}
    for first in range(0, TASKS, 100):
        executor = ThreadPoolExecutor(WORKERS)
        tasks = [MIXTURE[number % len(MIXTURE)] for number in range(first, first + 100)]
        for future in [executor.submit(task) for task in tasks]:
            error = future.exception(60)
            outcomes["fine" if error is None else type(error).__name__] += 1
        assert all_connections() == ()
        if first % 200:
            executor.shutdown()
        del executor
    assert outcomes == {"fine": TASKS * 9 // 10, "LookupError": TASKS // 10}
    assert_whole(pool, postgres)
    assert Entry.objects.using("pooled").filter(name="kept").count() == TASKS // 2
    assert not Entry.objects.using("pooled").exclude(name="kept").exists()


@pytest.mark.parametrize("ending", sorted(set(MIXTURE), key=lambda ending: ending.__name__))
def test_one_ending_in_every_slot(
    ending: Callable[[], object],
    pool: Pool,
    postgres: PostgresObserver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However often a task ends so, every slot serves on, and the pool has nothing to roll back."""
    executor = ThreadPoolExecutor(1)
    for _ in range(2 * SLOTS):
        executor.submit(ending).exception(20)
    for _ in range(2 * SLOTS):
        executor.submit(clean).result(20)
    assert "rolling back" not in caplog.text
    assert_whole(pool, postgres)


def test_a_clean_slot_goes_back_open(pool: Pool) -> None:
    """A clean connection is given back, not closed: the pool's backends are the same ones afterwards."""
    before = take_every_slot(pool)
    executor = ThreadPoolExecutor(SLOTS)
    for future in [executor.submit(clean) for _ in range(50)]:
        future.result(20)
    assert take_every_slot(pool) == before


def test_a_role_is_not_dirty(pool: Pool, postgres: PostgresObserver) -> None:
    """What Django's pool carries over by itself (here a role) is no reason to close a connection."""
    before = take_every_slot(pool)

    def task() -> None:
        with connections["pooled"].cursor() as cursor:
            cursor.execute("SET ROLE pg_monitor")

    ThreadPoolExecutor(1).submit(task).result(20)
    assert take_every_slot(pool) == before
    assert_whole(pool, postgres)


@pytest.mark.usefixtures("watch_every_thread")
@pytest.mark.parametrize("ending", [clean, raw_begin_django_pool, unbalanced_atomic_django_pool])
def test_raw_threads(ending: Callable[[], object], pool: Pool, postgres: PostgresObserver) -> None:
    """With the app installed, a plain thread gives its slot back as it ends, clean."""
    for _ in range(3 * SLOTS):
        thread = threading.Thread(target=ending)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert all_connections() == ()
    assert_whole(pool, postgres)


def test_scopes(pool: Pool, postgres: PostgresObserver) -> None:
    """Without the app, `connection_scope` gives a plain thread's slot back."""
    for _ in range(3 * SLOTS):
        thread = threading.Thread(target=connection_scope(clean))
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    assert_whole(pool, postgres)


def test_an_error_on_closing_loses_no_slot(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """The pool has its slot back although the wrapper's closing has raised before it gave it back."""

    def fail(self: object) -> None:
        raise OSError("of the closing")

    executor = ThreadPoolExecutor(1)
    with monkeypatch.context() as patch:
        patch.setattr(type(connections["pooled"]), "_close", fail)
        executor.submit(clean).result(20)
    assert_whole(pool, postgres)


def test_closed_inside_atomic(pool: Pool, postgres: PostgresObserver) -> None:
    """A worker serves the next task after one that closed its connection inside a suspended `atomic`."""

    def task() -> None:
        unbalanced_atomic_django_pool()
        connections["pooled"].close()

    executor = ThreadPoolExecutor(1)
    executor.submit(task).result(20)
    executor.submit(clean).result(20)
    assert_whole(pool, postgres)


# Looking into a socket without a wait.


def test_an_open_socket_with_nothing_to_read_is_silent() -> None:
    """And looking takes nothing out of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_silent(ours.fileno())
        theirs.sendall(b"x")
        assert not is_silent(ours.fileno())
        assert ours.recv(1) == b"x"
        assert is_silent(ours.fileno())


def test_a_socket_whose_other_end_has_hung_up_is_not_silent() -> None:
    """Neither after an orderly end nor when it is closed on this side."""
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert not is_silent(ours.fileno())
        number = ours.fileno()
    assert not is_silent(number)
