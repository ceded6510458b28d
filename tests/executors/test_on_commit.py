"""`submit_on_commit`: submitted when the transaction commits, cancelled when it does not."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django.test import TestCase
from django.utils import translation

from django_executors import (
    DeadlockError,
    ImmediateExecutor,
    QueueFull,
    ThreadPoolExecutor,
    all_connections,
)
from django_executors.base import Executor
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support.gates import Gate
from tests.support.running_cases import passes
from tests.support.waiting import wait_until
from tests.support.worlds import VARIABLE

pytestmark = pytest.mark.usefixtures("idle_before_and_after")


@pytest.fixture(params=[ThreadPoolExecutor, ImmediateExecutor])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with request.param() as executor:
        yield executor


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def exists(name: str) -> bool:
    return Entry.objects.filter(name=name).exists()


def submitted(executor: Executor) -> int:
    return executor.stats().submitted


def test_commit(executor: Executor) -> None:
    """It is submitted at the commit, not before, and sees what was committed."""
    with transaction.atomic():
        Entry.objects.create(name="new")
        future = executor.submit_on_commit(exists, "new")
        with transaction.atomic():
            inner = executor.submit_on_commit(exists, name="new")
        assert submitted(executor) == 0
        assert not any([future.done(), future.running(), inner.done()])
    assert submitted(executor) == 2
    assert (future.result(20), inner.result(20)) == (True, True)


def test_without_a_transaction(executor: Executor) -> None:
    """Outside of `atomic`, with a connection open or without one, it is submitted at once."""
    assert executor.submit_on_commit(exists, "new").result(20) is False
    assert Entry.objects.count() == 0
    assert executor.submit_on_commit(exists, name="new").result(20) is False


def test_context(executor: Executor) -> None:
    """It has the contextvars and the language of the moment in which it was handed over."""
    with transaction.atomic():
        token = VARIABLE.set("then")
        with translation.override("de"):
            future = executor.submit_on_commit(lambda: (VARIABLE.get(), translation.get_language()))
        VARIABLE.reset(token)
    assert future.result(20) == ("then", "de")


def test_without_autocommit(pool: ThreadPoolExecutor) -> None:
    """Where nobody can tell when it commits, Django's own error says so, and nothing is submitted."""
    with transaction.atomic("other"):
        connection.set_autocommit(False)
        try:
            with pytest.raises(TransactionManagementError, match="manual transaction management"):
                pool.submit_on_commit(exists, "new")
        finally:
            connection.rollback()
            connection.set_autocommit(True)
    assert submitted(pool) == 0


# A rollback


def raises(executor: Executor) -> Future[bool]:
    with pytest.raises(LookupError), transaction.atomic():
        future = executor.submit_on_commit(exists, "new")
        raise LookupError
    return future


def raises_in_a_savepoint(executor: Executor) -> Future[bool]:
    with transaction.atomic():
        future = raises(executor)
        assert future.cancelled()
    return future


def is_closed(executor: Executor) -> Future[bool]:
    with transaction.atomic():
        future = executor.submit_on_commit(exists, "new")
        connection.close()
        assert future.cancelled()
        assert executor.submit_on_commit(exists, "new").cancelled()  # there is no commit
    return future


def commit_fails(executor: Executor) -> Future[bool]:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(DatabaseError), transaction.atomic():
            future = executor.submit_on_commit(exists, "new")
            cursor.execute("INSERT INTO once VALUES (1), (1)")
    return future


def the_outer_one_of_two_raises(executor: Executor) -> Future[bool]:
    with pytest.raises(LookupError), transaction.atomic():
        with transaction.atomic("other"):
            future = executor.submit_on_commit(exists, "new")
        assert not future.done()
        raise LookupError
    return future


def the_thread_ends(executor: Executor) -> Future[bool]:
    found: list[Future[bool]] = []

    def leave() -> None:
        transaction.atomic().__enter__()
        found.append(executor.submit_on_commit(exists, "new"))

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join(20)
    return found[0]


@pytest.mark.parametrize(
    "roll_back",
    [
        raises,
        raises_in_a_savepoint,
        is_closed,
        commit_fails,
        the_outer_one_of_two_raises,
        the_thread_ends,
    ],
)
@pytest.mark.usefixtures("watch_every_thread")
def test_rollback(pool: ThreadPoolExecutor, roll_back: Callable[[Executor], Future[bool]]) -> None:
    """However it is rolled back, the future is cancelled at that moment, and nothing is submitted."""
    future = roll_back(pool)
    assert future.cancelled()
    assert concurrent.futures.wait([future], 20).done == {future}
    assert list(concurrent.futures.as_completed([future], 20)) == [future]
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(20)
    assert submitted(pool) == 0


def test_callbacks_of_a_cancelled_one(
    pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """They run in the thread that rolls back; what one raises is logged, and ends nothing but itself."""
    called: list[object] = []

    def callback(future: Future[bool]) -> None:
        called.append((future.cancelled(), threading.get_ident()))

    def raises(_: object) -> None:
        raise LookupError

    with transaction.atomic():
        for _ in range(2):
            with transaction.atomic():
                future = pool.submit_on_commit(exists, "new")
                future.add_done_callback(raises)
                future.add_done_callback(callback)
                transaction.set_rollback(True)
        Entry.objects.create(name="of the outer one")
    assert called == [(True, threading.get_ident())] * 2
    assert [each.exc_info[0] for each in caplog.records if each.exc_info] == [LookupError] * 2
    assert exists("of the outer one")
    connection.close()
    assert all_connections() == ()


# The futures of `submit_on_commit` wait, are cancelled, fail and are heard of as those of `submit`.


def test_waiting_before_the_commit(pool: ThreadPoolExecutor) -> None:
    """In the submitting thread, who asks is told at once that it cannot come, and may ask later."""
    with transaction.atomic(), transaction.atomic("other"):
        future = pool.submit_on_commit(int)
        for ask in (future.result, future.exception):
            with pytest.raises(DeadlockError) as caught:
                ask()
        assert str(caught.value) == (
            "task=builtins.int alias=default,other is submitted when this thread's transaction commits, "
            "and cannot end before: wait for it after the commit"
        )
    assert future.result(20) == 0


def test_waiting_in_another_thread(pool: ThreadPoolExecutor) -> None:
    """Another thread may wait from before the commit on."""
    asking = threading.Event()

    def ask() -> str:
        asking.set()
        return future.result(20)

    with ThreadPoolExecutor(1) as others, transaction.atomic():
        future = pool.submit_on_commit(lambda: "result")
        answer = others.submit(ask)
        assert asking.wait(20)
    assert answer.result(20) == "result"


def test_waiting_for_its_own_pool(pool: ThreadPoolExecutor) -> None:
    """A task that waits for one of its own pool, which is full, gets the error in this way too."""

    def outer() -> int:
        with transaction.atomic():
            future = pool.submit_on_commit(int)
        return future.result()

    with pytest.raises(DeadlockError, match="workers=1 waiting=1 pending=1"):
        pool.submit(outer).result(20)


def test_cancel_before_the_commit(pool: ThreadPoolExecutor) -> None:
    """It is not submitted, its callbacks have run, and `wait` and `as_completed` return."""
    called: list[Future[int]] = []
    with transaction.atomic():
        future = pool.submit_on_commit(int)
        future.add_done_callback(called.append)
        assert future.cancel()
        assert called == [future]
        assert future.cancel()
        assert concurrent.futures.wait([future], 20).done == {future}
        assert list(concurrent.futures.as_completed([future], 20)) == [future]
    assert future.cancelled()
    assert submitted(pool) == 0


def test_cancel_after_the_commit(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """What has not begun is cancelled, by `shutdown` too; what runs is not, and says that it runs."""
    with transaction.atomic():
        running = pool.submit_on_commit(gate)
        first, second = pool.submit_on_commit(int), pool.submit_on_commit(int)
    gate.wait_for()
    assert running.running()
    assert not running.cancel()
    assert not first.running()
    assert first.cancel()
    pool.shutdown(wait=False, cancel_futures=True)
    for future in (first, second):
        assert future.cancelled()
        assert concurrent.futures.wait([future], 20).done == {future}
    gate.open()
    running.result(20)
    assert not running.running()
    assert not running.cancel()


def fails() -> None:
    raise LookupError("of the task")


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_error_of_the_task(pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """The task's error is the future's, and is logged once where nobody asks for it."""
    with transaction.atomic():
        asked, unasked = pool.submit_on_commit(fails), pool.submit_on_commit(fails)
    with pytest.raises(LookupError, match="of the task"):
        asked.result(20)
    concurrent.futures.wait([unasked], 20)
    assert errors(caplog) == []
    del asked, unasked
    assert wait_until(lambda: errors(caplog), within=20) == [
        f"task={__name__}.fails failed, and nobody has asked for its result"
    ]


def test_refused_at_the_commit(gate: Gate) -> None:
    """A pool that was shut down, or is full, does not break the commit: the future has its error."""
    with ThreadPoolExecutor(1, max_pending=1, when_full="raise") as full:
        full.submit(gate)
        gate.wait_for()
        with transaction.atomic():
            with ThreadPoolExecutor(1) as pool:
                future = pool.submit_on_commit(int)
            taken, refused = full.submit_on_commit(int), full.submit_on_commit(int)
            Entry.objects.create(name="committed")
        gate.open()
        assert taken.result(20) == 0
    assert exists("committed")
    with pytest.raises(RuntimeError, match="after shutdown"):
        future.result(20)
    with pytest.raises(QueueFull):
        refused.result(20)


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
        assert future.result(20) == 7
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
        concurrent.futures.wait([future], 20)
        ended += [weakref.ref(argument), weakref.ref(future)]
        del argument, future
    assert wait_until(lambda: not any(reference() for reference in ended), within=20)


# A task that is submitted inside an open transaction: one warning for each call site.


@pytest.fixture
def said() -> Iterator[Callable[[], list[warnings.WarningMessage]]]:
    """Return the warnings of a program that has Python's own filters."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield lambda: caught


def in_atomic(pool: ThreadPoolExecutor) -> None:
    with transaction.atomic(durable=True):
        pool.submit(int).result(20)


def by_map(pool: ThreadPoolExecutor) -> None:
    with transaction.atomic():
        assert list(pool.map(int, ["1"])) == [1]


def in_an_atomic_of_a_test_case(pool: ThreadPoolExecutor) -> None:
    class Case(TestCase):
        def test_it(self) -> None:
            in_atomic(pool)

    passes(Case)


@pytest.mark.parametrize("do", [in_atomic, by_map, in_an_atomic_of_a_test_case])
def test_speaks(
    do: Callable[[ThreadPoolExecutor], None],
    pool: ThreadPoolExecutor,
    said: Callable[[], list[warnings.WarningMessage]],
) -> None:
    """One warning names task, alias, place and the way out, however often it is submitted there."""
    for _ in range(3):
        do(pool)
    (warning,) = said()
    assert (warning.category, warning.filename) == (RuntimeWarning, __file__)
    message = str(warning.message)
    assert message.startswith("builtins.int is submitted inside an open transaction on default: ")
    assert "submit_on_commit" in message


def after_it(pool: ThreadPoolExecutor) -> None:
    with transaction.atomic():
        Entry.objects.count()
    pool.submit(int).result(20)


def on_commit(pool: ThreadPoolExecutor) -> None:
    with transaction.atomic():
        transaction.on_commit(functools.partial(pool.submit, int))


def by_submit_on_commit(pool: ThreadPoolExecutor) -> None:
    with transaction.atomic():
        pool.submit_on_commit(int)


def in_a_test_case(pool: ThreadPoolExecutor) -> None:
    class Case(TestCase):
        def test_it(self) -> None:
            Entry.objects.count()
            pool.submit(int).result(20)
            with self.captureOnCommitCallbacks(execute=True):
                transaction.on_commit(lambda: pool.submit(int))

    passes(Case)


def in_the_callers_thread(pool: ThreadPoolExecutor) -> None:
    with transaction.atomic():
        ImmediateExecutor().submit(Entry.objects.count)
        with run_inline():
            pool.submit(Entry.objects.count)


@pytest.mark.parametrize(
    "do",
    [
        after_it,
        on_commit,
        by_submit_on_commit,
        in_a_test_case,
        in_the_callers_thread,
    ],
)
def test_is_silent(
    do: Callable[[ThreadPoolExecutor], None],
    pool: ThreadPoolExecutor,
    said: Callable[[], list[warnings.WarningMessage]],
) -> None:
    """Not a word without an open `atomic` of the submitter's own, nor where the task runs inside it."""
    do(pool)
    connections.close_all()
    assert said() == []
