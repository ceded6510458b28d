"""The clients of the database servers, as the servers themselves list them.

A server is asked over a connection of its own, made by the alias's wrapper class but outside Django's
handling of the alias: no pool, no receiver of `connection_created`, no role and no ceiling is involved,
and the connection that Django has for the alias is not used.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

from . import conf, registry
from .connections.incidents import says_full
from .connections.wrapper import most_pooled

#: How long a server may take to end a connection, in milliseconds.
_END_WITHIN = 5000

# Strings, numbers and comments of SQL. No group gives back what it has matched (`*+`), so that an
# unterminated literal takes the rest of the text. So does a backslash before a quote, where a setting of
# the session decides whether it escapes the quote, and a comment inside a comment.
_WORD = r"[A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*"
_STRING = r"'(?:[^'\\]|''|\\(?!'))*+'|'.*"
_NUMBER = r"\.?\d(?:[eE][+-]|[\w.])*"
_COMMENT = r"/\*(?:(?!/\*|\*/).)*+\*/|/\*.*"
_SQL = {
    "postgresql": re.compile(
        rf"(?P<comment>--[^\r\n]*|{_COMMENT})"
        r"|[eE]'(?:[^'\\]|''|\\.)*+(?:'|\\?\Z)"
        rf'|(?P<kept>{_WORD}|"(?:[^"]|"")*+"|\$\d+)'
        rf"|\$(?P<tag>(?:{_WORD.replace('$', '')})?)\$.*?(?:\$(?P=tag)\$|\Z)"
        rf'|{_STRING}|".*|{_NUMBER}',
        re.DOTALL,
    ),
    "mysql": re.compile(
        rf"(?P<comment>(?:#|--(?=[\x00-\x20\x7f]|\Z))[^\n]*|{_COMMENT})"
        rf"|(?P<kept>(?:{_WORD})|`(?:[^`]|``)*+`)"
        rf"|{_STRING}|{_STRING.replace(chr(39), chr(34))}|`.*|{_NUMBER}",
        re.DOTALL,
    ),
}

_POSTGRES_LIMITS = """
    SELECT current_setting('max_connections')::int,
        current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0)
"""
# Of another role's sessions an ordinary user gets NULL for most columns, the type among them. So their
# parallel workers count too; only the server's own processes have no role, or no database.
_POSTGRES_CLIENTS = """
    SELECT pid, application_name,
        CASE WHEN client_port = -1 THEN 'local' ELSE host(client_addr) || ':' || client_port END,
        usename, datname, state,
        extract(epoch FROM clock_timestamp() - backend_start)::float,
        CASE WHEN starts_with(state, 'idle')
            THEN extract(epoch FROM clock_timestamp() - state_change)::float END,
        coalesce(query, '')
    FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND datid IS NOT NULL AND usesysid IS NOT NULL
        AND coalesce(backend_type, 'client backend') = 'client backend'
"""
_HIDDEN = "<insufficient privilege>"
_MYSQL_CLIENTS = """
    SELECT id, host, user, coalesce(db, ''), lower(command), time, coalesce(left(info, 1000), '')
    FROM information_schema.processlist
    WHERE id <> connection_id() AND command <> 'Daemon' AND user <> 'system user'
"""


@dataclass(frozen=True, slots=True)
class Client:
    """One connection to a server. None stands for what the server does not tell.

    Attributes:
        pid: the server's number for it.
        application: its `application_name`; empty on MySQL and MariaDB.
        host: the client's address and port, or that it uses a local socket.
        user, database: what it logged in as, and to.
        state: "active", "idle", "idle in transaction", or another of the server's words.
        age: seconds since it was opened; None on MySQL and MariaDB.
        idle: seconds since it became idle, in a transaction or not; None while it is not.
        query: what it runs now or, on PostgreSQL, ran last, without any literal.
    """

    pid: int
    application: str
    host: str | None
    user: str
    database: str
    state: str | None
    age: float | None
    idle: float | None
    query: str

    @property
    def idle_in_transaction(self) -> float | None:
        """For how many seconds it has been idle in a transaction, or None."""
        return self.idle if (self.state or "").startswith("idle in transaction") else None


@dataclass(frozen=True, slots=True)
class Report:
    """What a server says at one moment, the connection that asks left out.

    Attributes:
        used: how many connections it has.
        usable: how many it takes from ordinary users.
        reserved: how many more it takes from administrators.
        hidden: how many belong to users whose sessions the alias's user may not see.
        clients: those that it lists, by application, host and number.
    """

    used: int
    usable: int
    reserved: int
    hidden: int
    clients: tuple[Client, ...]

    @property
    def left(self) -> int:
        """How many more it takes from ordinary users."""
        return max(0, self.usable - self.used)


class Server:
    """One server, and the aliases of `settings.DATABASES` on it."""

    def __init__(self, aliases: list[str]) -> None:
        self.aliases = aliases
        settings = connections.settings[aliases[0]]
        self.vendor, self._broken = _vendor(aliases[0])
        self.is_known = self._broken is not None or self.vendor in _ASK
        host, port = settings["HOST"], settings["PORT"]
        self.address = f"{host}:{port}" if port else host or "a local socket"
        self._wrapper: BaseDatabaseWrapper | None = None

    def report(self) -> Report:
        """Ask the server. Its connection stays open until `close()`, unless this fails.

        Raises:
            django.db.Error: it gave no answer.
        """
        try:
            with (self._wrapper or self._connect()).cursor() as cursor:
                return _ASK[self.vendor](cursor)
        except Error:
            self.close()
            raise
        except Exception as error:  # wrong settings: other servers are to be shown all the same
            self.close()
            raise Error(f"{type(error).__name__}: {error}") from error

    def end(self, pid: int) -> bool:
        """Have the server end this connection, and return whether it is gone.

        Raises:
            django.db.Error: it was not ended, since the alias's user may not do that, for example.
        """
        with (self._wrapper or self._connect()).cursor() as cursor:
            if self.vendor == "mysql":
                cursor.execute("KILL CONNECTION %s", [pid])
                return True
            cursor.execute("SELECT pg_terminate_backend(%s, %s)", [pid, _END_WITHIN])
            return bool(cursor.fetchone()[0])

    def close(self) -> None:
        """Close the connection over which it was asked."""
        wrapper, self._wrapper = self._wrapper, None
        if wrapper is not None:
            wrapper.close()

    def _connect(self) -> BaseDatabaseWrapper:
        if self._broken is not None:
            raise self._broken
        alias = connections[self.aliases[0]]
        options = {
            name: value for name, value in alias.settings_dict["OPTIONS"].items() if name != "pool"
        }
        self._wrapper = wrapper = type(alias)({**alias.settings_dict, "OPTIONS": options}, alias.alias)
        with wrapper.wrap_database_errors:
            wrapper.connection = wrapper.get_new_connection(
                {**_PATIENCE[self.vendor], **wrapper.get_connection_params()}
            )
        wrapper.set_autocommit(True)  # in a transaction PostgreSQL's list never changes
        return wrapper


def _vendor(alias: str) -> tuple[str, Exception | None]:
    """Return an alias's vendor; or its engine, and why there is no wrapper for it."""
    try:
        return connections[alias].vendor, None
    except Exception as error:  # noqa: BLE001 - a missing driver, for example
        return connections.settings[alias]["ENGINE"], error


def by_server(aliases: Iterable[str]) -> list[Server]:
    """Return each server once, with those of these aliases that are on it."""
    found: dict[tuple[str, ...], list[str]] = {}
    for alias in aliases:
        settings = connections.settings[alias]
        options = [settings["OPTIONS"].get(name, "") for name in _WHERE]
        where = map(str, (settings["HOST"], settings["PORT"], *options))
        found.setdefault((_vendor(alias)[0], *where), []).append(alias)
    return [Server(each) for each in found.values()]


def allowed(aliases: Iterable[str]) -> dict[str, int]:
    """Return how many connections the executors of EXECUTORS may open, by alias, in each process.

    Those of their own worker processes count.

    Raises:
        ImproperlyConfigured: a setting is wrong.
    """
    workers, processes = sum(registry.most_workers().values()), registry.most_processes()
    found = {}
    for alias in aliases:
        pooled = most_pooled(connections[alias])
        own = conf.current().under_ceiling(alias, workers)
        found[alias] = own + processes if pooled is None else min(own, pooled) + processes * pooled
    return found


def why(error: Error) -> str:
    """Say in one line why a server gave no answer."""
    said = " ".join(str(error).split())
    hint = " (an alias whose user is an administrator may still get a connection that is reserved)"
    return f"no connection is left: {said}{hint}" if says_full(error) else said


def without_literals(query: str, vendor: str) -> str:
    """Return a query in one line, without its comments, and with `?` for each string and number.

    Where it cannot be told where a string or comment ends, the rest is left out.
    """

    def shown(found: re.Match[str]) -> str:
        return found["kept"] or (" " if found["comment"] else "?")

    words = " ".join(_SQL[vendor].sub(shown, query).split())
    return "".join(character if character.isprintable() else "?" for character in words)


def _ask_postgres(cursor: CursorWrapper) -> Report:
    cursor.execute(_POSTGRES_LIMITS)
    most, reserved = cursor.fetchone()
    cursor.execute(_POSTGRES_CLIENTS)
    clients = _clients("postgresql", cursor.fetchall())
    hidden = sum(each.query == _HIDDEN for each in clients)
    return Report(len(clients), most - reserved, reserved, hidden, clients)


def _ask_mysql(cursor: CursorWrapper) -> Report:
    cursor.execute("SELECT @@max_connections")
    (usable,) = cursor.fetchone()
    cursor.execute("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
    connected = int(cursor.fetchone()[1]) - 1
    transactions, sees_all = set(), False
    with contextlib.suppress(DatabaseError):  # without the privilege PROCESS
        cursor.execute("SELECT trx_mysql_thread_id FROM information_schema.innodb_trx")
        transactions, sees_all = {pid for (pid,) in cursor.fetchall()}, True
    cursor.execute(_MYSQL_CLIENTS)
    rows = []
    for pid, host, user, database, command, seconds, query in cursor.fetchall():
        idle = "idle in transaction" if pid in transactions else "idle"
        state = {"sleep": idle, "query": "active", "execute": "active"}.get(command, command)
        idle_for = seconds if command == "sleep" else None
        rows.append((pid, "", host, user, database, state, None, idle_for, query))
    hidden = 0 if sees_all else max(0, connected - len(rows))
    # One more than `max_connections` gets in if it is an administrator.
    return Report(len(rows) + hidden, usable, 1, hidden, _clients("mysql", rows))


def _clients(vendor: str, rows: Iterable[Any]) -> tuple[Client, ...]:
    found = [Client(*(*row[:-1], without_literals(row[-1], vendor))) for row in rows]
    return tuple(
        sorted(found, key=lambda each: (each.application or each.user, each.host or "", each.pid))
    )


#: By what of OPTIONS an alias leads to another server.
_WHERE = ("service", "unix_socket", "read_default_file", "read_default_group")
#: In an incident a server may accept a connection and say nothing. Seconds; those of OPTIONS go first.
_PATIENCE = {
    "postgresql": {"connect_timeout": 10},
    "mysql": {"connect_timeout": 10, "read_timeout": 10, "write_timeout": 10},
}
_ASK = {"postgresql": _ask_postgres, "mysql": _ask_mysql}
