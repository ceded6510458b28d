"""Tools for the tests of code that runs work in threads.

- `run_inline`: tasks run in the test's own thread, inside its transaction.
- `assert_no_open_connections`: fails if another thread was left with a connection.
- `drain`: waits until the executors of this process are idle.
- `capture_queries`, `assert_num_queries`: see the queries of tasks too.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import unittest
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, overload

from asgiref.sync import sync_to_async
from django.test.utils import TestContextDecorator

from .arguments import check_decorated, check_seconds
from .base import notice_fork, unfinished
from .capturing import CapturedQueries
from .clock import Clock
from .connections.leaks import Watch
from .connections.ledger import current_holder
from .context import ident_of_process_wide_thread
from .exceptions import ConnectionLeakError
from .immediate import switch_inline

__all__ = [
    "ExecutorTestMixin",
    "assert_no_open_connections",
    "assert_num_queries",
    "capture_queries",
    "drain",
    "run_inline",
]

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type[unittest.TestCase])

_PAUSE = 0.005


class _RunInline(TestContextDecorator):
    """What `run_inline()` returns."""

    def enable(self) -> None:
        switch_inline(1)

    def disable(self) -> None:
        switch_inline(-1)

    def decorate_callable(self, func: Any) -> Any:
        check_decorated("run_inline", func, coroutines=True)
        return super().decorate_callable(func)

    def decorate_class(self, cls: C) -> C:
        """Cover `setUpTestData` and `setUpClass` too, which Django's own decorators do not."""
        if not issubclass(cls, unittest.TestCase):
            raise TypeError(f"run_inline decorates functions and unittest.TestCase classes, not {cls!r}")
        own = vars(cls).get("setUpClass")

        def setUpClass(inner: type[unittest.TestCase]) -> None:
            inner.enterClassContext(_RunInline())
            if own is not None:
                own.__get__(None, inner)()
            else:  # of whatever class stands behind this one, where it is one base of several
                super(cls, inner).setUpClass()  # type: ignore[arg-type]

        cls.setUpClass = classmethod(setUpClass)  # type: ignore[assignment]
        return cls


@overload
def run_inline() -> _RunInline: ...
@overload
def run_inline(decorated: C, /) -> C: ...
@overload
def run_inline(decorated: Callable[P, R], /) -> Callable[P, R]: ...
def run_inline(decorated: Any = None, /) -> Any:
    """Run the tasks of every executor of this library in the thread that submits them.

    A context manager, and a decorator for functions, coroutine functions and `unittest.TestCase`
    classes, bare or called::

        @run_inline
        class ReportTests(TestCase): ...

        with run_inline():
            write_report()

    It holds for the whole process while it is in force: for executors that the code under test makes,
    that exist already, and for all threads. A task then runs as in an `ImmediateExecutor`: before
    `submit` returns, on the caller's connections and in its transaction, which the task cannot close.
    So a `TestCase` sees what it wrote, and all of it is rolled back. In a coroutine, a task runs where
    the coroutine's own ORM calls run, and its future must be awaited. Nothing is opened, and no worker
    is started; what was submitted before goes on in its worker. A pool's initializer runs before its
    first task in each thread.

    Raises:
        TypeError: the decorated object is neither a function nor a `unittest.TestCase` class, or a
            generator function, whose body would run after its end.
    """
    return _RunInline() if decorated is None else _RunInline()(decorated)


class _NoOpenConnections(contextlib.AbstractContextManager[None]):
    """What `assert_no_open_connections()` returns."""

    def __init__(self, timeout: float, *own_threads: int) -> None:
        self._timeout = check_seconds("timeout", timeout)
        self._own_threads = own_threads
        self._watches: list[Watch] = []  # it may be entered again inside itself

    def __enter__(self) -> None:
        self._watches.append(Watch(threading.get_ident(), *self._own_threads))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        watch = self._watches.pop()
        if exc_type is not None:
            return
        if leaks := _left_after(self._timeout, watch.leaks):
            first = f"{len(leaks)} database connection(s) left open by other threads:"
            raise ConnectionLeakError("\n".join([first, *leaks]))

    def __call__(self, decorated: Callable[P, R]) -> Callable[P, R]:
        if isinstance(decorated, type):
            raise TypeError(f"assert_no_open_connections decorates functions, not {decorated!r}")
        check_decorated("assert_no_open_connections", decorated, coroutines=True)
        checked: Any
        if inspect.iscoroutinefunction(decorated):

            async def checked(*args: P.args, **kwargs: P.kwargs) -> Any:
                # Where the ORM works for this coroutine: in an asynchronous test, the test's thread.
                orm_thread = await sync_to_async(threading.get_ident)()
                with _NoOpenConnections(self._timeout, orm_thread):
                    return await decorated(*args, **kwargs)

        else:

            def checked(*args: P.args, **kwargs: P.kwargs) -> R:
                with _NoOpenConnections(self._timeout):
                    return decorated(*args, **kwargs)

        return functools.wraps(decorated)(checked)


def no_open_connections_after(test: object) -> _NoOpenConnections:
    """Return the check of a whole test, fixtures included, for the thread that runs it.

    The decorator finds out where the ORM works for its coroutine; around an asynchronous test, that is
    asgiref's thread, unless the calling one waits for the coroutine, as in Django's test cases.
    """
    own_threads = [ident_of_process_wide_thread()] if inspect.iscoroutinefunction(test) else []
    return _NoOpenConnections(1.0, *own_threads)


@overload
def assert_no_open_connections(*, timeout: float = 1.0) -> _NoOpenConnections: ...
@overload
def assert_no_open_connections(
    decorated: Callable[P, R], /, *, timeout: float = 1.0
) -> Callable[P, R]: ...
def assert_no_open_connections(decorated: Any = None, /, *, timeout: float = 1.0) -> Any:
    """Fail if a thread was left with a database connection that was opened in this block.

    A context manager, and a decorator for functions and coroutine functions, bare or called::

        with assert_no_open_connections():
            import_orders()

    It counts what Django opened in any thread of the process but the calling one, whoever started
    the thread: it may have ended or go on, and the garbage collector may have closed the connection
    meanwhile. The calling thread's own connections do not count: Django, or its test case, closes
    them; but slots of Django's pool that it has lost do. It asks no server, and closes nothing.

    Args:
        timeout: seconds to wait for threads that are about to let go. A worker of this library's holds
            nothing when its task's future is done; one whose callback used the ORM, a moment later.

    Raises:
        ConnectionLeakError: an `AssertionError` that says for each connection its thread, alias,
            backend pid, executor, task and age, and where it was opened while `tracemalloc` is
            tracing (`python -X tracemalloc=25`). Not raised if the block itself raises.
        TypeError: the decorated object is a class.
    """
    check = _NoOpenConnections(timeout)
    return check if decorated is None else check(decorated)


def drain(timeout: float = 10.0) -> None:
    """Wait until every executor of this process is idle and its workers hold no connection.

    For tests with real workers (`TransactionTestCase`, live servers), before the test database is
    emptied or dropped. Done-callbacks are waited for too. Workers that keep a connection for
    `conn_max_idle` seconds let go of it at once.

    Args:
        timeout: seconds.

    Raises:
        TimeoutError: not all are idle by then; it says which executors, with how many busy workers,
            queued tasks, and the names of the tasks that run.
        RuntimeError: called in a worker's task, callback or initializer, which would wait for itself.
    """
    check_seconds("timeout", timeout)
    if current_holder().executor is not None:
        raise RuntimeError("drain() was called in a worker, and would wait for what that worker runs")
    notice_fork()
    if left := _left_after(timeout, unfinished):
        raise TimeoutError("\n".join([f"not idle after {timeout} seconds:", *left]))


def _left_after(timeout: float, look: Callable[[], list[str]]) -> list[str]:
    """Look until there is nothing left, or for that many seconds, and return what is."""
    deadline = Clock.monotonic() + timeout
    while (left := look()) and Clock.monotonic() < deadline:
        threading.Event().wait(_PAUSE)
    return left


def capture_queries() -> CapturedQueries:
    """See the queries of this block, and of every task that is submitted in it, on every alias.

    A context manager, whose value is a sequence of the queries, oldest first::

        with capture_queries() as queries:
            show_day()
        assert len(queries) == 5

    Each is a dict as in `CaptureQueriesContext`, with "sql" and "time", and with its "alias" and the
    name of its "task", None outside of tasks. They are those of the calling thread and of the tasks'
    threads, of tasks that tasks submit too: have the results within the block. With `run_inline` there
    are as many. Not seen are those of worker processes, of a worker's initializer and done-callbacks,
    and those that opening a connection makes itself.

    Raises:
        SynchronousOnlyOperation: in a coroutine, whose ORM calls run in another thread.
    """
    return CapturedQueries()


def assert_num_queries(number: int) -> CapturedQueries:
    """Fail if not so many queries were made in this block and in the tasks that were submitted in it.

    A context manager; see `capture_queries`. Django's own `assertNumQueries` sees one alias in the
    calling thread.

    Raises:
        AssertionError: it lists the queries. Not raised if the block itself raises.
    """
    return CapturedQueries(number)


class ExecutorTestMixin:
    """For a `unittest.TestCase`: drains the executors after each test, before the database is emptied.

    Put it before the test case's class: `class ImportTests(ExecutorTestMixin, TransactionTestCase)`.
    They are drained when the class is done too, after a live server has stopped. Its tests run tasks
    in real workers, where pytest's setting `executors_run_inline` is on too.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[: cls.__mro__.index(ExecutorTestMixin)]:
            if issubclass(base, unittest.TestCase) and not issubclass(base, ExecutorTestMixin):
                raise TypeError(
                    f"ExecutorTestMixin has to stand before the test case's class: "
                    f"class {cls.__name__}(ExecutorTestMixin, {base.__name__})"
                )

    @classmethod
    def setUpClass(cls) -> None:
        cls.addClassCleanup(drain)  # type: ignore[attr-defined]
        super().setUpClass()  # type: ignore[misc]

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        # Not in setUp, which a test case may forget to call.
        self.addCleanup(drain)  # type: ignore[attr-defined]
        return super().run(result)  # type: ignore[misc, no-any-return]

    def assertNoOpenConnections(  # noqa: N802 - as unittest's are called
        self, *, timeout: float = 1.0
    ) -> contextlib.AbstractContextManager[None]:
        """See `assert_no_open_connections`."""
        return assert_no_open_connections(timeout=timeout)
