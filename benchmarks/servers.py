"""Private servers, each a DATABASES entry that all contestants use in turn."""

import contextlib
import importlib.util
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from private_servers import (
    MissingServer,
    Postgres,
    django_database,
    find_pgbouncer,
    start_mariadb,
    start_pgbouncer,
    start_postgres,
)

WORKERS = 8
POSTGRES_SETTINGS = {"max_connections": "200"}


@dataclass(frozen=True)
class Server:
    """One way to reach a database.

    Attributes:
        database: its entry in DATABASES.
        pooled: Django's own pool is on, which allows no CONN_MAX_AGE.
        note: what a reader has to know.
    """

    key: str
    title: str
    vendor: str
    database: dict[str, Any] = field(repr=False)  # it holds a password
    pooled: bool = False
    note: str = ""


KEYS = ("none", "tcp", "socket", "pool", "pgbouncer", "mariadb", "sqlite")


@contextlib.contextmanager
def running(keys: Sequence[str]) -> Iterator[tuple[list[Server], dict[str, str]]]:
    """Start what these servers need; yield them, and what is missing and why, by title."""
    with contextlib.ExitStack() as stack:
        found: list[Server] = []
        missing: dict[str, str] = {}
        if "none" in keys:
            found.append(no_database())
        if {"tcp", "socket", "pool", "pgbouncer"} & {*keys}:
            postgres = stack.enter_context(start_postgres(settings=POSTGRES_SETTINGS))
            found += [each for each in on_postgres(postgres) if each.key in keys]
        later: dict[str, tuple[str, Callable[[], Server]]] = {
            "pgbouncer": ("PgBouncer", lambda: pgbouncer(stack, postgres)),
            "mariadb": ("MariaDB", lambda: mariadb(stack)),
            "sqlite": ("SQLite", lambda: sqlite(stack)),
        }
        for key, (title, start) in later.items():
            if key in keys:
                try:
                    found.append(start())
                except MissingServer as error:
                    missing[title] = str(error)
        yield found, missing


def no_database() -> Server:
    return Server("none", "No database", "none", {"ENGINE": "django.db.backends.dummy"})


def on_postgres(postgres: Postgres) -> Iterator[Server]:
    tcp = django_database(postgres.url)
    options = {"pool": {"min_size": WORKERS, "max_size": WORKERS}}
    yield Server("tcp", "PostgreSQL, TCP", "postgresql", tcp, note="A password by scram-sha-256.")
    yield Server(
        "socket",
        "PostgreSQL, Unix socket",
        "postgresql",
        tcp | {"HOST": postgres.socket_dir, "PASSWORD": ""},
        note="No password (trust).",
    )
    yield Server(
        "pool",
        "PostgreSQL, Django's pool",
        "postgresql",
        tcp | {"OPTIONS": options},
        pooled=True,
        note=f"TCP; `OPTIONS = {options}`, with which Django allows no CONN_MAX_AGE.",
    )


def pgbouncer(stack: contextlib.ExitStack, postgres: Postgres) -> Server:
    server = stack.enter_context(start_pgbouncer(postgres))
    note = "TCP, transaction mode; DISABLE_SERVER_SIDE_CURSORS is not set."
    return Server(
        "pgbouncer", "PostgreSQL, PgBouncer", "postgresql", django_database(server.url), note=note
    )


def mariadb(stack: contextlib.ExitStack) -> Server:
    if not importlib.util.find_spec("MySQLdb"):
        raise MissingServer("mysqlclient is missing: run `pip install mysqlclient`")
    server = stack.enter_context(start_mariadb())
    return Server("mariadb", "MariaDB, TCP", "mysql", django_database(server.url), note="A password.")


def sqlite(stack: contextlib.ExitStack) -> Server:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    path = Path(folder, "benchmark.sqlite3")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")  # the file remembers it
    options = {"timeout": 60, "init_command": "PRAGMA synchronous = NORMAL"}
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path), "OPTIONS": options}
    note = "In WAL mode, synchronous = NORMAL. It has no function that sleeps: no 10 ms query."
    return Server("sqlite", "SQLite, a file", "sqlite", entry, note=note)


def pgbouncer_version() -> str:
    command = [str(find_pgbouncer()), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0].removeprefix("PgBouncer ")
