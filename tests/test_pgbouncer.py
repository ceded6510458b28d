"""Behind a pooler sessions are shared: nothing of theirs is ever reset by us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import connections, transaction

from django_executors import ThreadPoolExecutor
from django_executors.lifecycle import sessions
from django_executors.lifecycle.postgresql import PostgreSQLSessions
from private_servers import MissingServer, PgBouncer, Postgres, start_pgbouncer, start_postgres

pytestmark = pytest.mark.usefixtures("collector_off")

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
def resets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
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
    resets: list[str],
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
    assert resets == []


@pytest.mark.parametrize("way", ["TCP", "a Unix socket"])
def test_a_direct_connection_is_reset(
    server: Postgres, resets: list[str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Without a pooler in between, over TCP and over a Unix socket, sessions are reset."""
    use_server(monkeypatch, server.host if way == "TCP" else server.socket_dir, server.port)
    run_tasks()
    assert resets
