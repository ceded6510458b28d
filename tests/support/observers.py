"""What the servers themselves say of their clients."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

import psycopg

from private_servers import django_database
from tests.support.waiting import wait_until


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

    def settled(self, number: int) -> set[int]:
        """Return the clients of "app" when the server has had the time to notice who is gone."""
        return wait_until(self.backends, lambda pids: len(pids) == number)

    def left(self, database: str = "app", *, within: float = 10.0) -> set[int]:
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

    def execute(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        cursor = self._connection.cursor()
        cursor.execute(sql, params or None)
        return list(cursor.fetchall())

    def backends(self, database: str = "app") -> set[int]:
        rows = self.execute("SELECT id FROM information_schema.processlist WHERE db = %s", database)
        return {row[0] for row in rows}

    def left(self, database: str = "app", *, within: float = 10.0) -> set[int]:
        return wait_until(lambda: self.backends(database), lambda ids: not ids, within=within)

    def close(self) -> None:
        self._connection.close()


class _Spoken:
    """A raw socket to a server that answers in lines, so that no client library is asked."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=10)
        self._lines = self._socket.makefile("rwb")

    def _ask(self, command: bytes) -> bytes:
        self._lines.write(command + b"\r\n")
        self._lines.flush()
        return self._lines.readline().rstrip()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class RedisObserver(_Spoken):
    """The same for Redis. The server numbers its clients, and never gives a number twice."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        super().__init__(str(parts.hostname), parts.port or 6379)
        self._own = int(self._ask(b"CLIENT ID").removeprefix(b":"))

    def clients(self) -> set[int]:
        length = int(self._ask(b"CLIENT LIST").removeprefix(b"$"))
        answer = self._lines.read(length + 2).decode()
        return {
            int(line.split()[0].removeprefix("id=")) for line in answer.split("\n") if "id=" in line
        } - {self._own}

    def left(self, before: set[int], *, within: float = 10.0) -> set[int]:
        """Return what has come and is left when the server has had the time to notice."""
        return wait_until(lambda: self.clients() - before, lambda ids: not ids, within=within)

    def made(self) -> int:
        """Return how many clients the server has had so far."""
        return self._info(b"total_connections_received")

    def _info(self, name: bytes) -> int:
        length = int(self._ask(b"INFO stats").removeprefix(b"$"))
        answer = self._lines.read(length + 2)
        return int(answer.partition(name + b":")[2].split()[0])


class MemcachedObserver(_Spoken):
    """The same for memcached, which counts its clients, and does not tell one from another."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        super().__init__(host, int(port))
        self._without = self._stats("curr_connections")

    def clients(self) -> set[int]:
        return set(range(self._stats("curr_connections") - self._without))

    def left(self, before: set[int], *, within: float = 10.0) -> set[int]:
        return wait_until(lambda: self.clients() - before, lambda ids: not ids, within=within)

    def made(self) -> int:
        return self._stats("total_connections")

    def _stats(self, name: str) -> int:
        line = self._ask(b"stats")
        found: dict[str, str] = {}
        while line != b"END":
            _, key, value = line.decode().split(" ", 2)
            found[key] = value
            line = self._lines.readline().rstrip()
        return int(found[name])
