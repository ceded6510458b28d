"""`submit_on_commit`: submitted when the transaction commits, cancelled when it does not."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
import unittest
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django.http import HttpRequest, HttpResponse
from django.test import Client, SimpleTestCase, TestCase, TransactionTestCase, override_settings
from django.urls import path
from django.utils import translation

from django_executors import (
    DeadlockError,
    ImmediateExecutor,
    QueueFull,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
)
from django_executors.execution.executor import Executor
from django_executors.lifecycle import transactions
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until
from tests.support.worlds import VARIABLE


@pytest.fixture(params=[ThreadPoolExecutor, ImmediateExecutor])
def executor(request: pytest.FixtureRequest) -> Any:
    """Each kind in turn."""
    with request.param() as executor:
        yield executor


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def exists(name: str) -> bool:
    return Entry.objects.filter(name=name).exists()


def submitted(executor: Executor) -> int:
    return executor.stats().submitted


@pytest.mark.usefixtures("idle_before_and_after")
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
    assert (future.result(10), inner.result(10)) == (True, True)


@pytest.mark.usefixtures("idle_before_and_after")
def test_without_a_transaction(executor: Executor) -> None:
    """Outside of `atomic`, with a connection open or without one, it is submitted at once."""
    assert executor.submit_on_commit(exists, "new").result(10) is False
    assert Entry.objects.count() == 0
    assert executor.submit_on_commit(exists, name="new").result(10) is False


def raises(executor: Executor) -> Future[bool]:
    with pytest.raises(LookupError), transaction.atomic():
        future = executor.submit_on_commit(exists, "new")
        raise LookupError
    return future


def is_set_back(executor: Executor) -> Future[bool]:
    with transaction.atomic():
        future = executor.submit_on_commit(exists, "new")
        transaction.set_rollback(True)
    return future


def raises_in_a_savepoint(executor: Executor) -> Future[bool]:
    with transaction.atomic():
        future = raises(executor)
        assert future.cancelled()
        Entry.objects.create(name="of the outer one")
    return future


def raises_without_a_savepoint(executor: Executor) -> Future[bool]:
    with transaction.atomic(), pytest.raises(LookupError), transaction.atomic(savepoint=False):
        future = executor.submit_on_commit(exists, "new")
        raise LookupError
    return future


def is_closed(executor: Executor) -> Future[bool]:
    with transaction.atomic():
        future = executor.submit_on_commit(exists, "new")
        connection.close()
        assert future.cancelled()
    return future


def is_killed(executor: Executor) -> Future[bool]:
    with pytest.raises(DatabaseError), transaction.atomic():
        future = executor.submit_on_commit(exists, "new")
        connection.cursor().execute("SELECT pg_terminate_backend(pg_backend_pid())")
    return future


def commit_fails(executor: Executor) -> Future[bool]:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(DatabaseError), transaction.atomic():
            future = executor.submit_on_commit(exists, "new")
            cursor.execute("INSERT INTO once VALUES (1), (1)")
    return future


def one_of_two_raises(executor: Executor) -> Future[bool]:
    with transaction.atomic(), pytest.raises(LookupError), transaction.atomic("other"):
        future = executor.submit_on_commit(exists, "new")
        raise LookupError
    return future


def the_outer_one_of_two_raises(executor: Executor) -> Future[bool]:
    with pytest.raises(LookupError), transaction.atomic():
        with transaction.atomic("other"):
            future = executor.submit_on_commit(exists, "new")
        assert not future.done()
        raise LookupError
    return future


@pytest.mark.parametrize(
    "roll_back",
    [
        raises,
        is_set_back,
        raises_in_a_savepoint,
        raises_without_a_savepoint,
        is_closed,
        is_killed,
        commit_fails,
        one_of_two_raises,
        the_outer_one_of_two_raises,
    ],
)
@pytest.mark.usefixtures("idle_before_and_after")
def test_rollback(executor: Executor, roll_back: Callable[[Executor], Future[bool]]) -> None:
    """However it is rolled back, the future is cancelled at that moment, and nothing is submitted."""
    future = roll_back(executor)
    assert future.cancelled()
    assert concurrent.futures.wait([future], 10).done == {future}
    assert list(concurrent.futures.as_completed([future], 10)) == [future]
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(10)
    assert submitted(executor) == 0


@pytest.mark.usefixtures("watch_every_thread")
@pytest.mark.usefixtures("idle_before_and_after")
def test_thread_ends_in_a_transaction(pool: ThreadPoolExecutor) -> None:
    """A thread that ends without a commit cancels, however its transaction was left."""
    found: list[Future[bool]] = []

    def leave() -> None:
        transaction.atomic().__enter__()
        found.append(pool.submit_on_commit(exists, "new"))

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join(10)
    with pytest.raises(concurrent.futures.CancelledError):
        found[0].result(10)
    assert submitted(pool) == 0


@pytest.mark.usefixtures("idle_before_and_after")
def test_two_databases(pool: ThreadPoolExecutor) -> None:
    """Within transactions on two aliases it waits for both, whichever comes first."""
    with transaction.atomic():
        with transaction.atomic("other"):
            future = pool.submit_on_commit(exists, "new")
        assert submitted(pool) == 0
    assert future.result(10) is False


@pytest.mark.usefixtures("idle_before_and_after")
def test_callbacks_of_a_cancelled_one(pool: ThreadPoolExecutor, postgres: PostgresObserver) -> None:
    """They run elsewhere, may use the ORM, and leave nothing; the caller's transaction goes on."""
    ran_in: list[threading.Thread] = []
    done = threading.Event()

    def fails(_: object) -> None:
        raise LookupError

    def callback(future: Future[bool]) -> None:
        assert future.cancelled()
        assert not exists("of the outer one")
        ran_in.append(threading.current_thread())
        done.set()

    with transaction.atomic():
        with pytest.raises(LookupError), transaction.atomic():
            future = pool.submit_on_commit(exists, "new")
            future.add_done_callback(fails)
            future.add_done_callback(callback)
            raise LookupError
        Entry.objects.create(name="of the outer one")
        assert done.wait(10)
    assert exists("of the outer one")
    assert threading.current_thread() not in ran_in
    connection.close()
    assert not postgres.left()
    assert all_connections() == ()


@pytest.mark.usefixtures("idle_before_and_after")
def test_it_is_called_as_it_was_then(executor: Executor) -> None:
    """It has the contextvars and the language of the moment in which it was handed over."""
    with transaction.atomic():
        token = VARIABLE.set("then")
        with translation.override("de"):
            future = executor.submit_on_commit(lambda: (VARIABLE.get(), translation.get_language()))
        VARIABLE.reset(token)
    assert future.result(10) == ("then", "de")


@pytest.mark.usefixtures("idle_before_and_after")
def test_without_autocommit(executor: Executor) -> None:
    """Where nobody can tell when it commits, Django's own error says so, and nothing is submitted."""
    with transaction.atomic("other"):
        connection.set_autocommit(False)
        try:
            with pytest.raises(TransactionManagementError, match="manual transaction management"):
                executor.submit_on_commit(exists, "new")
        finally:
            connection.rollback()
            connection.set_autocommit(True)
    assert submitted(executor) == 0


# The futures of `submit_on_commit`: they wait, cancel, fail and are heard of as those of `submit`.


T = TypeVar("T")


@pytest.fixture
def pool_on_commit_futures() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool_on_commit_futures:
        yield pool_on_commit_futures


def fails() -> None:
    raise LookupError("of the task")


@pytest.mark.parametrize("ask", [Future.result, Future.exception])
@pytest.mark.parametrize("arguments", [(), (10,)])
@pytest.mark.usefixtures("idle_before_and_after")
def test_waiting_before_the_commit(
    pool_on_commit_futures: ThreadPoolExecutor, ask: Callable[..., object], arguments: tuple[float, ...]
) -> None:
    """In the submitting thread, whoever asks is told at once that it cannot come, and may ask later."""
    with transaction.atomic(), transaction.atomic("other"):
        future = pool_on_commit_futures.submit_on_commit(int)
        with pytest.raises(DeadlockError) as caught:
            getattr(future, ask.__name__)(*arguments)
        assert str(caught.value) == (
            "task=builtins.int alias=default,other is submitted when this thread's transaction commits, "
            "and cannot end before: wait for it after the commit"
        )
    assert future.result(10) == 0


@pytest.mark.usefixtures("idle_before_and_after")
def test_waiting_in_another_thread(pool_on_commit_futures: ThreadPoolExecutor) -> None:
    """Another thread may wait from before the commit on."""
    with ThreadPoolExecutor(1) as others, transaction.atomic():
        future = pool_on_commit_futures.submit_on_commit(lambda: "result")
        asking = threading.Event()

        def ask() -> str:
            asking.set()
            return future.result(10)

        answer = others.submit(ask)
        assert asking.wait(10)
        transaction.on_commit(lambda: None)
    assert answer.result(10) == "result"


@pytest.mark.usefixtures("idle_before_and_after")
def test_waiting_for_its_own_pool(pool_on_commit_futures: ThreadPoolExecutor) -> None:
    """A task that waits for one of its own pool, which is full, gets the error in this way too."""

    def outer() -> int:
        with transaction.atomic():
            future = pool_on_commit_futures.submit_on_commit(int)
        return future.result()

    with pytest.raises(DeadlockError, match="workers=1 waiting=1 pending=1"):
        pool_on_commit_futures.submit(outer).result(10)


@pytest.mark.usefixtures("idle_before_and_after")
def test_cancel_before_the_commit(pool_on_commit_futures: ThreadPoolExecutor) -> None:
    """It is not submitted, its callbacks have run, and `wait` and `as_completed` return."""
    called: list[Future[int]] = []
    with transaction.atomic():
        future = pool_on_commit_futures.submit_on_commit(int)
        future.add_done_callback(called.append)
        assert future.cancel()
        assert called == [future]
        assert future.cancel()
        assert concurrent.futures.wait([future], 5).done == {future}
        assert list(concurrent.futures.as_completed([future], 5)) == [future]
    assert future.cancelled()
    assert pool_on_commit_futures.stats().submitted == 0


@pytest.mark.usefixtures("idle_before_and_after")
def test_cancel_after_the_commit(pool_on_commit_futures: ThreadPoolExecutor, gate: Gate) -> None:
    """What has not begun is cancelled; what has begun is not, and says that it runs."""
    pool_on_commit_futures.submit(gate)
    gate.wait_for(1)
    with transaction.atomic():
        first = pool_on_commit_futures.submit_on_commit(int)
        second = pool_on_commit_futures.submit_on_commit(gate)
    assert first.cancel()
    assert first.cancelled()
    assert concurrent.futures.wait([first], 10).done == {first}
    assert pool_on_commit_futures.stats().cancelled == 1
    assert not second.running()
    gate.open()
    second.result(10)
    assert not second.cancel()
    assert not second.running()


@pytest.mark.usefixtures("idle_before_and_after")
def test_running(pool_on_commit_futures: ThreadPoolExecutor, gate: Gate) -> None:
    """While the task runs, the future says so, and cannot be cancelled."""
    with transaction.atomic():
        future = pool_on_commit_futures.submit_on_commit(gate)
    gate.wait_for(1)
    assert future.running()
    assert not future.cancel()
    gate.open()
    future.result(10)


@pytest.mark.usefixtures("idle_before_and_after")
def test_cancelled_by_shutdown(pool_on_commit_futures: ThreadPoolExecutor, gate: Gate) -> None:
    """A shutdown cancels what was submitted at the commit and has not begun."""
    pool_on_commit_futures.submit(gate)
    gate.wait_for(1)
    with transaction.atomic():
        future = pool_on_commit_futures.submit_on_commit(int)
    pool_on_commit_futures.shutdown(wait=False, cancel_futures=True)
    assert future.cancelled()
    assert concurrent.futures.wait([future], 10).done == {future}
    gate.open()


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno == logging.ERROR]


@pytest.mark.usefixtures("idle_before_and_after")
def test_error_of_the_task(
    pool_on_commit_futures: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """The task's error is the future's, and is logged once where nobody asks for it."""
    with transaction.atomic():
        asked, unasked = (
            pool_on_commit_futures.submit_on_commit(fails),
            pool_on_commit_futures.submit_on_commit(fails),
        )
    with pytest.raises(LookupError, match="of the task"):
        asked.result(10)
    assert isinstance(asked.exception(), LookupError)
    concurrent.futures.wait([unasked], 10)
    assert errors(caplog) == []
    del asked, unasked
    (record,) = wait_until(lambda: errors(caplog))
    assert record.getMessage() == f"task={__name__}.fails failed, and nobody has asked for its result"


@pytest.mark.usefixtures("idle_before_and_after")
def test_refused_at_the_commit(caplog: pytest.LogCaptureFixture) -> None:
    """A pool that was shut down before the commit does not break it: the future has its error."""
    with transaction.atomic():
        with ThreadPoolExecutor(1) as pool_on_commit_futures:
            future, unasked = (
                pool_on_commit_futures.submit_on_commit(int),
                pool_on_commit_futures.submit_on_commit(int),
            )
        Entry.objects.create(name="committed")
    assert Entry.objects.count() == 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        future.result(10)
    assert errors(caplog) == []
    del unasked
    (record,) = errors(caplog)
    assert record.getMessage() == "task=builtins.int failed, and nobody has asked for its result"


@pytest.mark.usefixtures("idle_before_and_after")
def test_full_at_the_commit(gate: Gate) -> None:
    """So it is with a full queue that refuses; what it takes, it runs."""
    with ThreadPoolExecutor(1, max_pending=1, when_full="raise") as pool_on_commit_futures:
        pool_on_commit_futures.submit(gate)
        gate.wait_for(1)
        with transaction.atomic():
            taken, refused = (
                pool_on_commit_futures.submit_on_commit(int),
                pool_on_commit_futures.submit_on_commit(int),
            )
        with pytest.raises(QueueFull):
            refused.result(10)
        gate.open()
        assert taken.result(10) == 0


@pytest.mark.usefixtures("idle_before_and_after")
def test_interrupted_at_the_commit(
    pool_on_commit_futures: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while it is submitted reaches the caller, and the future ends."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool_on_commit_futures, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt), transaction.atomic():
        future = pool_on_commit_futures.submit_on_commit(int)
    assert isinstance(future.exception(10), KeyboardInterrupt)


@pytest.mark.usefixtures("idle_before_and_after")
def test_a_subclass_that_wraps_submit() -> None:
    """What a subclass does to the future of `submit` happens at the commit."""
    called: list[Future[Any]] = []

    class Counting(ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future = super().submit(fn, *args, **kwargs)
            future.add_done_callback(called.append)
            return future

    with Counting(1) as pool_on_commit_futures:
        with transaction.atomic():
            future = pool_on_commit_futures.submit_on_commit(int, "7", base=8)
        assert future.result(10) == 7
    assert [each.result() for each in called] == [7]


@pytest.mark.usefixtures("idle_before_and_after")
def test_nothing_is_kept(pool_on_commit_futures: ThreadPoolExecutor) -> None:
    """When it has ended, nothing refers to the future or to what the task was given."""

    class Argument:
        pass

    def task(argument: Argument) -> None:
        pass

    ended = []
    for roll_back in (False, True):
        argument = Argument()
        with transaction.atomic():
            future = pool_on_commit_futures.submit_on_commit(task, argument)
            transaction.set_rollback(roll_back)
        concurrent.futures.wait([future], 10)
        ended += [weakref.ref(argument), weakref.ref(future)]
        del argument, future
    assert wait_until(lambda: not any(reference() for reference in ended))


@pytest.mark.usefixtures("idle_before_and_after")
def test_awaited(pool_on_commit_futures: ThreadPoolExecutor) -> None:
    """`asyncio.wrap_future` awaits a commit and a rollback."""

    @connection_scope
    def submit(*, roll_back: bool) -> Future[int]:
        with transaction.atomic():
            future = pool_on_commit_futures.submit_on_commit(Entry.objects.count)
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


# A task that is submitted inside an open transaction: one warning for each call site.


LOGGER = "django_executors.lifecycle.transactions"

pool_submit_in_atomic = ThreadPoolExecutor(2)


@pytest.fixture
def none_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(transactions, "_warned", {})
    yield
    connections.close_all()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def in_test_case(case: type[SimpleTestCase]) -> None:
    result = unittest.TestResult()
    unittest.TestSuite([case("test_it")]).run(result)  # with its class's set-up
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


def in_atomic() -> None:
    with transaction.atomic():
        pool_submit_in_atomic.submit(int).result(10)


def in_savepoint() -> None:
    with transaction.atomic(), transaction.atomic():
        pool_submit_in_atomic.submit(int).result(10)


def in_durable() -> None:
    with transaction.atomic(durable=True):
        pool_submit_in_atomic.submit(int).result(10)


def in_one_that_rolls_back() -> None:
    with transaction.atomic():
        transaction.set_rollback(True)
        pool_submit_in_atomic.submit(int).result(10)


def in_a_worker() -> None:
    def outer() -> None:
        with transaction.atomic():
            pool_submit_in_atomic.submit(int)

    pool_submit_in_atomic.submit(outer).result(10)


def by_map() -> None:
    with transaction.atomic():
        assert list(pool_submit_in_atomic.map(int, ["1"])) == [1]


def in_an_atomic_of_a_test_case() -> None:
    class Case(TestCase):
        def test_it(self) -> None:
            with transaction.atomic():
                pool_submit_in_atomic.submit(int).result(10)

    in_test_case(Case)


def in_a_transaction_test_case() -> None:
    class Case(TransactionTestCase):
        available_apps = ()

        def test_it(self) -> None:
            with transaction.atomic():
                pool_submit_in_atomic.submit(int).result(10)

    in_test_case(Case)


def view(request: HttpRequest) -> HttpResponse:
    pool_submit_in_atomic.submit(int).result(10)
    return HttpResponse()


urlpatterns = [path("", view)]


def in_atomic_requests() -> None:
    settings = connections.settings["default"]
    settings["ATOMIC_REQUESTS"] = True
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        with override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"]):
            assert Client().get("/").status_code == 200
    finally:
        settings["ATOMIC_REQUESTS"] = connection.settings_dict["ATOMIC_REQUESTS"] = False


@pytest.mark.parametrize(
    "do",
    [
        in_atomic,
        in_savepoint,
        in_durable,
        in_one_that_rolls_back,
        in_a_worker,
        by_map,
        in_an_atomic_of_a_test_case,
        in_a_transaction_test_case,
        in_atomic_requests,
    ],
)
@pytest.mark.usefixtures("none_before")
def test_speaks(do: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    """One warning names task, alias, place and the way out, however often it is submitted there."""
    for _ in range(3):
        do()
    (message,) = said(caplog)
    assert message.startswith("task=builtins.int alias=default at=")
    assert f"at={__file__}:" in message
    assert "submit_on_commit" in message

    assert caplog.records[-1].levelno == logging.WARNING


def outside() -> None:
    Entry.objects.count()
    pool_submit_in_atomic.submit(int).result(10)


def after_it() -> None:
    with transaction.atomic():
        Entry.objects.count()
    pool_submit_in_atomic.submit(int).result(10)


def on_commit() -> None:
    with transaction.atomic():
        transaction.on_commit(functools.partial(pool_submit_in_atomic.submit, int))


def in_a_test_case() -> None:
    class Case(TestCase):
        def test_it(self) -> None:
            Entry.objects.count()
            pool_submit_in_atomic.submit(int).result(10)
            with self.subTest():
                pool_submit_in_atomic.submit(int).result(10)
            with self.captureOnCommitCallbacks(execute=True):
                transaction.on_commit(lambda: pool_submit_in_atomic.submit(int))

    in_test_case(Case)


def immediately() -> None:
    with transaction.atomic(), ImmediateExecutor() as executor:
        executor.submit(Entry.objects.count)


def inline() -> None:
    with transaction.atomic(), run_inline():
        pool_submit_in_atomic.submit(Entry.objects.count)


def in_another_threads() -> None:
    def submit() -> None:
        pool_submit_in_atomic.submit(int).result(10)

    with transaction.atomic(), concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(submit).result(10)


def without_autocommit() -> None:
    connection.set_autocommit(False)
    try:
        pool_submit_in_atomic.submit(int).result(10)
    finally:
        connection.rollback()
        connection.set_autocommit(True)


def in_a_fresh_task() -> None:
    def outer() -> None:
        with transaction.atomic():
            Entry.objects.count()
        pool_submit_in_atomic.submit(int)

    pool_submit_in_atomic.submit(outer).result(10)


@pytest.mark.parametrize(
    "do",
    [
        outside,
        after_it,
        on_commit,
        in_a_test_case,
        immediately,
        inline,
        in_another_threads,
        without_autocommit,
        in_a_fresh_task,
    ],
)
@pytest.mark.usefixtures("none_before")
def test_is_silent(do: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    """Not a word without an open `atomic` of the submitter's own, nor where the task runs inside it."""
    do()
    assert said(caplog) == []


@pytest.mark.usefixtures("none_before")
def test_each_call_site(caplog: pytest.LogCaptureFixture) -> None:
    """Each place is told of once; every open alias is named."""
    with transaction.atomic(), transaction.atomic("other"):
        for _ in range(3):
            pool_submit_in_atomic.submit(int)
        pool_submit_in_atomic.submit(str)
    first, second = said(caplog)
    assert first.startswith("task=builtins.int alias=default,other at=")
    assert second.startswith("task=builtins.str alias=default,other at=")


@pytest.mark.usefixtures("none_before")
def test_places_are_forgotten(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is made as the process runs does not fill the memory."""
    monkeypatch.setattr(transactions, "_MOST", 10)
    with transaction.atomic():
        for number in range(100):
            code = "\n" * number + "pool.submit(int)"
            exec(
                compile(code, "made", "exec"),
                {"__name__": "made", "pool": pool_submit_in_atomic},
            )
    assert len(said(caplog)) == 100
    assert len(transactions._warned) <= 10


@pytest.mark.usefixtures("none_before")
def test_broken_log_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log handler that raises does not keep the task from being submitted."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr(transactions.logger, "warning", fail)
    with transaction.atomic():
        assert pool_submit_in_atomic.submit(int).result(10) == 0


@pytest.mark.usefixtures("none_before")
def test_it_is_true() -> None:
    """The worker does not see the row before the commit, and sees it in a task of `on_commit`."""
    seen: list[concurrent.futures.Future[bool]] = []
    with transaction.atomic():
        entry = Entry.objects.create(name="new")
        exists = Entry.objects.filter(pk=entry.pk).exists
        assert not pool_submit_in_atomic.submit(exists).result(10)
        transaction.on_commit(lambda: seen.append(pool_submit_in_atomic.submit(exists)))
    assert seen[0].result(10)
    entry.delete()
