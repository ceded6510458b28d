"""A worker keeps its connection for queued tasks, and each task's session is fresh where Django's is."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import psycopg
import pytest
from django.db import connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.signals import connection_created
from django.test import override_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.connections import sessions
from private_servers import MissingServer, PgBouncer, start_pgbouncer, start_postgres
from tests.projects.testapp.models import Entry
from tests.support.endings import raw_begin
from tests.support.kept import CountedResets, backend, counted_resets, held_up, queued, results
from tests.support.observers import MariaDBObserver, PostgresObserver
from tests.support.session_steps import (
    ENDINGS,
    IN_THE_CLIENT,
    ON_THE_SERVER,
    Task,
    execute,
    look_behind,
    open_iterator,
)
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

two_ages = pytest.mark.parametrize("conn_max_age", [0, 600], indirect=True, ids="CONN_MAX_AGE={}".format)
SUBCLASS = "tests.projects.subclassed_backend"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the server longer to answer than a busy machine takes."""
    monkeypatch.setattr(sessions, "RESET_TIMEOUT", 30.0)


@pytest.fixture
def resets() -> Iterator[CountedResets]:
    """The resets that were asked for."""
    with counted_resets() as counted:
        yield counted


def one_after_the_other(*tasks: Callable[[], Any]) -> list[Any]:
    """Queue these tasks on one worker, and return their results."""
    return results(queued(ThreadPoolExecutor(1), *tasks))


def none_left() -> bool:
    return wait_until(all_connections, lambda found: not found) == ()


# A worker keeps while more tasks are queued than workers keep, and only then.


@pytest.mark.parametrize(
    ("alias", "age"), [("default", 0), ("default", 60), ("mariadb", 60), ("sqlite", 60)]
)
def test_reuse(
    alias: str, age: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queued tasks on 4 workers use 4 backends, until fewer tasks than workers are left."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")
    monkeypatch.setitem(connections.settings[alias], "CONN_MAX_AGE", age)
    used = results(queued(ThreadPoolExecutor(4), *[lambda: backend(alias)] * 60, workers=4))
    assert len(set(used[:-8])) <= 4
    assert len(set(used)) <= 8
    assert none_left()


def test_as_many_keep_as_tasks_are_queued() -> None:
    """Of 8 workers whose tasks end together with 3 tasks queued, 3 keep; with all done, none does."""
    pool, kept = ThreadPoolExecutor(8), list[int]()
    together = threading.Barrier(8)
    decided = threading.Barrier(8, action=lambda: kept.append(len(all_connections())))

    def first() -> None:
        Entry.objects.count()
        together.wait(20)

    with held_up(pool, 8):
        ahead = [pool.submit(first) for _ in range(8)]
        behind = [pool.submit(Entry.objects.count) for _ in range(3)]
        for future in ahead:  # in its worker, before that takes another task
            future.add_done_callback(lambda _: decided.wait(20))
    assert results(behind) == [0, 0, 0]
    assert kept == [3]
    assert none_left()


def test_a_keeper_that_has_its_task() -> None:
    """A worker that runs what it kept for reserves nothing: the other keeps for what is queued."""
    go_on, together = threading.Event(), threading.Barrier(2)

    def first() -> None:
        Entry.objects.count()
        together.wait(20)

    tasks = [first, first, lambda: go_on.wait(60), backend, backend, backend]
    *_, one, two, three = queued(ThreadPoolExecutor(2), *tasks, workers=2)
    used = results([one, two, three])
    go_on.set()
    assert len(set(used)) == 1


@two_ages
@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("shutdowns", [0, 3])
def test_the_last_task(shutdowns: int, resets: CountedResets) -> None:
    """The last of three tasks lets go before its future resolves, in a pool being shut down too."""
    pool, left = ThreadPoolExecutor(1), Future[Any]()
    with held_up(pool):
        futures = [pool.submit(Entry.objects.count) for _ in range(3)]
        futures[-1].add_done_callback(lambda _: left.set_result(all_connections()))
        for _ in range(shutdowns):
            pool.shutdown(wait=False)  # which wakes workers up by what is no task
    assert left.result(20) == ()
    assert results(futures) == [0, 0, 0]
    assert len(resets.begun) <= 2


def test_tasks_that_were_cancelled() -> None:
    """A worker that kept for a task which was then cancelled lets go when it finds nothing else."""
    pool = ThreadPoolExecutor(1)
    with held_up(pool):
        first = pool.submit(Entry.objects.count)
        assert all(pool.submit(Entry.objects.count).cancel() for _ in range(3))
    assert first.result(20) == 0
    assert none_left()


def test_callbacks_between_tasks() -> None:
    """What done-callbacks of queued tasks open is let go of too."""
    pool, counts, counted = ThreadPoolExecutor(1), list[int](), threading.Barrier(2)

    def count(_: object) -> None:
        counts.append(Entry.objects.count())
        if len(counts) == 3:
            counted.wait(20)

    with held_up(pool):
        for _ in range(3):
            pool.submit(Entry.objects.create, name="written").add_done_callback(count)
    counted.wait(20)
    assert counts == [1, 2, 3]
    assert none_left()


def test_tasks_without_queries(resets: CountedResets) -> None:
    """A task that makes no query costs no reset, and opens nothing."""
    seen: list[int] = []
    idle: Callable[[], Any] = lambda: seen.append(len(all_connections()))  # noqa: E731
    one_after_the_other(*[idle] * 5)
    assert seen == [0] * 5
    one_after_the_other(Entry.objects.count, *[idle] * 5, Entry.objects.count)
    assert len(resets.begun) == 1


@two_ages
@pytest.mark.usefixtures("conn_max_age")
def test_a_kept_connection_that_died(postgres: PostgresObserver) -> None:
    """No task meets a connection that the server closed while it was kept."""
    hung_up = select.poll()

    def first() -> object:
        pid = backend()
        hung_up.register(connection.connection.fileno(), select.POLLRDHUP)
        return pid

    def kill() -> None:
        postgres.kill()
        assert hung_up.poll(20_000)

    pid, _, next_pid = one_after_the_other(first, kill, backend)
    assert pid != next_pid


@two_ages
@pytest.mark.usefixtures("conn_max_age")
def test_idle_for_longer(postgres: PostgresObserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was kept for long has its server asked, though its socket has nothing to tell."""
    monkeypatch.setattr(sessions, "BYPASS_WINDOW", 0.0)
    monkeypatch.setattr(sessions, "is_silent", lambda driver: True)  # as behind a firewall
    pid, _, next_pid = one_after_the_other(backend, postgres.kill, backend)
    assert pid != next_pid


@two_ages
@pytest.mark.usefixtures("conn_max_age")
def test_query_log() -> None:
    """With DEBUG, no task's queries are in the next one's log, on the same connection or not."""

    def logged() -> int:
        return len(connection.queries)

    with override_settings(DEBUG=True), ThreadPoolExecutor(1) as pool:
        *pids, of_a_queued_task = results(queued(pool, backend, backend, logged))
        assert len(set(pids)) == 1
        assert of_a_queued_task == pool.submit(logged).result(20) == 0


def test_open_transaction_on_mariadb(mariadb: MariaDBObserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction begun by hand, which its driver cannot see, is rolled back before the next task."""
    monkeypatch.setitem(connections.settings["mariadb"], "CONN_MAX_AGE", 60)

    def begins() -> object:
        with connections["mariadb"].cursor() as cursor:
            cursor.execute("BEGIN")
        Entry.objects.using("mariadb").create(name="not committed")
        return backend("mariadb")

    def looks() -> tuple[object, int]:
        return backend("mariadb"), Entry.objects.using("mariadb").count()

    first, second, third = one_after_the_other(begins, looks, looks)
    assert second == third == (first, 0)
    assert not mariadb.left()


def test_open_transaction_under_another_vendor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where PostgreSQL's driver has another vendor's name, such a connection is closed as dirty too."""
    monkeypatch.setitem(connections.settings["default"], "ENGINE", "tests.projects.cockroach_backend")
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 60)

    def begins() -> object:
        raw_begin()
        return connection.connection

    def looks() -> tuple[object, int]:
        return Entry.objects.count(), connection.connection

    first, second, third = one_after_the_other(begins, looks, looks)
    assert second == third
    assert second[0] == 0
    assert second[1] is not first
    (record,) = caplog.records
    assert "an open transaction" in record.getMessage()


@pytest.fixture
def lending(mariadb: MariaDBObserver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The alias `mariadb` has connections of a pool of somebody else's."""
    from tests.projects.lending_backend import base

    monkeypatch.setitem(connections.settings["mariadb"], "ENGINE", "tests.projects.lending_backend")
    del connections["mariadb"]
    yield base
    connections["mariadb"].close()
    del connections["mariadb"]
    for driver in base.free:
        driver.close()
    base.free.clear()
    base.borrowed.clear()


@pytest.mark.parametrize("age", [60, None])
def test_connections_of_somebody_elses_pool(
    age: int | None, lending: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task gives its own back with nothing unread, and whoever has it next reads his answers."""
    monkeypatch.setitem(connections.settings["mariadb"], "CONN_MAX_AGE", age)
    tasks, workers = 60, 4

    def ask(number: int) -> int:
        with connections["mariadb"].cursor() as cursor:
            cursor.execute("SELECT %s", [number])
            answer: int = cursor.fetchone()[0]
        return answer

    asked = [partial(ask, number) for number in range(tasks)]
    with ThreadPoolExecutor(workers) as pool:
        assert results(queued(pool, *asked, workers=workers)) == list(range(tasks))
        assert all_connections() == ()
    assert ask(100) == 100
    assert len(lending.borrowed) == tasks + 1
    assert len(set(lending.borrowed)) <= workers


# At CONN_MAX_AGE = 0 each task has a fresh session, also when its worker did not reconnect.


def test_on_the_server() -> None:
    """What a task set on the server, the next one does not see, on the same backend."""
    reused = look_behind(*[[Task([step])] for step in ON_THE_SERVER])
    assert [step.__name__ for step, same in zip(ON_THE_SERVER, reused, strict=True) if not same] == []


def test_in_the_client() -> None:
    """What a task set on the driver's connection or on the wrapper, the next one does not see."""
    look_behind(*[[Task([step])] for step in IN_THE_CLIENT])


@pytest.mark.slow
def test_any_steps_and_endings() -> None:
    """A session after any steps and endings equals a new one's, on the same backend in many cases."""
    reused: list[bool] = []
    steps = st.lists(st.sampled_from([*ON_THE_SERVER, *IN_THE_CLIENT]), max_size=4)
    tasks = st.builds(Task, steps, st.sampled_from(ENDINGS))

    @settings(max_examples=80, derandomize=True, deadline=None, database=None)
    @given(st.lists(tasks, min_size=1, max_size=3))
    def run(tasks: list[Task]) -> None:
        found = look_behind(tasks)
        if not any(open_iterator in task.steps for task in tasks):  # which is dirty
            reused.extend(found)

    run()
    assert sum(reused) > len(reused) / 4, reused


ROLES: dict[str, dict[str, str]] = {
    "assumed": {"options": "-c work_mem=234kB", "assume_role": "pg_read_all_data"},
    "of the start-up packet": {"options": "-c role=pg_read_all_data -c work_mem=234kB"},
}


@pytest.mark.parametrize("role", ROLES)
def test_what_settings_and_receivers_set_up(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPTIONS and `connection_created` receivers are in force for each task, after a reset too."""
    of_this = {**ROLES[role], "isolation_level": psycopg.IsolationLevel.REPEATABLE_READ}
    options = connection.settings_dict["OPTIONS"] | of_this
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    monkeypatch.setitem(connection.settings_dict, "TIME_ZONE", "Asia/Tokyo")
    created: list[int] = []

    def receive(connection: Any, **kwargs: Any) -> None:
        execute("SELECT set_config('app.tenant', 'of the receiver', false)")
        created.append(1)

    def looks() -> tuple[Any, ...]:
        seen = execute(
            "SELECT pg_backend_pid(), current_user, current_setting('work_mem'),"
            " current_setting('app.tenant'), current_setting('TimeZone')"
        )[0]
        execute("SET ROLE NONE; SET work_mem = '64kB'; SET app.tenant = 'of a task'")
        execute("SET SESSION AUTHORIZATION pg_monitor")
        with transaction.atomic():
            return (*seen, *execute("SHOW transaction_isolation")[0])

    connection_created.connect(receive)
    try:
        first, second, third = one_after_the_other(looks, looks, looks)
    finally:
        connection_created.disconnect(receive)
    assert first == second == third
    assert first[1:] == ("pg_read_all_data", "234kB", "of the receiver", "Asia/Tokyo", "repeatable read")
    assert len(created) == 3


def test_a_receiver_that_installs_a_hook() -> None:
    """It finds what it found the first time, at each task, and costs no connection."""
    tasks, workers, seen = 300, 4, list[str]()

    def look(execute: Any, sql: str, *args: Any) -> Any:
        seen.append(sql)
        return execute(sql, *args)

    def receive(connection: Any, **kwargs: Any) -> None:
        if look not in connection.execute_wrappers:
            connection.execute_wrappers.append(look)

    pool = ThreadPoolExecutor(workers)
    connection_created.connect(receive)
    try:
        # Behind them there is something queued to the end, for which each worker keeps.
        queue = [*[Entry.objects.count] * tasks, *[int] * 2 * workers]
        assert results(queued(pool, *queue, workers=workers)) == [0] * len(queue)
    finally:
        connection_created.disconnect(receive)
    stats = pool.stats()
    assert stats.connections_opened <= workers
    assert stats.connections_opened + stats.connections_reset == tasks
    assert len(seen) == tasks


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


def without_libpq(patch: pytest.MonkeyPatch) -> None:
    connect = DatabaseWrapper.get_new_connection
    patch.setattr(
        DatabaseWrapper, "get_new_connection", lambda self, params: Proxy(connect(self, params))
    )


def prepared_statements(patch: pytest.MonkeyPatch) -> None:
    options = connection.settings_dict["OPTIONS"] | {"prepare_threshold": 0}
    patch.setitem(connection.settings_dict, "OPTIONS", options)


UNPROVEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a subclass": lambda patch: patch.setitem(connection.settings_dict, "ENGINE", SUBCLASS),
    "a pooler's setting": lambda patch: patch.setitem(
        connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True
    ),
    "over a minute old": lambda patch: patch.setattr(sessions, "MAX_RESET_AGE", 0.0),
    "past its max age": lambda patch: patch.setitem(connection.settings_dict, "CONN_MAX_AGE", 1e-9),
    "slow to answer": lambda patch: patch.setattr(sessions, "RESET_TIMEOUT", 0.0),
    "psycopg prepares statements": prepared_statements,
    "a driver without libpq": without_libpq,
}


@pytest.mark.parametrize("what", UNPROVEN)
def test_where_nothing_is_proven_it_closes(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a reset is not proven right, each task gets a new connection."""
    UNPROVEN[what](monkeypatch)
    pids = one_after_the_other(backend, backend, backend)
    sessions._not_reset.clear()
    assert len(set(pids)) == 3


@pytest.mark.parametrize("moment", ["_send", "_receive"])
def test_no_reset_without_the_connections_lock(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte goes over a connection that another thread uses: it is closed, and no task fails."""
    own = getattr(sessions, moment)

    def while_in_use(driver: Any, what: Any) -> None:
        """Do it while another thread, as it were, closes a stray cursor of this connection."""
        with driver.lock:
            own(driver, time.monotonic() + 0.05 if moment == "_receive" else what)

    monkeypatch.setattr(sessions, moment, while_in_use)
    first, second = one_after_the_other(backend, backend)
    assert first != second


# A wrapper class of a project's own may keep a tenant, of which the server's session is a copy.


@pytest.mark.parametrize(("age", "wrappers", "pids"), [(0, 3, 2), (60, 1, 1)])
def test_a_subclass(age: int, wrappers: int, pids: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It and its connection are never used by two tasks, but at CONN_MAX_AGE ≠ 0, as Django has it."""
    monkeypatch.setitem(connection.settings_dict, "ENGINE", SUBCLASS)
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", age)
    used: list[object] = []

    def leaves() -> None:
        used.append(backend())
        leaves_without_a_query()

    def leaves_without_a_query() -> None:
        wrapper = connections["default"]
        assert age or not hasattr(wrapper.ops, "tenant")
        wrapper.ops.tenant = "acme"  # where nobody looks
        found.append(wrapper)

    found: list[Any] = []
    one_after_the_other(leaves, leaves_without_a_query, leaves)
    assert (len({id(one) for one in found}), len(set(used))) == (wrappers, pids)


SCHEMAS = """
    CREATE TABLE public.note AS SELECT 'public' AS text;
    CREATE SCHEMA acme; CREATE TABLE acme.note AS SELECT 'acme' AS text;
    CREATE SCHEMA globex; CREATE TABLE globex.note AS SELECT 'globex' AS text;
"""
TENANTS = """
    import json, threading
    from django.db import close_old_connections, connection, connections
    from django_executors import ThreadPoolExecutor
    from tests.support.kept import queued, results

    def look():
        "What the task may read, and what the wrapper says."
        with connection.cursor() as cursor:
            cursor.execute("SELECT text FROM note")
            return *cursor.fetchone(), connection.schema_name

    def visit(schema):
        connection.set_schema(schema)
        return look()

    def acme(): return visit("acme")
    def globex(): return visit("globex")
    def chooses(): connection.set_schema("acme")  # and no query

    tasks = [acme, look, globex, chooses, look, acme]
    fresh = results(queued(ThreadPoolExecutor(1), *tasks))
    busy = results(queued(ThreadPoolExecutor(4), *[acme, look, globex, look] * 20, workers=4))
    connections.settings["default"]["CONN_MAX_AGE"] = 60
    kept = results(queued(ThreadPoolExecutor(1), acme, look, globex))
    requests = []
    for view in acme, look, globex:
        close_old_connections()  # what Django does at a request's end and at the next one's begin
        requests.append(view())
    connection.close()
    print(json.dumps([fresh, busy, kept, requests]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("django_tenants") is None, reason="django-tenants is not installed"
)
def test_tenants(postgres: PostgresObserver) -> None:
    """With django-tenants, a task that names no tenant is in public at CONN_MAX_AGE = 0.

    At CONN_MAX_AGE = 60 the last tenant stays, as between two requests; wrapper and server agree.
    """
    postgres.execute("CREATE DATABASE tenants")
    with psycopg.connect(os.environ["TEST_POSTGRES_URL"], dbname="tenants") as setting_up:
        setting_up.execute(SCHEMAS.encode())
    child = run_python(TENANTS, settings="tests.projects.tenants_settings")
    assert not postgres.left("tenants")
    postgres.execute("DROP DATABASE tenants")
    assert child.returncode == 0, child.stderr
    fresh, busy, kept, requests = json.loads(child.stdout)
    acme, public, globex = (["acme"] * 2, ["public"] * 2, ["globex"] * 2)
    assert fresh == [acme, public, globex, None, public, acme]
    assert busy == [acme, public, globex, public] * 20
    assert kept == requests == [acme, acme, globex]


# Behind a pooler sessions are shared: nothing of theirs is ever reset by us.


# What another client set on the one session that all clients of the pooler share.
THEIRS = {
    "SET search_path = theirs, public": "SHOW search_path",
    "SET ROLE pg_monitor": "SELECT current_user",
    "PREPARE theirs AS SELECT 42": "EXECUTE theirs",
    "SELECT pg_advisory_lock(42)": "SELECT objid FROM pg_locks WHERE locktype = 'advisory'",
    "LISTEN theirs": "SELECT * FROM pg_listening_channels()",
    "CREATE TEMPORARY TABLE theirs AS SELECT 42 AS x": "SELECT x FROM theirs",
    "DECLARE theirs CURSOR WITH HOLD FOR SELECT 42": "SELECT name FROM pg_cursors",
}


@pytest.fixture
def pgbouncer() -> Iterator[PgBouncer]:
    """A PgBouncer in transaction mode, with one session for all its clients."""
    with start_postgres() as server:
        try:
            bouncer = start_pgbouncer(server, pool_size=1)
        except MissingServer as missing:
            if os.environ.get("REQUIRE_ALL_SERVERS"):
                raise
            pytest.skip(str(missing))
        with bouncer:
            yield bouncer


def query_twice(number: int) -> int:
    """Make two queries through the alias `private`, one of them in a transaction."""
    with transaction.atomic("private"), connections["private"].cursor() as cursor:
        cursor.execute("SELECT %s * 2", [number])
        (doubled,) = cursor.fetchone()
    with connections["private"].cursor() as cursor:
        cursor.execute("SELECT %s / 2", [doubled])
        halved: int = cursor.fetchone()[0]
    return halved


def test_other_clients_keep_their_sessions(
    pgbouncer: PgBouncer, resets: CountedResets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through PgBouncer our tasks work, and what other clients set on the shared session stays."""
    address = {"HOST": pgbouncer.host, "PORT": str(pgbouncer.port)}
    monkeypatch.setitem(connections.settings, "private", connections.settings["default"] | address)
    with psycopg.connect(pgbouncer.url, autocommit=True, prepare_threshold=None) as other:

        def seen() -> list[Any]:
            return [
                other.execute(sql.encode()).fetchall()
                for sql in (*THEIRS.values(), "SELECT pg_backend_pid()")
            ]

        for leave in THEIRS:
            other.execute(leave.encode())
        before = seen()
        assert all(before)
        with ThreadPoolExecutor(4) as pool, override_settings(EXECUTORS_APPLICATION_NAME="{pid}"):
            assert list(pool.map(query_twice, range(60), timeout=60)) == list(range(60))
        assert seen() == before
    assert resets.begun == []
    sessions._not_reset.clear()


def test_over_a_unix_socket(postgres: PostgresObserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection over a Unix socket is direct too: its sessions are reset."""
    ((folder,),) = postgres.execute("SHOW unix_socket_directories")
    monkeypatch.setitem(connection.settings_dict, "HOST", folder)
    first, second = one_after_the_other(backend, backend)
    assert first == second
