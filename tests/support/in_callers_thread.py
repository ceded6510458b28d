"""What the tests of `ImmediateExecutor` share: how a caller's connection may be closed, and where."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import close_old_connections, connections

from django_executors import ImmediateExecutor, ThreadPoolExecutor
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry

Where = Callable[..., None]
Close = Callable[[str], None]


class Abandoned(Exception):
    """Leaves an `atomic` block."""


def fail(error: BaseException) -> None:
    raise error


def names(alias: str = "default") -> list[str]:
    return list(Entry.objects.using(alias).order_by("id").values_list("name", flat=True))


def close_the_connection(alias: str) -> None:
    connections[alias].close()


def close_and_connect(alias: str) -> None:
    connections[alias].close()
    connections[alias].connect()


def close_all(alias: str) -> None:
    connections.close_all()


def close_old(alias: str) -> None:
    close_old_connections()


def in_a_task(fn: Callable[..., object], *args: object) -> None:
    ImmediateExecutor().submit(fn, *args).result(0)


def in_a_nested_task(fn: Callable[..., object], *args: object) -> None:
    def task() -> None:
        in_a_task(fn, *args)
        fn(*args)

    in_a_task(task)


def in_a_failing_task(fn: Callable[..., object], *args: object) -> None:
    def task() -> None:
        try:
            raise Abandoned
        finally:
            fn(*args)

    with pytest.raises(Abandoned):
        in_a_task(task)


def in_a_callback(fn: Callable[..., object], *args: object) -> None:
    ran: list[object] = []
    future = ImmediateExecutor().submit(int)
    future.add_done_callback(lambda _: ran.append(fn(*args)))
    assert ran


def in_a_pool_that_is_inline(fn: Callable[..., object], *args: object) -> None:
    with run_inline(), ThreadPoolExecutor(1) as pool:
        pool.submit(fn, *args).result(0)


def in_an_initializer(fn: Callable[..., object], *args: object) -> None:
    with run_inline(), ThreadPoolExecutor(1, initializer=fn, initargs=args) as pool:
        pool.submit(int).result(0)


CLOSINGS: list[Close] = [close_the_connection, close_and_connect, close_all, close_old]

PLACES: list[Where] = [
    in_a_task,
    in_a_nested_task,
    in_a_failing_task,
    in_a_callback,
    in_a_pool_that_is_inline,
    in_an_initializer,
]
