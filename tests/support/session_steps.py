"""What a task may do to its session, how it may end, and what the task behind it sees."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from types import NoneType
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.utils.functional import cached_property
from psycopg.rows import dict_row, tuple_row
from psycopg.types import TypeInfo
from psycopg.types.string import StrDumper

from django_executors import ThreadPoolExecutor
from tests.projects.testapp.models import Entry
from tests.support.kept import queued

Step = Callable[[], object]


def execute(sql: str, params: Any = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall() if cursor.description else []


def driver() -> Any:
    connection.ensure_connection()
    return connection.connection


STATEMENTS = [
    "SET work_mem = '123kB'",
    "SET statement_timeout = '1min'",
    "SET client_encoding = 'LATIN1'",
    "SET app.tenant = 'acme'",
    "SELECT set_config('app.tenant', 'acme', false)",
    "SELECT set_config('app.tenant', 'acme', true)",
    "SET search_path = pg_catalog",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "RESET ROLE",
    "SET TIME ZONE 'Europe/Paris'",
    "SET TimeZone = 'UTC'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "CREATE TEMPORARY TABLE IF NOT EXISTS testapp_entry (id bigint, name text)",
    "CREATE TEMPORARY SEQUENCE IF NOT EXISTS counter; SELECT nextval('pg_temp.counter')",
    "SELECT pg_advisory_lock(7); SELECT pg_advisory_lock_shared(8)",
    "DEALLOCATE ALL; PREPARE mine AS SELECT 1",
    "LISTEN mine",
    "CLOSE ALL; DECLARE mine CURSOR WITH HOLD FOR SELECT generate_series(1, 9)",
    "DISCARD ALL",
]
CLOSING = ["LISTEN mine; NOTIFY mine, 'to itself'", "BEGIN", "SAVEPOINT mine", "ROLLBACK"]


def statement(sql: str) -> Step:
    def run() -> None:
        execute(sql)

    run.__name__ = sql
    return run


def set_local() -> None:
    with transaction.atomic():
        execute("SET LOCAL work_mem = '99kB'; SET LOCAL ROLE pg_monitor")


def rolled_back() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        execute("SET work_mem = '98kB'")
        _ = 1 / 0


def savepoint() -> None:
    with transaction.atomic(), transaction.atomic():
        execute("SET work_mem = '97kB'")


def open_iterator() -> None:
    Entry.objects.bulk_create([Entry(name=str(number)) for number in range(5)])
    rows = Entry.objects.order_by("pk").iterator(chunk_size=2)
    next(rows)
    kept_alive.append(rows)


def prepared_by_psycopg() -> None:
    threshold, driver().prepare_threshold = driver().prepare_threshold, 0
    for _ in range(2):
        psycopg.Cursor(driver()).execute("SELECT 'prepared'", prepare=True)
    driver().prepare_threshold = threshold


def dict_rows() -> None:
    driver().row_factory = dict_row


def read_only() -> None:
    driver().read_only = True


def isolation() -> None:
    driver().isolation_level = psycopg.IsolationLevel.SERIALIZABLE


def autocommit_off() -> None:
    transaction.set_autocommit(False)


class Shouting(StrDumper):
    def dump(self, obj: str) -> bytes:
        return super().dump(obj.upper())


def adapters() -> None:
    driver().adapters.register_dumper(str, Shouting)


def types() -> None:
    driver().adapters.types.add(TypeInfo("mine", 424242, 0))


def notify_handler() -> None:
    driver().add_notify_handler(print)


def notice_handler() -> None:
    driver().add_notice_handler(print)


def notified_by_another() -> None:
    """The notification is at the socket; nobody has read it."""
    execute("LISTEN mine")
    with psycopg.connect(os.environ["TEST_POSTGRES_URL"], autocommit=True) as other:
        other.execute("NOTIFY mine, 'of another'")
    if driver().info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        assert select.select([driver().fileno()], [], [], 20)[0]


def hook() -> None:
    connection.execute_wrappers.append(lambda execute, *args: execute(*args))


def hook_before_the_first_query() -> None:
    connection.close()
    hook()
    connection.ensure_connection()


def tenant() -> None:
    connections["default"].mine_tenant = "acme"


def computed() -> None:
    """Set what Django computes once and keeps."""
    vars(connections["default"]).update(timezone_name="Asia/Tokyo", pg_version=1)


def debug_cursor() -> None:
    connection.force_debug_cursor = True


def on_commit() -> None:
    transaction.on_commit(lambda: None)


def closed() -> None:
    connection.close()


def closed_with_a_flag() -> None:
    debug_cursor()
    closed()


ON_THE_SERVER: list[Step] = [
    *map(statement, STATEMENTS),
    *(set_local, rolled_back, savepoint, notified_by_another),
]
IN_THE_CLIENT: list[Step] = [
    *(dict_rows, read_only, isolation, autocommit_off, adapters, types, notify_handler),
    *(notice_handler, prepared_by_psycopg, hook, hook_before_the_first_query, tenant, computed),
    *(debug_cursor, on_commit, open_iterator, closed, closed_with_a_flag),
    *map(statement, CLOSING),
]
kept_alive: list[object] = []


def returns() -> None:
    pass


def raises() -> None:
    raise LookupError


def times_out() -> None:
    execute("SET statement_timeout = '5ms'; SELECT pg_sleep(30)")


def is_killed() -> None:
    execute("SELECT pg_terminate_backend(pg_backend_pid())")


def exits() -> None:
    raise SystemExit


ENDINGS: list[Step] = [returns, returns, returns, raises, times_out, is_killed, exits]


class Task:
    """Some steps and an ending. A step that the server refuses does not end it."""

    def __init__(self, steps: list[Step], ending: Step = returns) -> None:
        self.steps = steps
        self.ending = ending
        self.pid: int | None = None

    def __repr__(self) -> str:
        return f"{[step.__name__ for step in self.steps]} {self.ending.__name__}"

    def __call__(self) -> None:
        for step in self.steps:
            try:
                step()
            except (DatabaseError, psycopg.Error, transaction.TransactionManagementError):
                break
        if connection.connection is not None:
            self.pid = connection.connection.info.backend_pid
        self.ending()


def look() -> tuple[dict[str, Any], int]:
    state = session_state()
    return state, connection.connection.info.backend_pid


def _differing(seen: Any, new: Any) -> object:
    if isinstance(seen, dict):
        return {
            key: (seen.get(key), new.get(key)) for key in {*seen, *new} if seen.get(key) != new.get(key)
        }
    return seen, new


def look_behind(*groups: list[Task]) -> list[bool]:
    """Run each of these groups and behind it a task that looks, queued on one worker.

    Each look has to see a new session; tell which of them had one that its group had used.
    """
    try:
        new, _ = look()
    finally:
        connection.close()
        del connections["default"]
    # A step begins with a kept connection.
    tasks = [task for group in groups for task in (Entry.objects.count, *group, look)]
    futures = iter(queued(ThreadPoolExecutor(1), *tasks))
    reused: list[bool] = []
    for group in groups:
        next(futures).result(30)
        for _ in group:
            error = next(futures).exception(30)
            assert isinstance(error, (NoneType, LookupError, SystemExit, DatabaseError))
        seen, pid = next(futures).result(30)
        differing = {
            name: _differing(value, new[name]) for name, value in seen.items() if value != new[name]
        }
        assert not differing, (group, differing)
        reused.append(pid in [task.pid for task in group])
    kept_alive.clear()
    return reused


# Everything of a session that a task could leave to the next one, in values that compare.
# Left out is what DESIGN.md lists as known: a custom setting that was set is empty, not NULL.
SEEN_BY_THE_SERVER = {
    "settings": "SELECT name, setting, reset_val, source FROM pg_settings"
    " WHERE name <> 'TimeZone' ORDER BY 1",
    "time zone": "SELECT current_setting('TimeZone')",  # its source depends on the machine's own zone
    "tenant": "SELECT nullif(current_setting('app.tenant', true), '')",
    "users": "SELECT current_user, session_user, current_schemas(false)",
    "prepared": "SELECT name FROM pg_prepared_statements",
    "cursors": "SELECT name FROM pg_cursors",
    "channels": "SELECT * FROM pg_listening_channels()",
    "locks": "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    "temporary": "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
}
IN_THE_DRIVER = (
    *("autocommit", "isolation_level", "read_only", "deferrable", "row_factory", "cursor_factory"),
    *("server_cursor_factory", "prepare_threshold", "prepared_max"),
    *("_notice_handlers", "_notify_handlers", "_pipeline"),
)
# Counters that only make names, a clock, the thread's number.
BY_NATURE = {"_named_cursor_idx", "_thread_ident", "close_at", "connection", "savepoint_state"}


def session_state() -> dict[str, Any]:
    """Describe the session that the calling thread gets, connecting if need be."""
    wrapper = connections["default"]
    found: dict[str, Any] = {
        "before connecting": [*wrapper.execute_wrappers, wrapper.force_debug_cursor, _extra(wrapper)],
        "queries": len(wrapper.queries_log),
    }
    with connection.cursor() as cursor:
        for name, sql in SEEN_BY_THE_SERVER.items():
            found[name] = cursor.execute(sql).fetchall()
    found["wrapper"] = _flags(wrapper)
    found["computed"] = wrapper.timezone_name, wrapper.pg_version
    found["driver"] = _driver(wrapper.connection)
    found["sequences"] = _sequences()
    with transaction.atomic():
        entry = Entry.objects.create(name="written")
        found["read back"] = Entry.objects.get(pk=entry.pk).name
        entry.delete()
        with connection.cursor() as cursor:
            sql = "SELECT current_setting('transaction_isolation'), %s, %s"
            found["in a transaction"] = cursor.execute(sql, ["text", 1.5]).fetchone()
    found["prepares"] = _prepares(wrapper.connection)
    found["notifications"] = [note.payload for note in wrapper.connection.notifies(timeout=0)]
    return found


def _flags(wrapper: Any) -> dict[str, Any]:
    plain = (bool, int, str, list, type(None))
    return {
        name: list(value) if isinstance(value, list) else value
        for name, value in vars(wrapper).items()
        if isinstance(value, plain)
        and name not in BY_NATURE
        and not isinstance(getattr(type(wrapper), name, None), cached_property)
    }


def _extra(wrapper: Any) -> list[str]:
    """Name what no wrapper has of itself."""
    return [name for name in vars(wrapper) if name.startswith("mine_")]


def _driver(driver: Any) -> dict[str, Any]:
    maps = vars(driver.adapters)
    info = driver.info
    return {
        "attributes": {name: getattr(driver, name) for name in IN_THE_DRIVER},
        "info": [info.transaction_status, info.pipeline_status, info.encoding],
        "adapters": [maps[name] for name in ("_dumpers", "_dumpers_by_oid", "_loaders")],
        "types": sorted(found.name for found in driver.adapters.types),
    }


def _prepares(driver: Any) -> int:
    """Have psycopg prepare one statement, and count what is prepared then."""
    driver.prepare_threshold = 0
    for _ in range(2):
        psycopg.Cursor(driver).execute("SELECT 'prepared'")
    driver.prepare_threshold = None
    cursor = psycopg.Cursor(driver, row_factory=tuple_row)
    count: int = cursor.execute("SELECT count(*) FROM pg_prepared_statements").fetchall()[0][0]
    return count


def _sequences() -> Any:
    try:
        with connection.cursor() as cursor:
            return cursor.execute("SELECT lastval()").fetchone()
    except Exception as error:
        return type(error).__name__
