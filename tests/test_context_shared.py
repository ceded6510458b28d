"""What the copy of a context has in common with its submitter's, and must not."""

from __future__ import annotations

import contextvars
import decimal
import weakref
from collections.abc import Callable

import pytest
from asgiref.sync import async_to_sync
from django.core.cache import caches

from django_executors import ImmediateExecutor, ThreadPoolExecutor
from tests.observers import RedisObserver

from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(1), ImmediateExecutor])
def test_decimal_precision(make: Callable[[], ThreadPoolExecutor | ImmediateExecutor]) -> None:
    """A task has its submitter's precision; what it sets reaches neither it nor the next task."""

    def spoil() -> int:
        before = decimal.getcontext().prec
        decimal.getcontext().prec = 5
        return before

    with decimal.localcontext(prec=40), make() as pool:
        assert [pool.submit(spoil).result() for _ in range(2)] == [40, 40]
        assert decimal.getcontext().prec == 40


def test_decimal_precision_where_nothing_is_inherited() -> None:
    """There it is what the initializer left, for each task."""

    def spoil() -> int:
        before = decimal.getcontext().prec
        decimal.getcontext().prec = 5
        return before

    def initialize() -> None:
        decimal.getcontext().prec = 33

    with ThreadPoolExecutor(1, initializer=initialize, inherit_context=False) as pool:
        assert [pool.submit(spoil).result() for _ in range(2)] == [33, 33]


class Request:
    """Something large."""


def test_a_failed_future_keeps_no_context_alive() -> None:
    """Its error has a traceback, and that the frames of the worker."""
    variable: contextvars.ContextVar[Request] = contextvars.ContextVar("variable")

    def submit() -> weakref.ref[Request]:
        request = Request()
        variable.set(request)
        futures.append(pool.submit(int, "no number"))
        return weakref.ref(request)

    futures: list[object] = []
    with ThreadPoolExecutor(1) as pool:
        request = contextvars.Context().run(submit)
    assert futures
    assert request() is None


def test_a_cache_first_used_in_async_code(redis: RedisObserver) -> None:
    """It is made in asgiref's thread for the loop, goes on to be the task's, and is closed with it."""

    async def use() -> None:
        caches["redis"].get("key")

    def task() -> None:
        async_to_sync(use)()
        caches["redis"].get("key")

    before = redis.clients()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            pool.submit(task).result(10)
            assert wait_until(redis.clients, lambda clients: clients == before) == before
