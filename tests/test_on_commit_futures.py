"""The futures of `submit_on_commit`: they wait, cancel, fail and are heard of as those of `submit`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest
from asgiref.sync import sync_to_async
from django.db import transaction

from django_executors import DeadlockError, QueueFull, ThreadPoolExecutor, connection_scope

from .gates import Gate
from .testapp.models import Entry
from .waiting import wait_until

T = TypeVar("T")

pytestmark = pytest.mark.usefixtures("collector_off", "idle_before_and_after")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def fails() -> None:
    raise LookupError("of the task")


@pytest.mark.parametrize("ask", [Future.result, Future.exception])
@pytest.mark.parametrize("arguments", [(), (10,)])
def test_waiting_before_the_commit(
    pool: ThreadPoolExecutor, ask: Callable[..., object], arguments: tuple[float, ...]
) -> None:
    """In the submitting thread, whoever asks is told at once that it cannot come, and may ask later."""
    with transaction.atomic(), transaction.atomic("other"):
        future = pool.submit_on_commit(int)
        with pytest.raises(DeadlockError) as caught:
            getattr(future, ask.__name__)(*arguments)
        assert str(caught.value) == (
            "task=builtins.int alias=default,other is submitted when this thread's transaction commits, "
            "and cannot end before: wait for it after the commit"
        )
    assert future.result(10) == 0


def test_waiting_in_another_thread(pool: ThreadPoolExecutor) -> None:
    """Another thread may wait from before the commit on."""
    with ThreadPoolExecutor(1) as others, transaction.atomic():
        future = pool.submit_on_commit(lambda: "result")
        asking = threading.Event()

        def ask() -> str:
            asking.set()
            return future.result(10)

        answer = others.submit(ask)
        assert asking.wait(10)
        transaction.on_commit(lambda: None)
    assert answer.result(10) == "result"


def test_waiting_for_its_own_pool(pool: ThreadPoolExecutor) -> None:
    """A task that waits for one of its own pool, which is full, gets the error in this way too."""

    def outer() -> int:
        with transaction.atomic():
            future = pool.submit_on_commit(int)
        return future.result()

    with pytest.raises(DeadlockError, match="workers=1 waiting=1 pending=1"):
        pool.submit(outer).result(10)


def test_cancel_before_the_commit(pool: ThreadPoolExecutor) -> None:
    """It is not submitted, its callbacks have run, and `wait` and `as_completed` return."""
    called: list[Future[int]] = []
    with transaction.atomic():
        future = pool.submit_on_commit(int)
        future.add_done_callback(called.append)
        assert future.cancel()
        assert called == [future]
        assert future.cancel()
        assert concurrent.futures.wait([future], 5).done == {future}
        assert list(concurrent.futures.as_completed([future], 5)) == [future]
    assert future.cancelled()
    assert pool.stats().submitted == 0


def test_cancel_after_the_commit(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """What has not begun is cancelled; what has begun is not, and says that it runs."""
    pool.submit(gate)
    gate.wait_for(1)
    with transaction.atomic():
        first = pool.submit_on_commit(int)
        second = pool.submit_on_commit(gate)
    assert first.cancel()
    assert first.cancelled()
    assert concurrent.futures.wait([first], 10).done == {first}
    assert pool.stats().cancelled == 1
    assert not second.running()
    gate.open()
    second.result(10)
    assert not second.cancel()
    assert not second.running()


def test_running(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """While the task runs, the future says so, and cannot be cancelled."""
    with transaction.atomic():
        future = pool.submit_on_commit(gate)
    gate.wait_for(1)
    assert future.running()
    assert not future.cancel()
    gate.open()
    future.result(10)


def test_cancelled_by_shutdown(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """A shutdown cancels what was submitted at the commit and has not begun."""
    pool.submit(gate)
    gate.wait_for(1)
    with transaction.atomic():
        future = pool.submit_on_commit(int)
    pool.shutdown(wait=False, cancel_futures=True)
    assert future.cancelled()
    assert concurrent.futures.wait([future], 10).done == {future}
    gate.open()


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno == logging.ERROR]


def test_error_of_the_task(pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """The task's error is the future's, and is logged once where nobody asks for it."""
    with transaction.atomic():
        asked, unasked = pool.submit_on_commit(fails), pool.submit_on_commit(fails)
    with pytest.raises(LookupError, match="of the task"):
        asked.result(10)
    assert isinstance(asked.exception(), LookupError)
    concurrent.futures.wait([unasked], 10)
    assert errors(caplog) == []
    del asked, unasked
    (record,) = wait_until(lambda: errors(caplog))
    assert record.getMessage() == f"task={__name__}.fails failed, and nobody has asked for its result"


def test_refused_at_the_commit(caplog: pytest.LogCaptureFixture) -> None:
    """A pool that was shut down before the commit does not break it: the future has its error."""
    with transaction.atomic():
        with ThreadPoolExecutor(1) as pool:
            future, unasked = pool.submit_on_commit(int), pool.submit_on_commit(int)
        Entry.objects.create(name="committed")
    assert Entry.objects.count() == 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        future.result(10)
    assert errors(caplog) == []
    del unasked
    (record,) = errors(caplog)
    assert record.getMessage() == "task=builtins.int failed, and nobody has asked for its result"


def test_full_at_the_commit(gate: Gate) -> None:
    """So it is with a full queue that refuses; what it takes, it runs."""
    with ThreadPoolExecutor(1, max_pending=1, when_full="raise") as pool:
        pool.submit(gate)
        gate.wait_for(1)
        with transaction.atomic():
            taken, refused = pool.submit_on_commit(int), pool.submit_on_commit(int)
        with pytest.raises(QueueFull):
            refused.result(10)
        gate.open()
        assert taken.result(10) == 0


def test_interrupted_at_the_commit(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while it is submitted reaches the caller, and the future ends."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt), transaction.atomic():
        future = pool.submit_on_commit(int)
    assert isinstance(future.exception(10), KeyboardInterrupt)


def test_a_subclass_that_wraps_submit() -> None:
    """What a subclass does to the future of `submit` happens at the commit."""
    called: list[Future[Any]] = []

    class Counting(ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future = super().submit(fn, *args, **kwargs)
            future.add_done_callback(called.append)
            return future

    with Counting(1) as pool:
        with transaction.atomic():
            future = pool.submit_on_commit(int, "7", base=8)
        assert future.result(10) == 7
    assert [each.result() for each in called] == [7]


def test_nothing_is_kept(pool: ThreadPoolExecutor) -> None:
    """When it has ended, nothing refers to the future or to what the task was given."""

    class Argument:
        pass

    def task(argument: Argument) -> None:
        pass

    ended = []
    for roll_back in (False, True):
        argument = Argument()
        with transaction.atomic():
            future = pool.submit_on_commit(task, argument)
            transaction.set_rollback(roll_back)
        concurrent.futures.wait([future], 10)
        ended += [weakref.ref(argument), weakref.ref(future)]
        del argument, future
    assert wait_until(lambda: not any(reference() for reference in ended))


def test_awaited(pool: ThreadPoolExecutor) -> None:
    """`asyncio.wrap_future` awaits a commit and a rollback."""

    @connection_scope
    def submit(*, roll_back: bool) -> Future[int]:
        with transaction.atomic():
            future = pool.submit_on_commit(Entry.objects.count)
            transaction.set_rollback(roll_back)
        return future

    async def main() -> None:
        async with asyncio.timeout(20):
            future = await sync_to_async(submit)(roll_back=False)
            assert await asyncio.wrap_future(future) == 0
            future = await sync_to_async(submit)(roll_back=True)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wrap_future(future)

    asyncio.run(main())
