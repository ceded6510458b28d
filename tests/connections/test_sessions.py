"""A worker keeps its connection while more tasks are queued than workers keep, and only then."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import psycopg
import pytest
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from django.test import override_settings
from psycopg.rows import dict_row
from psycopg.types.string import StrDumper

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.lifecycle import sessions
from django_executors.lifecycle.postgresql import PostgreSQLSessions
from private_servers import MissingServer, PgBouncer, Postgres, start_pgbouncer, start_postgres
from tests.projects.subclassed_backend.base import DatabaseWrapper
from tests.projects.testapp.models import Entry
from tests.support.kept import CountedResets, backend, held_up, queued, registered, results
from tests.support.observers import MariaDBObserver, PostgresObserver
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

WORKERS = 8


@pytest.fixture
def resets() -> Iterator[CountedResets]:
    """The resets that were asked for."""
    with registered(CountedResets()) as counted:
        yield counted


@pytest.fixture
def kept_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    for alias in connections:
        if alias != "pooled":
            monkeypatch.setitem(connections.settings[alias], "CONN_MAX_AGE", 60)


def when_it_resolves(future: Future[Any]) -> Future[Any]:
    """Return what is open at the moment when this future resolves: in its worker, before it goes on."""
    found: Future[Any] = Future()
    future.add_done_callback(lambda _: found.set_result(all_connections()))
    return found


@pytest.mark.parametrize(
    ("alias", "age"),
    [("default", 0), ("default", 60), ("default", None), ("mariadb", 60), ("sqlite", 60)],
)
def test_reuse(
    alias: str, age: int | None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 queued tasks on 4 workers use 4 backends, until fewer tasks than workers are left."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")
    monkeypatch.setitem(connections.settings[alias], "CONN_MAX_AGE", age)
    pool = ThreadPoolExecutor(4)
    used = results(queued(pool, *[lambda: backend(alias)] * 200, workers=4))
    assert len(set(used[:-8])) <= 4
    assert len(set(used)) <= 8
    assert wait_until(all_connections, lambda found: not found) == ()


def test_resets_a_task(resets: CountedResets) -> None:
    """200 queued tasks on 4 workers cost at most 1.2 resets a task."""
    tasks = 200
    results(queued(ThreadPoolExecutor(4), *[backend] * tasks, workers=4))
    assert 0.9 * tasks < len(resets.begun) <= 1.2 * tasks
    assert len(resets.finished) <= len(resets.begun)


@pytest.mark.parametrize("age", [0, 60])
def test_as_many_keep_as_tasks_are_queued(
    age: int, monkeypatch: pytest.MonkeyPatch, resets: CountedResets
) -> None:
    """Of 8 workers that end together with 3 tasks queued, at most 3 keep; with all done, none does."""
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", age)
    for _ in range(5):
        resets.begun.clear()
        pool = ThreadPoolExecutor(WORKERS)
        go_on, together = threading.Event(), threading.Barrier(WORKERS + 1)

        def first(together: threading.Barrier = together) -> None:
            Entry.objects.count()
            together.wait(10)

        def behind(go_on: threading.Event = go_on) -> int:
            go_on.wait(10)
            return Entry.objects.count()

        ahead = [pool.submit(first) for _ in range(WORKERS)]
        last = [pool.submit(behind) for _ in range(3)]
        assert len(wait_until(all_connections, lambda found: len(found) == WORKERS)) == WORKERS
        together.wait(10)
        results(ahead)
        assert len(all_connections()) <= 3
        assert len(resets.begun) <= 3
        go_on.set()
        assert results(last) == [0, 0, 0]
        assert wait_until(all_connections, lambda found: not found) == ()


def test_a_keeper_that_has_its_task() -> None:
    """A worker that runs what it kept for reserves nothing: the other keeps for what is queued."""
    go_on, together = threading.Event(), threading.Barrier(2)

    def first() -> None:
        Entry.objects.count()
        together.wait(10)

    pool = ThreadPoolExecutor(2)
    tasks = [first, first, lambda: go_on.wait(10), backend, backend, backend]
    *_, one, two, three = queued(pool, *tasks, workers=2)
    used = results([one, two, three])
    go_on.set()
    assert len(set(used)) == 1


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("tasks", [WORKERS, 5 * WORKERS + 1, 200])
def test_all_let_go(tasks: int, postgres: PostgresObserver) -> None:
    """With more tasks than workers, none keeps a connection for long after the last result."""
    pool = ThreadPoolExecutor(WORKERS)
    for _ in range(3):
        assert results([pool.submit(Entry.objects.count) for _ in range(tasks)]) == [0] * tasks
        assert wait_until(all_connections, lambda found: not found) == ()
        assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("before", [1, 2, 50])
def test_the_last_task_of_one_worker(before: int, postgres: PostgresObserver) -> None:
    """When the last result of a single worker is there, nothing is left, however many came before."""
    pool = ThreadPoolExecutor(1)
    with held_up(pool):
        futures = [pool.submit(Entry.objects.count) for _ in range(before)]
        left = when_it_resolves(futures[-1])
    assert results(futures) == [0] * before
    assert left.result(10) == ()
    assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("shutdowns", [1, 3])
def test_a_pool_being_shut_down(shutdowns: int, resets: CountedResets) -> None:
    """What wakes workers up at shutdown is no task: the last one lets go before its future resolves."""
    for tasks in (1, 3):
        resets.begun.clear()
        pool = ThreadPoolExecutor(1)
        with held_up(pool):
            futures = [pool.submit(Entry.objects.count) for _ in range(tasks)]
            left = when_it_resolves(futures[-1])
            for _ in range(shutdowns):
                pool.shutdown(wait=False)
        assert left.result(10) == ()
        assert len(resets.begun) <= tasks - 1
        assert results(futures) == [0] * tasks


@pytest.mark.usefixtures("conn_max_age")
def test_tasks_that_were_cancelled(postgres: PostgresObserver) -> None:
    """A worker that kept for a task which was then cancelled lets go when it finds nothing else."""
    pool = ThreadPoolExecutor(1)
    with held_up(pool):
        first = pool.submit(Entry.objects.count)
        cancelled = [pool.submit(Entry.objects.count) for _ in range(3)]
        assert all(future.cancel() for future in cancelled)
    assert first.result(10) == 0
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left()


@pytest.mark.usefixtures("kept_for_a_minute")
def test_open_transaction_on_mariadb(mariadb: MariaDBObserver) -> None:
    """A transaction begun by hand, which its driver cannot see, is rolled back before the next task."""

    def begins() -> object:
        with connections["mariadb"].cursor() as cursor:
            cursor.execute("BEGIN")
        Entry.objects.using("mariadb").create(name="not committed")
        return backend("mariadb")

    def looks() -> tuple[object, int]:
        return backend("mariadb"), Entry.objects.using("mariadb").count()

    pool = ThreadPoolExecutor(1)
    first, second, third = results(queued(pool, begins, looks, looks))
    assert second == third == (first, 0)
    assert not mariadb.left()
    assert not Entry.objects.using("mariadb").exists()


def logs_queries() -> int:
    connection.force_debug_cursor = True
    Entry.objects.count()
    return len(connection.queries)


def query_log() -> int:
    connection.ensure_connection()
    return len([query for query in connection.queries if "testapp_entry" in query["sql"]])


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("debug", [False, True])
def test_query_log(debug: bool) -> None:
    """The queries of one task are not in the next one's log."""
    with override_settings(DEBUG=debug):
        logged, *next_ones = results(queued(ThreadPoolExecutor(1), logs_queries, query_log, query_log))
    assert logged
    assert next_ones == [0, 0]


def test_tasks_without_queries(resets: CountedResets) -> None:
    """A task that makes no query costs no reset, and opens nothing."""
    seen: list[int] = []
    idle: Callable[[], Any] = lambda: seen.append(len(all_connections()))  # noqa: E731
    pool = ThreadPoolExecutor(1)
    results(queued(pool, *[idle] * 10))
    assert seen == [0] * 10
    results(queued(pool, Entry.objects.count, *[idle] * 10, Entry.objects.count))
    assert len(resets.begun) == 1
    assert all_connections() == ()


@pytest.mark.usefixtures("conn_max_age")
def test_callbacks_between_tasks(postgres: PostgresObserver) -> None:
    """What done-callbacks of queued tasks open is let go of too."""

    def writes() -> None:
        with transaction.atomic():
            Entry.objects.create(name="written")

    pool, counts = ThreadPoolExecutor(1), list[int]()
    with held_up(pool):
        futures = [pool.submit(writes) for _ in range(3)]
        for future in futures:
            future.add_done_callback(lambda _: counts.append(Entry.objects.count()))
    results(futures)
    assert wait_until(lambda: counts, lambda found: len(found) == 3) == [1, 2, 3]
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left()


# At CONN_MAX_AGE = 0 each task has a session of its own, also when its worker did not reconnect.


T = TypeVar("T")


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
        monkeypatch.setitem(connection.settings_dict, "ENGINE", "tests.projects.subclassed_backend")
    elif setting == "DISABLE_SERVER_SIDE_CURSORS":
        monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    else:
        monkeypatch.setattr(sessions, "MAX_RESET_AGE", 0.0)
    first, second = one_after_the_other(backend_pid, backend_pid)
    assert first != second


# At CONN_MAX_AGE = 0 a task sees nothing of what the one before it set on Django's `connection`.


def test_what_is_computed_is_computed_anew() -> None:
    """A task may set what Django computes once and keeps: the next one gets what is right."""
    right = connection.timezone_name

    def spoil() -> None:
        Entry.objects.count()
        vars(connections["default"]).update(timezone_name="Asia/Tokyo", pg_version=1)

    def look() -> tuple[str, bool, str]:
        with connection.cursor() as cursor:
            cursor.execute("SHOW TimeZone")
            (time_zone,) = cursor.fetchone()
        return connection.timezone_name, connection.pg_version > 1, time_zone

    with ThreadPoolExecutor(1) as pool:
        spoilt, *seen = results(queued(pool, spoil, look, look))
        assert (spoilt, *seen, pool.submit(look).result(10)) == (None, *[(right, True, right)] * 3)


def test_a_filled_query_log_costs_no_connection() -> None:
    """With DEBUG a wrapper notes its queries: that alone is no reason to close it, or to drop it."""
    with override_settings(DEBUG=True), ThreadPoolExecutor(1) as pool:
        futures = queued(pool, *[backend] * 10, lambda: len(connection.queries))
        *pids, noted = results(futures)
        assert len(set(pids)) == 1
        assert noted == 0


# Wrappers that keep state of their own: a tenant, of which the server's session is a copy.


needs_django_tenants = pytest.mark.skipif(
    importlib.util.find_spec("django_tenants") is None, reason="django-tenants is not installed"
)

SCHEMAS = """
    CREATE TABLE public.note AS SELECT 'of the public' AS text;
    CREATE SCHEMA acme; CREATE TABLE acme.note AS SELECT 'of acme' AS text;
    CREATE SCHEMA globex; CREATE TABLE globex.note AS SELECT 'of globex' AS text;
"""
TASKS = """
    import json, threading
    from django.db import close_old_connections, connection
    from django_executors import ThreadPoolExecutor

    def look():
        "What the task may read, what the wrapper says, and whose session it is."
        with connection.cursor() as cursor:
            cursor.execute("SELECT text, pg_backend_pid() FROM note")
            text, pid = cursor.fetchone()
        return text, connection.schema_name, pid

    def visit(schema):
        connection.set_schema(schema)
        return look()

    def choose(schema):
        connection.set_schema(schema)  # and no query

    def one_after_the_other(*tasks):
        ready = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(ready.wait, 10)
            futures = [pool.submit(*task) for task in tasks]
            ready.set()
            return [future.result(20) for future in futures]
"""


@pytest.fixture
def tenants(postgres: PostgresObserver) -> Iterator[None]:
    """A database with a schema, and a note in it, for the public and two tenants."""
    postgres.execute("DROP DATABASE IF EXISTS tenants WITH (FORCE)")
    postgres.execute("CREATE DATABASE tenants")
    with psycopg.connect(os.environ["TEST_POSTGRES_URL"], dbname="tenants") as setting_up:
        setting_up.execute(SCHEMAS.encode())
    yield
    assert not postgres.left("tenants")
    postgres.execute("DROP DATABASE tenants")


def run(code: str, monkeypatch: pytest.MonkeyPatch, *, conn_max_age: int) -> Any:
    """Run code in a project on django-tenants, and return what it prints, from JSON."""
    monkeypatch.setenv("TEST_CONN_MAX_AGE", str(conn_max_age))
    child = run_python(TASKS, code, settings="tests.projects.tenants_settings")
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@needs_django_tenants
@pytest.mark.usefixtures("tenants")
def test_the_next_task_sees_no_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    """At CONN_MAX_AGE = 0 a task that names no tenant is in public, whatever the one before it chose."""
    code = """
    print(json.dumps(one_after_the_other(
        (visit, "acme"), (look,), (visit, "globex"), (choose, "acme"), (look,), (visit, "acme"),
    )))
    """
    acme, nobody, globex, _, after_choosing, again = run(code, monkeypatch, conn_max_age=0)
    assert acme[:2] == again[:2] == ["of acme", "acme"]
    assert globex[:2] == ["of globex", "globex"]
    assert nobody[:2] == after_choosing[:2] == ["of the public", "public"]


@needs_django_tenants
@pytest.mark.usefixtures("tenants")
def test_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With four workers and a busy queue no task reads another tenant's note."""
    code = """
    with ThreadPoolExecutor(4) as pool:
        wanted = ["acme", "globex", "public"] * 20
        futures = [(want, pool.submit(visit, want)) for want in wanted]
        futures += [("public", pool.submit(look)) for _ in range(20)]
        found = [(want, future.result(20)) for want, future in futures]
    texts = {"acme": "of acme", "globex": "of globex", "public": "of the public"}
    print(json.dumps([one for want, one in [*found] if one[:2] != (texts[want], want)]))
    """
    assert run(code, monkeypatch, conn_max_age=0) == []


@needs_django_tenants
@pytest.mark.usefixtures("tenants")
def test_a_kept_session_is_as_between_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """At CONN_MAX_AGE = 60 the tenant stays until one is set anew, as between two requests.

    That is what CONN_MAX_AGE asks for: Django keeps connection and wrapper on a thread too, and
    django-tenants' middleware begins each request by setting the tenant. A task has to do the same.
    What must not happen: that wrapper and server disagree.
    """
    code = """
    in_a_task = one_after_the_other((visit, "acme"), (look,), (visit, "globex"))
    in_a_request = [visit("acme")]
    for view in look, lambda: visit("globex"):
        close_old_connections()  # what Django does at a request's end and at the next one's begin
        in_a_request.append(view())
    connection.close()
    print(json.dumps([in_a_task, in_a_request]))
    """
    in_tasks, in_requests = run(code, monkeypatch, conn_max_age=60)
    expected = [["of acme", "acme"], ["of acme", "acme"], ["of globex", "globex"]]
    for found in in_tasks, in_requests:
        assert [one[:2] for one in found] == expected
        assert len({pid for *_, pid in found}) == 1


def test_a_subclass_gets_a_new_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper class of a project's own is never used by two tasks, nor is its connection."""
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "tests.projects.subclassed_backend")

    def leaves() -> tuple[Any, int]:
        wrapper = connections["default"]
        wrapper.ops.tenant = "acme"  # where nobody looks
        return wrapper, backend_pid()

    def leaves_without_a_query() -> Any:
        return connections["default"]

    def looks() -> tuple[Any, int]:
        assert not hasattr(connection.ops, "tenant")
        return connections["default"], backend_pid()

    (first, pid), second, (third, next_pid) = one_after_the_other(leaves, leaves_without_a_query, looks)
    assert len({id(first), id(second), id(third)}) == 3
    assert pid != next_pid


def test_a_subclass_is_kept_as_django_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At CONN_MAX_AGE ≠ 0 a wrapper class of a project's own stays, with its connection."""
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "tests.projects.subclassed_backend")
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 60)
    first, second = one_after_the_other(backend_pid, backend_pid)
    assert first == second


# The extension point: a package says how sessions of its own wrapper class are made fresh.


METHODS = ["remember", "is_unchanged", "begin_reset", "finish_reset"]


class Recording(PostgreSQLSessions):
    """A package's strategy: it records its calls, and can be told to fail in one of them."""

    wrapper_classes = ("tests.projects.subclassed_backend.base.DatabaseWrapper",)

    def __init__(self, fails_in: str = "", error: Exception | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self._fails_in = fails_in
        self._error = error

    def _called(self, name: str) -> None:
        self.calls.append((name, threading.get_ident()))
        if name == self._fails_in and self._error is not None:
            raise self._error

    def remember(self, wrapper: Any) -> Any | None:
        self._called("remember")
        return None if self._fails_in == "remember" else super().remember(wrapper)

    def is_unchanged(self, wrapper: Any, memory: Any) -> bool:
        self._called("is_unchanged")
        return self._fails_in != "is_unchanged" and super().is_unchanged(wrapper, memory)

    def begin_reset(self, wrapper: Any) -> None:
        self._called("begin_reset")
        super().begin_reset(wrapper)

    def finish_reset(self, driver: Any, deadline: float) -> None:
        self._called("finish_reset")
        super().finish_reset(driver, deadline)


@pytest.fixture
def strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten at its end, and the alias is of the package's class."""
    monkeypatch.setattr(sessions, "_strategies", dict(sessions._strategies))
    monkeypatch.setattr(sessions, "_given_up", set())
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "tests.projects.subclassed_backend")


def pid_and_thread() -> tuple[int, int]:
    execute("SET work_mem = '123kB'")
    return backend_pid(), threading.get_ident()


def use_class(monkeypatch: pytest.MonkeyPatch, wrapper_class: type) -> str:
    """Make a backend of this class, use it, and return the name by which a strategy names it."""
    base = types.ModuleType("homemade.base")
    vars(base)["DatabaseWrapper"] = wrapper_class
    monkeypatch.setitem(sys.modules, "homemade", types.ModuleType("homemade"))
    monkeypatch.setitem(sys.modules, "homemade.base", base)
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "homemade")
    return f"{wrapper_class.__module__}.{wrapper_class.__qualname__}"


@pytest.mark.usefixtures("strategies")
def test_a_registered_class_is_reset() -> None:
    """Sessions of a class that a strategy names are reset in place, by it, in the worker's thread."""
    strategy = Recording()
    sessions.register(strategy)
    (first, thread), (second, _), work_mem = one_after_the_other(
        pid_and_thread, pid_and_thread, lambda: scalar("SHOW work_mem")
    )
    assert first == second
    assert work_mem == "4MB"
    one_reset = ["is_unchanged", "begin_reset", "finish_reset"]
    assert [name for name, _ in strategy.calls] == ["remember", *one_reset, *one_reset]
    assert {ident for _, ident in strategy.calls} == {thread}
    assert thread != threading.get_ident()


@pytest.mark.usefixtures("strategies")
def test_the_last_one_registered_is_used() -> None:
    """A strategy takes the place of an earlier one for the same class."""
    earlier, later = Recording(), Recording()
    sessions.register(earlier)
    sessions.register(later)
    first, second = one_after_the_other(backend_pid, backend_pid)
    assert first == second
    assert later.calls
    assert not earlier.calls


@pytest.mark.parametrize("declines_in", ["remember", "is_unchanged"])
@pytest.mark.usefixtures("strategies")
def test_a_strategy_may_decline(declines_in: str) -> None:
    """A strategy that says no has the connection closed; every task works."""
    strategy = Recording(declines_in)
    sessions.register(strategy)
    pids = one_after_the_other(*[backend_pid] * 4)
    assert len(set(pids)) == 4
    assert "begin_reset" not in {name for name, _ in strategy.calls}


@pytest.mark.parametrize("error", [RuntimeError("refused"), ConnectionError("gone")], ids=repr)
@pytest.mark.parametrize("fails_in", METHODS)
@pytest.mark.usefixtures("strategies")
def test_a_strategy_that_raises(fails_in: str, error: Exception) -> None:
    """Whatever a strategy raises, wherever, no task fails and none gets a session that was used."""
    sessions.register(Recording(fails_in, error))
    pids = one_after_the_other(*[backend_pid] * 4)
    assert len(set(pids)) == 4


@pytest.mark.usefixtures("strategies")
def test_after_a_refused_reset_none_is_begun(caplog: pytest.LogCaptureFixture) -> None:
    """After the first reset that the server refused none is begun, and one warning says so."""
    strategy = Recording("finish_reset", RuntimeError("refused"))
    sessions.register(strategy)
    with caplog.at_level(logging.WARNING):
        one_after_the_other(*[backend_pid] * 4)
        one_after_the_other(*[backend_pid] * 2)
    assert [name for name, _ in strategy.calls].count("begin_reset") == 1
    (record,) = caplog.records
    assert "alias=default a session could not be reset" in record.getMessage()


@pytest.mark.usefixtures("strategies")
def test_a_lost_server_says_nothing_against_resets(caplog: pytest.LogCaptureFixture) -> None:
    """After a reset that met no server the next one is begun all the same, without a warning."""
    strategy = Recording("finish_reset", ConnectionError("gone"))
    sessions.register(strategy)
    one_after_the_other(*[backend_pid] * 4)
    assert [name for name, _ in strategy.calls].count("begin_reset") == 3
    assert not caplog.records


class FurtherSubclass(DatabaseWrapper):
    """A subclass of the class that the package's strategy names."""


@pytest.mark.usefixtures("strategies")
def test_a_subclass_of_a_named_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy is not used for a subclass of what it names: its connections are closed."""
    strategy = Recording()
    sessions.register(strategy)
    use_class(monkeypatch, FurtherSubclass)
    first, second = one_after_the_other(backend_pid, backend_pid)
    assert first != second
    assert not strategy.calls


class Proxy:
    """A driver's connection as other drivers have it: none of libpq's functions."""

    def __init__(self, driver: Any) -> None:
        vars(self)["_driver"] = driver

    def __getattr__(self, name: str) -> Any:
        if name == "pgconn":
            raise AttributeError(name)
        return getattr(vars(self)["_driver"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_driver"], name, value)


class WithoutLibpq(DatabaseWrapper):
    """A wrapper as Django's own is on psycopg2."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        return Proxy(super().get_new_connection(conn_params))


@pytest.mark.usefixtures("strategies")
def test_a_driver_without_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver whose connection has no `pgconn`, like psycopg2's, is closed after each task."""
    strategy = Recording()
    strategy.wrapper_classes = (use_class(monkeypatch, WithoutLibpq),)
    sessions.register(strategy)
    first, second = one_after_the_other(backend_pid, backend_pid)
    assert first != second
    assert {name for name, _ in strategy.calls} == {"remember"}


# Behind a pooler sessions are shared: nothing of theirs is ever reset by us.


# What another client set on the one session that all clients of the pooler share.
THEIRS = {
    "search_path": ("SET search_path = theirs, public", "SHOW search_path"),
    "set_config": (
        "SELECT set_config('app.tenant', 'theirs', false)",
        "SELECT current_setting('app.tenant')",
    ),
    "SET ROLE": ("SET ROLE pg_monitor", "SELECT current_user"),
    "prepared statement": ("PREPARE theirs AS SELECT 42", "EXECUTE theirs"),
    "advisory lock": (
        "SELECT pg_advisory_lock(42)",
        "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    "LISTEN": ("LISTEN theirs", "SELECT * FROM pg_listening_channels()"),
    "temporary table": ("CREATE TEMPORARY TABLE theirs AS SELECT 42 AS x", "SELECT x FROM theirs"),
    "cursor": ("DECLARE theirs CURSOR WITH HOLD FOR SELECT 42", "SELECT name FROM pg_cursors"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL of these tests' own, whose sessions no other test uses."""
    with start_postgres() as server:
        yield server


@pytest.fixture
def pgbouncer(server: Postgres) -> Iterator[PgBouncer]:
    """A new PgBouncer in transaction mode, with one session for all its clients."""
    try:
        bouncer = start_pgbouncer(server, pool_size=1)
    except MissingServer as missing:
        if os.environ.get("REQUIRE_ALL_SERVERS"):
            raise
        pytest.skip(str(missing))
    with bouncer:
        yield bouncer


@pytest.fixture
def resets_pgbouncer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the aliases of which a session was reset, as it happens."""
    aliases: list[str] = []
    begin_reset = PostgreSQLSessions.begin_reset

    def record(strategy: PostgreSQLSessions, wrapper: Any) -> None:
        aliases.append(wrapper.alias)
        begin_reset(strategy, wrapper)

    monkeypatch.setattr(PostgreSQLSessions, "begin_reset", record)
    monkeypatch.setattr(sessions, "_given_up", set())
    return aliases


def use_server(monkeypatch: pytest.MonkeyPatch, host: str, port: int, **more: Any) -> None:
    """Add the alias `private`, for this server."""
    address = {"HOST": host, "PORT": str(port), **more}
    monkeypatch.setitem(connections.settings, "private", connections.settings["default"] | address)


def query(number: int) -> int:
    """A task with two queries, one of them in a transaction."""
    with transaction.atomic("private"), connections["private"].cursor() as cursor:
        cursor.execute("SELECT %s * 2", [number])
        doubled: int = cursor.fetchone()[0]
    with connections["private"].cursor() as cursor:
        cursor.execute("SELECT %s / 2", [doubled])
        halved: int = cursor.fetchone()[0]
    return halved


def run_tasks() -> None:
    """Have four workers run a busy queue through the alias `private`."""
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(query, range(60), timeout=60)) == list(range(60))


@pytest.mark.parametrize("server_side_cursors", [True, False])
@pytest.mark.parametrize("conn_max_age", [0, 60])
def test_other_clients_keep_their_sessions(
    pgbouncer: PgBouncer,
    resets_pgbouncer: list[str],
    monkeypatch: pytest.MonkeyPatch,
    conn_max_age: int,
    server_side_cursors: bool,
) -> None:
    """Through PgBouncer our tasks work, and what other clients set on the shared session stays."""
    use_server(
        monkeypatch,
        pgbouncer.host,
        pgbouncer.port,
        CONN_MAX_AGE=conn_max_age,
        DISABLE_SERVER_SIDE_CURSORS=not server_side_cursors,
    )
    with psycopg.connect(pgbouncer.url, autocommit=True, prepare_threshold=None) as other:
        for leave, _ in THEIRS.values():
            other.execute(leave.encode())
        before = {what: other.execute(look.encode()).fetchall() for what, (_, look) in THEIRS.items()}
        pid = other.execute("SELECT pg_backend_pid()").fetchone()
        assert all(before.values())
        run_tasks()
        assert other.execute("SELECT pg_backend_pid()").fetchone() == pid
        after = {what: other.execute(look.encode()).fetchall() for what, (_, look) in THEIRS.items()}
    assert after == before
    assert resets_pgbouncer == []


@pytest.mark.parametrize("way", ["TCP", "a Unix socket"])
def test_a_direct_connection_is_reset(
    server: Postgres, resets_pgbouncer: list[str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Without a pooler in between, over TCP and over a Unix socket, sessions are reset."""
    use_server(monkeypatch, server.host if way == "TCP" else server.socket_dir, server.port)
    run_tasks()
    assert resets_pgbouncer
