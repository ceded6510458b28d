"""What the servers themselves say of their clients."""

from __future__ import annotations

from typing import Any

import psycopg

from private_servers import django_database

from .waiting import wait_until


class PostgresObserver:
    """A connection of its own to PostgreSQL, outside Django, that counts the others."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, dbname="postgres", autocommit=True)

    def execute(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(sql.encode(), params or None)
        return cursor.fetchall() if cursor.description else []

    def backends(self, database: str = "app") -> set[int]:
        """Return the process ids of the clients of one database."""
        rows = self.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = %s",
            database,
        )
        return {pid for (pid,) in rows}

    def left(self, database: str = "app", *, within: float = 1.0) -> set[int]:
        """Return what is left when the server has had the time to notice."""
        return wait_until(lambda: self.backends(database), lambda pids: not pids, within=within)

    def kill(self, database: str = "app") -> None:
        """Terminate every client of one database, and wait until they are gone."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", database
        )
        assert not self.left(database)

    def close(self) -> None:
        self._connection.close()


class MariaDBObserver:
    """The same for MariaDB."""

    def __init__(self, url: str) -> None:
        import MySQLdb

        entry = django_database(url)
        self._connection = MySQLdb.connect(
            host=entry["HOST"], port=int(entry["PORT"]), user=entry["USER"], password=entry["PASSWORD"]
        )
        self._connection.autocommit(True)

    def backends(self, database: str = "app") -> set[int]:
        cursor = self._connection.cursor()
        cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", [database])
        return {row[0] for row in cursor.fetchall()}

    def left(self, database: str = "app", *, within: float = 1.0) -> set[int]:
        return wait_until(lambda: self.backends(database), lambda ids: not ids, within=within)

    def close(self) -> None:
        self._connection.close()
