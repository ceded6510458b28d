"""Tasks for worker processes, which import them from here."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import connection, connections, transaction
from django.utils import timezone, translation

from django_executors import ProcessPoolExecutor
from tests.projects.testapp.models import Entry
from tests.support.cache_clients import connection_of
from tests.support.forks import server_pid
from tests.support.waiting import wait_until

#: What a submitter sets, and what an initializer does.
request_id: contextvars.ContextVar[object] = contextvars.ContextVar("request_id", default="unset")
warmed_up: contextvars.ContextVar[str] = contextvars.ContextVar("warmed_up", default="cold")


def database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_database()")
        return str(cursor.fetchone()[0])


def database_of_alias(alias: str) -> str:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT current_database()")
        return str(cursor.fetchone()[0])


def server_pids(alias: str = "default") -> tuple[int, int]:
    """Return this process, and its session with the server."""
    return os.getpid(), server_pid(alias)


def client(alias: str) -> object:
    return connection_of(alias)


def doubled(number: int) -> int:
    """Ask the server, so that an answer of another session's would be seen."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::int * 2", [number])
        return int(cursor.fetchone()[0])


def names() -> list[str]:
    return sorted(Entry.objects.values_list("name", flat=True))


def warm_up(how: str) -> None:
    """An initializer, beside models."""
    warmed_up.set(f"{how}, {Entry.objects.count()} entries")


def set_max_age(age: int | None) -> None:
    """An initializer."""
    for alias in connections:
        if alias != "pooled":
            connections.settings[alias]["CONN_MAX_AGE"] = age


def fail(*_: object) -> None:
    server_pid("default")
    raise LookupError("of the initializer")


def warmth() -> str:
    return warmed_up.get()


def variable() -> object:
    return request_id.get()


def killed() -> None:
    server_pid("default")
    os.kill(os.getpid(), signal.SIGKILL)


def leave_a_transaction_open() -> None:
    transaction.set_autocommit(False)
    Entry.objects.create(name="not committed")


def close_all() -> None:
    connections.close_all()


def settings_module() -> str:
    return f"{settings.SETTINGS_MODULE} {os.environ['DJANGO_SETTINGS_MODULE']}"


def a_lock() -> object:
    return threading.Lock()


class Unpicklable(Exception):
    """An error that cannot be pickled."""

    def __reduce__(self) -> str:
        raise TypeError("this error stays here")


def raise_unpicklable() -> None:
    raise Unpicklable


class Required(Exception):
    """An error that asks for more than its arguments, as many do: it cannot be unpickled."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(f"{text} {code}")


def raise_required() -> None:
    raise Required("told", 7)


@dataclass(frozen=True)
class Frozen(Exception):
    """An error whose attributes nobody may set."""

    code: int


def raise_frozen() -> None:
    raise Frozen(7)


class Untold(Exception):
    """An error that can neither be pickled nor told."""

    def __reduce__(self) -> str:
        raise Untold

    def __str__(self) -> str:
        raise SystemExit(3)


def raise_untold() -> None:
    raise Untold


class Lazy(Exception):
    """An error that queries when it is asked for its text."""

    def __str__(self) -> str:
        return f"{Entry.objects.count()} entries"


def raise_lazy() -> None:
    raise Lazy


def a_queryset() -> Any:
    return Entry.objects.all()


class Queries:
    """What queries when it is unpickled."""

    def __setstate__(self, state: object) -> None:
        server_pid("default")


def give_what_queries() -> Queries:
    found = Queries()
    vars(found)["anything"] = 1
    return found


class Exits:
    """What nobody can pickle and live."""

    def __reduce__(self) -> str:
        raise SystemExit(3)


def give_what_exits() -> Exits:
    return Exits()


def query_in_a_callback(_: Future[object]) -> None:
    server_pid("default")


def wait_for_unlock(number: int) -> bool:
    """Return when nobody holds this advisory lock, in whatever database of the server."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""DO $$ BEGIN
            WHILE EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = {number:d}) LOOP
                PERFORM pg_sleep(0.01);
            END LOOP;
            END $$"""
        )
    return True


def pass_lock(number: int) -> None:
    """Return when nobody holds this advisory lock of the task's own database."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [number])


class Odd(Exception):
    """An error with more to it than its arguments."""

    def __init__(self, *args: object, code: int = 0) -> None:
        super().__init__(*args)
        self.code = code


def raise_in_atomic(error: BaseException) -> None:
    with transaction.atomic():
        create("not committed")
        raise error


def create(name: str) -> None:
    Entry.objects.create(name=name)


def surroundings() -> tuple[str | None, str, object]:
    return translation.get_language(), timezone.get_current_timezone_name(), request_id.get()


def change_surroundings() -> None:
    translation.activate("fr")
    timezone.activate(ZoneInfo("America/Lima"))
    request_id.set("of a task")


def process_id() -> int:
    return os.getpid()


def process_id_of(_: object) -> int:
    return os.getpid()


def database_of(_: object) -> str:
    return database()


def wait_for_a_file(path: str) -> None:
    """Return when somebody has made it, after a minute at most."""
    wait_until(Path(path).exists, within=60)


def send(end: Connection[Any, Any], what: str) -> None:
    end.send(what)


def append_a_line(path: str) -> None:
    with Path(path).open("a") as calls:
        calls.write("called\n")


_pools: list[ProcessPoolExecutor] = []


def submit_to_a_pool_of_its_own(path: str) -> None:
    """Which lives as long as this process."""
    if not _pools:
        _pools.append(ProcessPoolExecutor(1))
    _pools[0].submit(append_a_line, path)


class Stays:
    """What can be pickled, and unpickled nowhere else."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["_pid"] != os.getpid():
            raise LookupError("it stays where it was made")


def give_what_stays() -> Stays:
    return Stays()
