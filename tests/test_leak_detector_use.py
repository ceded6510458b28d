"""`assert_no_open_connections` as a block, as a decorator, and in test cases."""

from __future__ import annotations

import asyncio
import unittest

import pytest
from django.db import connection
from django.test import TestCase

from django_executors import ConnectionLeakError, ExecutorError, ThreadPoolExecutor
from django_executors.testing import ExecutorTestMixin, assert_no_open_connections

from .leaking import Body, count, count_and_close, leaks, message_of, run
from .running_cases import run_case
from .testapp.models import Entry


def test_its_error() -> None:
    """What it raises is an assertion that failed, and an error of this library's."""
    assert issubclass(ConnectionLeakError, AssertionError)
    assert issubclass(ConnectionLeakError, ExecutorError)


@leaks
def test_a_body_that_raises_keeps_its_exception() -> None:
    """An exception of the block's own is not replaced, whatever was left."""
    with pytest.raises(LookupError, match="its own"), assert_no_open_connections(timeout=0.0):
        run(count)
        raise LookupError("its own")


@leaks
def test_decorator() -> None:
    """As a decorator it checks each call anew, and gives arguments and result on."""

    @assert_no_open_connections(timeout=0.0)
    def decorated(target: Body, *, answer: int) -> int:
        run(target)
        return answer

    assert decorated(count_and_close, answer=1) == 1
    for _ in range(2):
        with pytest.raises(ConnectionLeakError, match=r"^1 database connection"):
            decorated(count, answer=2)
    assert decorated(count_and_close, answer=3) == 3


@leaks
def test_decorated_function_that_calls_itself() -> None:
    """Each of its calls is checked by itself, so that the outer one is not lost."""

    @assert_no_open_connections(timeout=0.0)
    def decorated(times: int) -> None:
        if times:
            run(count)
            decorated(times - 1)

    with pytest.raises(ConnectionLeakError, match=r"^1 database connection"):
        decorated(1)


@leaks
def test_decorated_coroutine_function() -> None:
    """A decorated coroutine function is checked when it has been awaited."""

    @assert_no_open_connections(timeout=0.0)
    async def decorated(target: Body) -> int:
        await asyncio.to_thread(target)
        return 1

    assert asyncio.run(decorated(count_and_close)) == 1
    with pytest.raises(ConnectionLeakError, match=r"^1 database connection"):
        asyncio.run(decorated(count))


def test_decorated_class() -> None:
    """A class, whose tests would no longer be found, is refused."""
    with pytest.raises(TypeError, match="decorates functions, not <class "):
        assert_no_open_connections()(unittest.TestCase)


@leaks
def test_blocks_inside_one_another() -> None:
    """Each block counts what was opened in it: the outer one what the inner one has told of too."""

    def body() -> None:
        assert "1 database connection(s)" in message_of(lambda: run(count))
        run(count)

    assert "2 database connection(s)" in message_of(body)
    with assert_no_open_connections(timeout=0.0):
        pass


@leaks
def test_in_a_test_case() -> None:
    """A unittest case that has the mixin fails, and does not err, where a thread leaves a connection."""

    class Case(ExecutorTestMixin, unittest.TestCase):
        def test_leaks(self) -> None:
            with self.assertNoOpenConnections(timeout=0.0):
                run(count)

        def test_holds_none(self) -> None:
            with self.assertNoOpenConnections(timeout=0.0):
                run(count_and_close)

        @assert_no_open_connections(timeout=0.0)
        def test_decorated(self) -> None:
            run(count)

    result = run_case(Case)
    assert (result.testsRun, result.errors) == (3, [])
    assert {test.id().rpartition(".")[2] for test, _ in result.failures} == {
        "test_leaks",
        "test_decorated",
    }
    assert all("thread=orders alias=default " in said for _, said in result.failures)


@leaks
def test_in_djangos_test_case() -> None:
    """In Django's TestCase, the test's own transaction does not count, and threads do."""

    class Case(ExecutorTestMixin, TestCase):
        databases = {"default"}  # noqa: RUF012

        def test_leaks(self) -> None:
            with self.assertNoOpenConnections(timeout=0.0):
                Entry.objects.create(name="of the test")
                run(count)

        def test_holds_none(self) -> None:
            with self.assertNoOpenConnections(timeout=0.0):
                Entry.objects.create(name="of the test")
                ThreadPoolExecutor(1).submit(count).result(10)

    result = run_case(Case)
    assert (result.testsRun, result.errors) == (2, [])
    assert [test.id().rpartition(".")[2] for test, _ in result.failures] == ["test_leaks"]
    assert Entry.objects.count() == 0
    connection.close()
