"""An error at the end of a task is logged once, and costs neither a result nor another connection."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import close_old_connections, connection, connections, transaction

from django_executors import ThreadPoolExecutor, all_connections

from .observers import PostgresObserver
from .test_release import (
    autocommit_off,
    closed_generators,
    exits,
    failed_query_in_raw_begin,
    interrupted,
    killed,
    open_pipeline,
    raises,
    raw_begin,
    unbalanced_atomic,
)
from .testapp.models import Entry

__all__ = ["closed_generators"]  # an autouse fixture, in force here too

pytestmark = pytest.mark.usefixtures("collector_off")

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
    assert "task=tests.test_closing_errors.query_everywhere" in record.getMessage()
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
    assert f"task=tests.test_release.{ending.__name__} " in message
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
