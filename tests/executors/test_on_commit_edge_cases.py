"""`submit_on_commit` beside other `on_commit` callbacks, in tests, in async code and across forks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
from django.test import TestCase

from django_executors import ImmediateExecutor, ThreadPoolExecutor
from django_executors.testing import drain
from tests.support.forks import fork
from tests.support.gates import Gate
from tests.support.running_cases import passes

pytestmark = pytest.mark.usefixtures("idle_before_and_after")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


class Sibling(Exception):
    """Raised by another callback."""


def raises() -> None:
    raise Sibling


def test_a_sibling(pool: ThreadPoolExecutor) -> None:
    """One that raises reaches the caller, and Django forgets what comes after it: that is cancelled."""
    with pytest.raises(Sibling) as caught, transaction.atomic():
        first = pool.submit_on_commit(int)
        transaction.on_commit(raises)
        second = pool.submit_on_commit(int)
    del caught  # whose traceback has the list of what is to run
    assert first.result(20) == 0
    assert second.cancelled()
    assert pool.stats().submitted == 1


def test_a_sibling_that_submits(pool: ThreadPoolExecutor) -> None:
    """In a callback the transaction is over: it is submitted at once, or with the next one."""

    def callback() -> None:
        pool.submit_on_commit(int)
        with transaction.atomic():
            pool.submit_on_commit(int)
            assert pool.stats().submitted == 1

    with transaction.atomic():
        transaction.on_commit(callback)
    assert pool.stats().submitted == 2


def test_in_a_test_case(pool: ThreadPoolExecutor) -> None:
    """`captureOnCommitCallbacks` runs it, once; what it does not run ends with the test."""
    left: list[Future[int]] = []

    class Case(TestCase):
        def test_it(self) -> None:
            with self.captureOnCommitCallbacks(execute=True) as callbacks:
                future = pool.submit_on_commit(int)
            assert future.result(20) == 0
            assert len(callbacks) == 1
            callbacks[0]()
            assert pool.stats().submitted == 1
            with self.captureOnCommitCallbacks() as callbacks:
                by_hand = pool.submit_on_commit(int)
            assert not by_hand.done()
            callbacks[0]()
            assert by_hand.result(20) == 0
            with self.captureOnCommitCallbacks(execute=True) as callbacks, transaction.atomic():
                future = pool.submit_on_commit(int)
                transaction.set_rollback(True)
            assert future.cancelled()
            assert callbacks == []
            left.append(pool.submit_on_commit(int))

    passes(Case)
    assert left[0].cancelled()
    assert pool.stats().submitted == 2


@pytest.mark.parametrize("inner", ["default", "other", None])
def test_in_a_test_case_with_databases(inner: str | None) -> None:
    """It waits for the commit that the test captures, not for those of the test's other databases."""
    ran: list[str] = []

    class Case(TestCase):
        databases = ("default", "other")

        def test_it(self) -> None:
            with self.captureOnCommitCallbacks(using=inner or "default", execute=True):
                if inner is None:
                    ImmediateExecutor().submit_on_commit(ran.append, "ran")
                else:
                    with transaction.atomic(using=inner):
                        ImmediateExecutor().submit_on_commit(ran.append, "ran")
                assert ran == []
            assert ran == ["ran"]

    passes(Case)


def committed(pool: ThreadPoolExecutor, fn: Callable[[], object]) -> Future[object]:
    with transaction.atomic():
        return pool.submit_on_commit(fn)


def test_fork(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """In a forked child one that was done can be read, and there is nothing to wait for."""
    done = committed(pool, lambda: 42)
    assert done.result(20) == 42
    running = committed(pool, gate)
    gate.wait_for()
    queued = committed(pool, int)
    with transaction.atomic():
        waiting = pool.submit_on_commit(int)

        def child() -> None:
            assert done.result(0) == 42
            connection.close()
            drain()

        assert fork(child) == (0, "")
    gate.open()
    assert [running.result(20), queued.result(20), waiting.result(20)] == [None, 0, 0]


def test_in_a_coroutine(pool: ThreadPoolExecutor) -> None:
    """There it is refused, as `on_commit` is: the loop's thread is in no transaction of the caller's."""

    async def submit() -> None:
        pool.submit_on_commit(int)

    with transaction.atomic(), pytest.raises(SynchronousOnlyOperation, match="submit_on_commit"):
        async_to_sync(submit)()
    assert pool.stats().submitted == 0
