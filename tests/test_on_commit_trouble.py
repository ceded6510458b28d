"""`submit_on_commit` in trouble: every future is done, and every task of a commit is submitted."""

from __future__ import annotations

import concurrent.futures
import sys
from collections.abc import Callable, Iterator

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
from django.test import TestCase

from django_executors import ExecutorError, ImmediateExecutor, ThreadPoolExecutor
from django_executors.execution import cancelling
from django_executors.testing import drain

from .forking import fork
from .gates import Gate
from .test_submit_in_atomic import in_test_case
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off", "idle_before_and_after")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def interrupt() -> None:
    raise KeyboardInterrupt


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

    in_test_case(Case)


def test_a_callback_that_exits(pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that would end its thread is logged, and those behind it, and of others, are called."""
    called: list[str] = []
    for name in ("first", "second"):
        with transaction.atomic():
            future = pool.submit_on_commit(int)
            future.add_done_callback(lambda _: sys.exit(1))
            future.add_done_callback(lambda _, name=name: called.append(name))  # type: ignore[misc]
            transaction.set_rollback(True)
        assert concurrent.futures.wait([future], 10).done == {future}
        drain(10)
    assert [each.exc_info[0] for each in caplog.records if each.exc_info] == [SystemExit] * 2
    assert caplog.records[0].name == cancelling.__name__
    assert called == ["first", "second"]


def committed(pool: ThreadPoolExecutor, fn: Callable[[], object]) -> concurrent.futures.Future[object]:
    with transaction.atomic():
        return pool.submit_on_commit(fn)


def test_fork(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """A forked child's copy fails at once, be it committed or not; one that was done can be read."""
    done = committed(pool, lambda: 42)
    assert done.result(10) == 42
    running = committed(pool, gate)
    gate.wait_for()
    queued = committed(pool, int)
    with transaction.atomic():
        waiting = pool.submit_on_commit(int)

        def child() -> None:
            assert done.result(0) == 42
            for future in (running, queued, waiting):
                assert isinstance(future.exception(0), ExecutorError)
            connection.close()
            assert cancelling.unfinished() == []
            assert isinstance(waiting.exception(0), ExecutorError)

        assert fork(child) == (0, "")
    gate.open()
    assert [running.result(10), queued.result(10), waiting.result(10)] == [None, 0, 0]


def test_two_interrupts_at_the_commit() -> None:
    """Each of its tasks is submitted, however many are interrupted; the first interruption goes on."""
    executor = ImmediateExecutor()
    with pytest.raises(KeyboardInterrupt), transaction.atomic():
        futures = [executor.submit_on_commit(fn) for fn in (interrupt, interrupt, int)]
    assert [type(future.exception(0)) for future in futures[:2]] == [KeyboardInterrupt] * 2
    assert futures[2].result(0) == 0


def test_after_closing(pool: ThreadPoolExecutor) -> None:
    """In a transaction whose connection was closed there is no commit: it is cancelled at once."""
    with transaction.atomic():
        Entry.objects.create(name="lost")
        connection.close()
        future = pool.submit_on_commit(int)
        assert future.cancelled()
        assert concurrent.futures.wait([future], 10).done == {future}
    assert pool.stats().submitted == 0


def test_in_a_coroutine(pool: ThreadPoolExecutor) -> None:
    """There it is refused, as `on_commit` is: the loop's thread is in no transaction of the caller's."""

    async def submit() -> None:
        pool.submit_on_commit(int)

    with transaction.atomic(), pytest.raises(SynchronousOnlyOperation, match="submit_on_commit"):
        async_to_sync(submit)()
    assert pool.stats().submitted == 0
