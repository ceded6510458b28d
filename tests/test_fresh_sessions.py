"""At CONN_MAX_AGE = 0 each task has a session of its own, also when its worker did not reconnect."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
import pytest
from django.db import connection, transaction
from django.db.backends.signals import connection_created
from psycopg.rows import dict_row
from psycopg.types.string import StrDumper

from django_executors import ThreadPoolExecutor
from django_executors.lifecycle import sessions

from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off")

T = TypeVar("T")


@pytest.fixture(autouse=True)
def resets_are_on() -> Iterator[None]:
    """No test turns resets off for the next one."""
    yield
    given_up = set(sessions._given_up)
    sessions._given_up.clear()
    assert not given_up


def one_after_the_other(*tasks: Callable[[], Any]) -> list[Any]:
    """Run tasks on one worker, each queued before the one ahead of it ends, and return their results."""
    ready = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ready.wait, 10)
        futures = [pool.submit(task) for task in tasks]
        ready.set()
        return [future.result(20) for future in futures]


def execute(sql: str, params: Any = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall() if cursor.description else []


def scalar(sql: str) -> Any:
    return execute(sql)[0][0]


def backend_pid() -> int:
    pid: int = scalar("SELECT pg_backend_pid()")
    return pid


def test_the_backend_is_reused() -> None:
    """Three tasks in a row, queued, share one backend."""
    assert len(set(one_after_the_other(backend_pid, backend_pid, backend_pid))) == 1


ON_THE_SERVER: dict[str, tuple[str, str]] = {
    "SET": ("SET work_mem = '123kB'", "SHOW work_mem"),
    "set_config": (
        "SELECT set_config('app.tenant', 'acme', false)",
        "SELECT coalesce(nullif(current_setting('app.tenant', true), ''), 'none')",
    ),
    "SET ROLE": ("SET ROLE pg_monitor", "SELECT current_user"),
    "SET SESSION AUTHORIZATION": ("SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user"),
    "search_path": ("SET search_path = pg_catalog", "SHOW search_path"),
    "time zone": ("SET TIME ZONE 'Europe/Paris'", "SHOW TimeZone"),
    "read only": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SHOW default_transaction_read_only",
    ),
    "isolation level": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SHOW default_transaction_isolation",
    ),
    "temporary table": (
        "CREATE TEMPORARY TABLE left_over (x int)",
        "SELECT count(*) FROM pg_class WHERE relname = 'left_over'",
    ),
    "advisory lock": (
        "SELECT pg_advisory_lock(7)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
    ),
    "prepared statement": (
        "PREPARE left_over AS SELECT 1",
        "SELECT count(*) FROM pg_prepared_statements",
    ),
    "LISTEN": ("LISTEN left_over", "SELECT count(*) FROM pg_listening_channels()"),
    "cursor": ("DECLARE left_over CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) FROM pg_cursors"),
}


@pytest.mark.parametrize("what", ON_THE_SERVER)
def test_on_the_server(what: str) -> None:
    """What a task set on the server, the next one does not see, on the same backend."""
    leave, look = ON_THE_SERVER[what]
    before = scalar(look)
    connection.close()

    def leaves() -> int:
        execute(leave)
        assert scalar(look) != before
        return backend_pid()

    def looks() -> tuple[Any, int]:
        return scalar(look), backend_pid()

    pid, (seen, next_pid) = one_after_the_other(leaves, looks)
    assert seen == before
    assert next_pid == pid


def dict_rows() -> None:
    connection.ensure_connection()
    connection.connection.row_factory = dict_row


def read_only() -> None:
    connection.ensure_connection()
    connection.connection.read_only = True


def isolation() -> None:
    connection.ensure_connection()
    connection.connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE


def notice_handler() -> None:
    connection.ensure_connection()
    connection.connection.add_notice_handler(print)


class Shouting(StrDumper):
    def dump(self, obj: str) -> bytes:
        return super().dump(obj.upper())


def adapter() -> None:
    connection.ensure_connection()
    connection.connection.adapters.register_dumper(str, Shouting)


def execute_wrapper() -> None:
    connection.execute_wrappers.append(
        lambda execute, *args: execute("SELECT 'wrapped'", None, *args[2:])
    )


def debug_cursor() -> None:
    connection.force_debug_cursor = True


def tenant() -> None:
    connection.tenant = "acme"


IN_THE_CLIENT: list[Callable[[], None]] = [
    dict_rows,
    read_only,
    isolation,
    notice_handler,
    adapter,
    execute_wrapper,
    debug_cursor,
    tenant,
]


def client_state() -> tuple[Any, ...]:
    row = execute("SELECT %s", ["text"])[0]
    driver: Any = connection.connection
    with transaction.atomic():
        Entry.objects.create(name="written")
    return (
        row,
        driver.row_factory,
        driver.read_only,
        driver.isolation_level,
        driver._notice_handlers,
        connection.execute_wrappers,
        connection.force_debug_cursor,
        hasattr(connection, "tenant"),
    )


@pytest.mark.parametrize("leave", IN_THE_CLIENT, ids=lambda leave: leave.__name__)
@pytest.mark.parametrize("when", ["before the first query", "after it"])
def test_in_the_client(leave: Callable[[], None], when: str) -> None:
    """What a task set on the driver's connection or on the wrapper, the next one does not see."""

    def leaves() -> None:
        if when == "after it":
            Entry.objects.count()
        leave()
        if when == "before the first query":
            connection.ensure_connection()

    _, state = one_after_the_other(leaves, client_state)
    before = client_state()
    connection.close()
    assert state == before


def test_pending_notifications() -> None:
    """A notification that came for one task is not delivered to the next."""

    def listens() -> None:
        execute("LISTEN news")
        execute("NOTIFY news, 'of the first task'")

    def receives() -> list[Any]:
        connection.ensure_connection()
        return list(connection.connection.notifies(timeout=0.1))

    assert one_after_the_other(listens, receives)[1] == []


def test_what_settings_and_receivers_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """OPTIONS and `connection_created` receivers are in force for each task, after a reset too."""
    settings_dict = connection.settings_dict
    options = {
        **settings_dict["OPTIONS"],
        "options": "-c work_mem=234kB",
        "assume_role": "pg_read_all_data",
        "isolation_level": psycopg.IsolationLevel.REPEATABLE_READ,
    }
    monkeypatch.setitem(settings_dict, "OPTIONS", options)
    monkeypatch.setitem(settings_dict, "TIME_ZONE", "Asia/Tokyo")
    created: list[int] = []

    def set_tenant(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('app.tenant', 'of the receiver', false)")
        created.append(1)

    def looks() -> tuple[Any, ...]:
        seen = execute(
            "SELECT pg_backend_pid(), current_user, current_setting('work_mem'),"
            " current_setting('app.tenant'), current_setting('TimeZone')"
        )[0]
        execute("SET ROLE NONE")
        execute("SET work_mem = '64kB'")
        execute("SET app.tenant = 'of a task'")
        with transaction.atomic():
            return (*seen, scalar("SHOW transaction_isolation"))

    connection_created.connect(set_tenant)
    try:
        first, second, third = one_after_the_other(looks, looks, looks)
    finally:
        connection_created.disconnect(set_tenant)
    assert first == second == third
    assert first[1:] == ("pg_read_all_data", "234kB", "of the receiver", "Asia/Tokyo", "repeatable read")
    assert len(created) == 3


def test_prepared_statements_of_psycopg(monkeypatch: pytest.MonkeyPatch) -> None:
    """With psycopg's own prepared statements on, each task works."""
    options = {**connection.settings_dict["OPTIONS"], "prepare_threshold": 0}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    assert one_after_the_other(*[Entry.objects.count] * 5) == [0] * 5
    assert sessions._given_up == {"default"}
    sessions._given_up.clear()


def test_a_failed_query_closes() -> None:
    """After a query that failed, the next task gets a new connection."""

    def fails() -> int:
        pid = backend_pid()
        with pytest.raises(Exception, match="no_such_table"):
            execute("SELECT * FROM no_such_table")
        return pid

    first, second = one_after_the_other(fails, backend_pid)
    assert first != second


@pytest.mark.parametrize("setting", ["a subclass", "DISABLE_SERVER_SIDE_CURSORS", "over a minute old"])
def test_where_nothing_is_proven_it_closes(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a reset is not proven right, each task gets a new connection."""
    if setting == "a subclass":
        monkeypatch.setitem(connection.settings_dict, "ENGINE", "tests.subclassed_backend")
    elif setting == "DISABLE_SERVER_SIDE_CURSORS":
        monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    else:
        monkeypatch.setattr(sessions, "MAX_RESET_AGE", 0.0)
    first, second = one_after_the_other(backend_pid, backend_pid)
    assert first != second
