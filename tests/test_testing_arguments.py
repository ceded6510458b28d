"""What the tools for tests refuse, and how they say it."""

from __future__ import annotations

import unittest
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from asgiref.sync import async_to_sync
from django.db import connection

from django_executors.execution import inline
from django_executors.testing import ExecutorTestMixin, assert_no_open_connections, drain, run_inline

from .testapp.models import Entry


def a_generator() -> Iterator[int]:
    yield len(inline.switched_on)


async def an_asynchronous_generator() -> AsyncIterator[int]:
    yield len(inline.switched_on)


@pytest.mark.parametrize("decorator", [run_inline, run_inline(), assert_no_open_connections])
@pytest.mark.parametrize("fn", [a_generator, an_asynchronous_generator])
def test_generator_functions_are_not_decorated(
    decorator: Callable[[object], object], fn: object
) -> None:
    """Their bodies would run when the tool is no longer in force."""
    with pytest.raises(TypeError, match=r"cannot decorate the .*generator function .*a"):
        decorator(fn)


def test_the_leak_check_decorates_bare_and_called() -> None:
    """As a context manager's class would, and as a function."""

    @assert_no_open_connections
    def bare() -> str:
        return "bare"

    @assert_no_open_connections(timeout=0.5)
    def called() -> str:
        return "called"

    assert (bare(), called()) == ("bare", "called")
    with pytest.raises(TypeError, match="assert_no_open_connections decorates a function, not 5"):
        assert_no_open_connections(5)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("value", "error"), [("1", TypeError), (None, TypeError), (True, TypeError), (-1, ValueError)]
)
@pytest.mark.parametrize("tool", [drain, assert_no_open_connections])
def test_timeouts_are_numbers_of_seconds(
    tool: Callable[..., object], value: object, error: type[Exception]
) -> None:
    """The message names the argument and says what it may be."""
    with pytest.raises(error, match=r"timeout must be (a number of|0 or more) seconds, not"):
        tool(timeout=value)


def test_the_mixin_stands_before_the_test_case() -> None:
    """Behind it, nothing that it does would be called."""
    with pytest.raises(TypeError, match=r"class Wrong\(ExecutorTestMixin, TestCase\)"):
        type("Wrong", (unittest.TestCase, ExecutorTestMixin), {})
    base = type("Base", (ExecutorTestMixin, unittest.TestCase), {})
    type("Right", (base,), {})


def test_the_orm_thread_of_a_coroutine_is_the_tests_own() -> None:
    """An asynchronous test runs in an event loop's thread, and its ORM in the test's."""

    @assert_no_open_connections(timeout=0)
    async def count() -> int:
        return await Entry.objects.acount()

    connection.close()
    assert async_to_sync(count)() == 0
    assert connection.connection is not None
