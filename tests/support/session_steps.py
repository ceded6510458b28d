"""What a task may do to its session, and how it may end: steps for random tasks."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.db import connection, connections, transaction
from psycopg.rows import dict_row
from psycopg.types import TypeInfo

from tests.connections.test_sessions import Shouting, execute
from tests.projects.testapp.models import Entry

Step = Callable[[], object]


def driver() -> Any:
    connection.ensure_connection()
    return connection.connection


STATEMENTS = [
    "SET work_mem = '123kB'",
    "SET statement_timeout = '1min'",
    "SET application_name = 'of a task'",
    "SET client_encoding = 'LATIN1'",
    "SET standard_conforming_strings = off",
    "SET app.tenant = 'acme'",
    "SELECT set_config('app.tenant', 'acme', false)",
    "SELECT set_config('app.tenant', 'acme', true)",
    "SELECT set_config('search_path', 'pg_catalog', false)",
    "SET search_path = pg_catalog",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "RESET ROLE",
    "SET TIME ZONE 'Europe/Paris'",
    "SET TimeZone = 'UTC'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "CREATE TEMPORARY TABLE IF NOT EXISTS mine (x int)",
    "CREATE TEMPORARY TABLE IF NOT EXISTS testapp_entry (id bigint, name text)",
    "CREATE TEMPORARY SEQUENCE IF NOT EXISTS counter; SELECT nextval('pg_temp.counter')",
    "SELECT pg_advisory_lock(7)",
    "SELECT pg_advisory_lock(7); SELECT pg_advisory_lock_shared(8)",
    "DEALLOCATE ALL; PREPARE mine AS SELECT 1",
    "LISTEN mine",
    "LISTEN mine; NOTIFY mine, 'to itself'",
    "CLOSE ALL; DECLARE mine CURSOR WITH HOLD FOR SELECT generate_series(1, 9)",
    "DISCARD ALL",
    "BEGIN",
    "SAVEPOINT mine",
    "ROLLBACK",
]


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
    with transaction.atomic():
        sid = transaction.savepoint()
        execute("SET work_mem = '97kB'")
        transaction.savepoint_commit(sid)


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


def adapters() -> None:
    driver().adapters.register_dumper(str, Shouting)


def types() -> None:
    driver().adapters.types.add(TypeInfo("mine", 424242, 0))


def handlers() -> None:
    driver().add_notify_handler(print)
    driver().add_notice_handler(lambda notice: None)


def notified_by_another() -> None:
    """The notification is at the socket; nobody has read it."""
    execute("LISTEN mine")
    with psycopg.connect(os.environ["TEST_POSTGRES_URL"], autocommit=True) as other:
        other.execute("NOTIFY mine, 'of another'")
    if driver().info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        assert select.select([driver().fileno()], [], [], 5)[0]


def hooks_without_a_query() -> None:
    connection.execute_wrappers.append(lambda execute, *args: execute(*args))
    connections["default"].mine_tenant = "acme"


def debug_cursor() -> None:
    connection.force_debug_cursor = True


def on_commit() -> None:
    transaction.on_commit(lambda: None)


def closed() -> None:
    connection.close()


STEPS: list[Step] = [
    *map(statement, STATEMENTS),
    *(set_local, rolled_back, savepoint, open_iterator, prepared_by_psycopg, dict_rows, read_only),
    *(isolation, autocommit_off, adapters, types, handlers, debug_cursor),
    *(notified_by_another, hooks_without_a_query, on_commit, closed),
]
kept_alive: list[object] = []


def returns() -> None:
    pass


def raises() -> None:
    raise LookupError


def times_out() -> None:
    execute("SET statement_timeout = '5ms'; SELECT pg_sleep(10)")


def is_killed() -> None:
    execute("SELECT pg_terminate_backend(pg_backend_pid())")


def exits() -> None:
    raise SystemExit


ENDINGS: list[Step] = [returns, returns, returns, raises, times_out, is_killed, exits]
