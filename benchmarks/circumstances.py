"""What a reader must know to believe a figure: versions, the machine, the command. No names of
machines, no folders.
"""

import os
import platform
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from django.db import connection

from .project import let_go, use
from .servers import Server, pgbouncer_version

PACKAGES = ("Django", "psycopg", "psycopg-pool", "mysqlclient", "django-thread")


@dataclass(frozen=True)
class Circumstances:
    """What surrounded a run."""

    command: str
    rounds: int
    versions: dict[str, str]
    machine: str
    missing: dict[str, str]


def versions_of(servers: Sequence[Server]) -> dict[str, str]:
    """The versions of all that takes part."""
    found = {"Python": platform.python_version(), **packages()}
    for server in servers:
        match server.key, server.vendor:
            case "pgbouncer", _:
                found["PgBouncer"] = pgbouncer_version()
            case _, "postgresql":
                found["PostgreSQL"] = ask(server, "SHOW server_version")
            case _, "mysql":
                found["MariaDB"] = ask(server, "SELECT VERSION()")
            case _, "sqlite":
                found["SQLite"] = sqlite3.sqlite_version
    return found


def packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def ask(server: Server, query: str) -> str:
    use(server.database)
    with connection.cursor() as cursor:
        cursor.execute(query)
        (answer,) = cursor.fetchone()
    let_go()
    return str(answer).split(" ")[0].split("-")[0]


def machine() -> str:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return f"{cores} cores, {platform.system()} on {platform.machine()}"
