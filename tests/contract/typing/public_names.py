"""What a type checker sees of the public names. Checked by mypy, never run."""

from __future__ import annotations

import concurrent.futures
import unittest
from collections.abc import Iterator
from typing import assert_type

from django.db.models import Model, QuerySet

from django_executors import (
    ConnectionInfo,
    ImmediateExecutor,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    executors,
    release_connections,
)
from django_executors.task import TaskFuture
from django_executors.testing import ExecutorTestMixin, assert_no_open_connections, drain, run_inline


def repeat(text: str, times: int = 1) -> str:
    return text * times


pool = ThreadPoolExecutor(4, "reports", initializer=release_connections, initargs=())
standard: concurrent.futures.ThreadPoolExecutor = pool

assert_type(pool.submit(repeat, "a", times=2), TaskFuture[str])
pool.submit(repeat, 5)  # type: ignore[arg-type]
assert_type(pool.map(repeat, ["a"], [1]), Iterator[str])


async def awaited() -> None:
    assert_type(await pool.submit(repeat, "a"), str)
    assert_type(await executors["default"].submit_on_commit(repeat, "a"), str)


def loaded(books: QuerySet[Model]) -> None:
    assert_type(pool.load(books), QuerySet[Model])


assert_type(connection_scope(repeat)("a", times=2), str)
assert_type(connection_scope()(repeat)("a", times=2), str)
with connection_scope():
    pass

assert_type(all_connections(), tuple[ConnectionInfo, ...])
assert_type(all_connections()[0].backend_pid, "int | None")

immediate: concurrent.futures.Executor = ImmediateExecutor()
assert_type(ImmediateExecutor().submit(repeat, "a"), TaskFuture[str])


@run_inline
class Tests(ExecutorTestMixin, unittest.TestCase):
    @run_inline()
    @assert_no_open_connections(timeout=2.0)
    def test(self) -> None:
        with self.assertNoOpenConnections():
            drain(timeout=5.0)


assert_type(Tests(), Tests)
assert_type(run_inline(repeat)("a", times=2), str)
assert_type(assert_no_open_connections()(repeat)("a", times=2), str)
