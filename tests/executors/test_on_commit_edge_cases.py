"""`submit_on_commit` beside other `on_commit` callbacks, in tests, across forks and at exit."""

from __future__ import annotations

import concurrent.futures
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
from django.test import TestCase

from django_executors import ExecutorError, ImmediateExecutor, ThreadPoolExecutor
from django_executors.execution import cancelling
from django_executors.testing import drain, run_inline
from tests.django.test_pytest_plugin import SETTINGS
from tests.executors.test_on_commit import in_test_case
from tests.projects.testapp.models import Entry
from tests.support.forks import fork
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.pytest_projects import Project
from tests.support.subprocesses import run_python


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


class Sibling(Exception):
    """Raised by another callback."""


def raises() -> None:
    raise Sibling


@pytest.mark.usefixtures("idle_before_and_after")
def test_a_robust_sibling(pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """One that raises is logged by Django; ours before and after it are submitted."""
    with transaction.atomic():
        first = pool.submit_on_commit(int)
        transaction.on_commit(raises, robust=True)
        second = pool.submit_on_commit(int)
    assert [first.result(10), second.result(10)] == [0, 0]
    assert [record.name for record in caplog.records] == ["django.db.backends.base"]


@pytest.mark.usefixtures("idle_before_and_after")
def test_a_sibling(pool: ThreadPoolExecutor) -> None:
    """One that raises reaches the caller, as Django has it; ours are submitted, once, and others not."""
    called: list[None] = []
    with pytest.raises(Sibling), transaction.atomic():
        first = pool.submit_on_commit(int)
        transaction.on_commit(raises)
        second = pool.submit_on_commit(int)
        transaction.on_commit(partial(called.append, None))
    assert [first.result(10), second.result(10)] == [0, 0]
    assert pool.stats().submitted == 2
    assert called == []


@pytest.mark.usefixtures("idle_before_and_after")
def test_a_sibling_that_submits(pool: ThreadPoolExecutor) -> None:
    """In a callback the transaction is over: it is submitted at once, or with the next one."""
    found: list[Future[int]] = []

    def callback() -> None:
        found.append(pool.submit_on_commit(Entry.objects.count))
        with transaction.atomic():
            found.append(pool.submit_on_commit(Entry.objects.count))
            Entry.objects.create(name="second")

    with transaction.atomic():
        Entry.objects.create(name="first")
        transaction.on_commit(callback)
    assert found[0].result(10) in (1, 2)
    assert found[1].result(10) == 2


@pytest.mark.usefixtures("idle_before_and_after")
def test_in_a_test_case(pool: ThreadPoolExecutor) -> None:
    """`captureOnCommitCallbacks` runs it, once; what it does not run ends with the test."""
    left: list[Future[int]] = []

    class Case(TestCase):
        def test_it(self) -> None:
            with self.captureOnCommitCallbacks(execute=True) as callbacks:
                future = pool.submit_on_commit(int)
            assert future.result(10) == 0
            assert len(callbacks) == 1
            callbacks[0]()
            assert pool.stats().submitted == 1
            with self.captureOnCommitCallbacks() as callbacks:
                by_hand = pool.submit_on_commit(int)
            assert not by_hand.done()
            callbacks[0]()
            assert by_hand.result(10) == 0
            with self.captureOnCommitCallbacks(execute=True) as callbacks, transaction.atomic():
                future = pool.submit_on_commit(int)
                transaction.set_rollback(True)
            assert future.cancelled()
            assert callbacks == []
            left.append(pool.submit_on_commit(int))

    in_test_case(Case)
    assert left[0].cancelled()
    assert pool.stats().submitted == 2


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.usefixtures("idle_before_and_after")
def test_inline(inline: bool) -> None:
    """Inline, the task runs where the callbacks are run, and sees what the test has written."""
    executor = ThreadPoolExecutor(1) if inline else ImmediateExecutor()

    class Case(TestCase):
        def test_it(self) -> None:
            with self.captureOnCommitCallbacks(execute=True):
                Entry.objects.create(name="new")
                future = executor.submit_on_commit(Entry.objects.count)
                assert not future.done()
            assert future.result() == 1

    if inline:
        with run_inline():
            in_test_case(Case)
    else:
        in_test_case(Case)


@pytest.mark.usefixtures("idle_before_and_after")
def test_pytest_django(tmp_path: Path, postgres: PostgresObserver) -> None:
    """`django_capture_on_commit_callbacks` runs it."""
    project = Project(tmp_path)
    project.write("inner_settings.py", SETTINGS.format(name="on_commit"))
    project.add_setting("DJANGO_SETTINGS_MODULE = inner_settings")
    project.add_setting("pythonpath = .")
    project.write(
        "test_it.py",
        """
        import pytest
        from django_executors import ThreadPoolExecutor
        from tests.projects.testapp.models import Entry

        @pytest.mark.run_inline
        def test_it(db, django_capture_on_commit_callbacks):
            pool = ThreadPoolExecutor(1)
            with django_capture_on_commit_callbacks(execute=True):
                Entry.objects.create(name="new")
                future = pool.submit_on_commit(Entry.objects.count)
            assert future.result() == 1
        """,
    )
    run = project.run()
    assert run.passed == ["test_it"], run.output


FORK = """
import os, threading
from django.db import transaction
from django_executors import ThreadPoolExecutor

pool = ThreadPoolExecutor(1)

def cancelled_and_told():
    told = threading.Event()
    try:
        with transaction.atomic():
            future = pool.submit_on_commit(int)
            future.add_done_callback(lambda _: told.set())
            raise LookupError
    except LookupError:
        return future.cancelled() and told.wait(10)

assert cancelled_and_told()
child = os.fork()
if child == 0:
    os._exit(0 if cancelled_and_told() else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.usefixtures("idle_before_and_after")
def test_fork() -> None:
    """A forked child hears of its own rollbacks."""
    done = run_python(FORK, settings="tests.settings", warnings="ignore")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


EXIT = """
import threading
from django.db import transaction
from django_executors import ThreadPoolExecutor

pool, begun = ThreadPoolExecutor(1), threading.Event()

def tell(future):
    begun.wait(10)
    print("cancelled", future.cancelled())

try:
    with transaction.atomic():
        pool.submit_on_commit(int).add_done_callback(tell)
        raise LookupError
except LookupError:
    begun.set()
"""


@pytest.mark.usefixtures("idle_before_and_after")
def test_exit() -> None:
    """The process does not end before callbacks have run."""
    done = run_python(EXIT, settings="tests.settings", warnings="ignore")
    assert (done.returncode, done.stdout, done.stderr) == (0, "cancelled True\n", "")


@pytest.mark.usefixtures("idle_before_and_after")
def test_drain(pool: ThreadPoolExecutor) -> None:
    """`drain` waits for callbacks of what was cancelled."""
    from django_executors.testing import drain

    begun, go_on = threading.Event(), threading.Event()

    def callback(_: object) -> None:
        begun.set()
        assert go_on.wait(10)

    with pytest.raises(LookupError), transaction.atomic():
        pool.submit_on_commit(int).add_done_callback(callback)
        raise LookupError
    assert begun.wait(10)
    with pytest.raises(TimeoutError, match="callbacks of 1 cancelled future"):
        drain(0)
    go_on.set()
    drain()


@pytest.mark.parametrize("submit", ["submit", "submit_on_commit"])
@pytest.mark.usefixtures("idle_before_and_after")
def test_no_warning(submit: str, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """`submit_on_commit` is what the warning of `submit` asks for."""
    do: Callable[..., Future[int]] = getattr(pool, submit)
    with transaction.atomic():
        do(int)
    spoken = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(spoken) == (submit == "submit")


# `submit_on_commit` in trouble: every future is done, and every task of a commit is submitted.


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("inner", ["default", "other", None])
@pytest.mark.usefixtures("idle_before_and_after")
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


@pytest.mark.usefixtures("idle_before_and_after")
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


@pytest.mark.usefixtures("idle_before_and_after")
def test_fork_on_commit_trouble(pool: ThreadPoolExecutor, gate: Gate) -> None:
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


@pytest.mark.usefixtures("idle_before_and_after")
def test_two_interrupts_at_the_commit() -> None:
    """Each of its tasks is submitted, however many are interrupted; the first interruption goes on."""
    executor = ImmediateExecutor()
    with pytest.raises(KeyboardInterrupt), transaction.atomic():
        futures = [executor.submit_on_commit(fn) for fn in (interrupt, interrupt, int)]
    assert [type(future.exception(0)) for future in futures[:2]] == [KeyboardInterrupt] * 2
    assert futures[2].result(0) == 0


@pytest.mark.usefixtures("idle_before_and_after")
def test_after_closing(pool: ThreadPoolExecutor) -> None:
    """In a transaction whose connection was closed there is no commit: it is cancelled at once."""
    with transaction.atomic():
        Entry.objects.create(name="lost")
        connection.close()
        future = pool.submit_on_commit(int)
        assert future.cancelled()
        assert concurrent.futures.wait([future], 10).done == {future}
    assert pool.stats().submitted == 0


@pytest.mark.usefixtures("idle_before_and_after")
def test_in_a_coroutine(pool: ThreadPoolExecutor) -> None:
    """There it is refused, as `on_commit` is: the loop's thread is in no transaction of the caller's."""

    async def submit() -> None:
        pool.submit_on_commit(int)

    with transaction.atomic(), pytest.raises(SynchronousOnlyOperation, match="submit_on_commit"):
        async_to_sync(submit)()
    assert pool.stats().submitted == 0
