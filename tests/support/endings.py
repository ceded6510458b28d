"""How a task may end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from django.db import close_old_connections, connection, transaction

from tests.projects.testapp.models import Entry


def backend_pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
        return pid


def raises() -> None:
    Entry.objects.count()
    raise LookupError("of the task")


def exits() -> None:
    Entry.objects.count()
    raise SystemExit(3)


def interrupted() -> None:
    Entry.objects.count()
    raise KeyboardInterrupt


def autocommit_off() -> None:
    transaction.set_autocommit(False)
    Entry.objects.create(name="not committed")


def raw_begin() -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
    Entry.objects.create(name="not committed")


def failed_query_in_raw_begin() -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 / 0")


suspended: list[Generator[None, None, None]] = []


def half_an_atomic(alias: str) -> Generator[None, None, None]:
    with transaction.atomic(using=alias):
        Entry.objects.using(alias).create(name="not committed")
        yield


def unbalanced_atomic(alias: str = "default") -> None:
    suspended.append(half_an_atomic(alias))
    next(suspended[-1])


def unbalanced_atomic_that_closes() -> None:
    unbalanced_atomic()
    connection.close()


def unbalanced_atomic_that_closes_old_connections() -> None:
    unbalanced_atomic()
    close_old_connections()


def open_pipeline() -> Any:
    connection.ensure_connection()
    pipeline = connection.connection.pipeline()
    pipeline.__enter__()
    return pipeline


def closed_in_atomic() -> None:
    with transaction.atomic():
        Entry.objects.count()
        connection.close()


def killed() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


ENDINGS: dict[Callable[[], object], type[BaseException] | None] = {
    raises: LookupError,
    exits: SystemExit,
    interrupted: KeyboardInterrupt,
    autocommit_off: None,
    raw_begin: None,
    failed_query_in_raw_begin: Exception,
    unbalanced_atomic: None,
    unbalanced_atomic_that_closes: None,
    unbalanced_atomic_that_closes_old_connections: None,
    open_pipeline: None,
    closed_in_atomic: None,
    killed: Exception,
}
