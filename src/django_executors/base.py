"""What every executor is: one template `submit`, `map`, numbers, and the executors of this process.

A task's life, on threads:

submit ──► queue ──► run ──► settle ──► resolve ──► callbacks ──► settle ──► wait or next
(caller)             └───────────────────────── (worker) ────────────────────────────┘

settle      what the task opened is closed, however it ended, before anybody hears of its end; or
            kept, if more tasks are queued than workers keep
callbacks   run in the worker too, and may use the ORM; so may an initializer before the first task
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import sys
import threading
import traceback
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Protocol, TypeVar

from . import observing
from .arguments import check_count
from .clock import Clock
from .connections import fork
from .connections.ledger import ConnectionCounts, Holder
from .connections.wrapper import is_in_atomic
from .loading import Loading, Q, RowsOf, load
from .naming import listed, log, task_name
from .on_commit import submit_on_commit
from .task import TaskFuture

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExecutorStats:
    """What `stats()` returns: numbers that are all of the same moment, those of connections just after.

    `workers`, `busy`, `idle` and `pending` say what is now; the others grow from the executor's making,
    or, in a forked child, from the fork. `submitted` is the sum of `pending`, `busy`, `completed`,
    `failed` and `cancelled`, and `workers` is that of `busy` and `idle`. A task counts as ended once it
    has let go of its connections, before its future gives its result. Connections are those of every
    alias that the workers opened; `connections_opened - connections_closed` of them are open, but for
    those that a worker in another process has closed since its last task.

    Attributes:
        workers: threads of this executor; a task that runs in its caller's thread counts as one more.
        busy: tasks that have begun and not ended.
        idle: workers without a task, which wait or run an initializer or a callback.
        pending: tasks that are submitted and have not begun.
        submitted: tasks that were taken.
        completed: tasks that have returned a result.
        failed: tasks that have raised, or did not run because an initializer had failed.
        cancelled: tasks that were cancelled before they began.
        rejected: calls of `submit` that were refused by `QueueFull`.
        connections_opened: connections that a worker opened, or got from Django's pool.
        connections_reset: how often a task got a kept connection with a fresh session
            (CONN_MAX_AGE = 0).
        connections_reused: how often a task got a kept connection with its session (another
            CONN_MAX_AGE).
        connections_closed: connections that were closed, or went back to Django's pool.
        close_failures: errors while closing a connection; it is closed all the same.
        queue_seconds: the sum of the seconds that tasks waited in the queue before they began.
        run_seconds: the sum of the seconds that tasks ran, until they had let go.
    """

    workers: int
    busy: int
    idle: int
    pending: int
    submitted: int
    completed: int
    failed: int
    cancelled: int
    rejected: int
    connections_opened: int
    connections_reset: int
    connections_reused: int
    connections_closed: int
    close_failures: int
    queue_seconds: float
    run_seconds: float


class Books:
    """What one executor has done so far, and has to do, under its one lock."""

    #: What the executor is called.
    name = "ImmediateExecutor"

    def __init__(self) -> None:
        # Reentrant: a generator that the collector finalizes may cancel what it has submitted.
        self.lock = threading.RLock()
        self.connections = ConnectionCounts()
        # All guarded by lock.
        self.begun = self.completed = self.failed = self.cancelled = self.rejected = 0
        self.queue_seconds = self.run_seconds = 0.0
        self._callers = 0

    @property
    def pending(self) -> int:
        """How many tasks have not begun."""
        return 0

    def task_cancelled(self) -> None:
        """A task that had not begun was cancelled."""
        with self.lock:
            self.cancelled += 1

    def begin_in_caller(self) -> float:
        """A task begins in its caller's thread, as it is submitted."""
        with self.lock:
            self.begun += 1
            self._callers += 1
        return Clock.monotonic()

    def end_in_caller(self, named: Callable[..., object], began: float, *, failed: bool) -> None:
        ran = Clock.monotonic() - began
        with self.lock:
            self._callers -= 1
            self.task_ended(ran, failed)
        if (observer := observing.observer) is not None:
            observer.task_ended(self.name, named, failed, 0.0, ran)

    def task_ended(self, seconds: float, failed: bool) -> None:
        """A task has run for that long."""
        with self.lock:
            self.run_seconds += seconds
            if failed:
                self.failed += 1
            else:
                self.completed += 1

    def stats(self) -> ExecutorStats:
        """Return all numbers as they are at one moment."""
        with self.lock:
            busy = self.busy
            workers = max(busy, self._callers + self._workers_now())
            pending = self.pending
            found = partial(
                ExecutorStats,
                workers=workers,
                busy=busy,
                idle=workers - busy,
                pending=pending,
                submitted=pending + busy + self.completed + self.failed + self.cancelled,
                completed=self.completed,
                failed=self.failed,
                cancelled=self.cancelled,
                rejected=self.rejected,
                queue_seconds=self.queue_seconds,
                run_seconds=self.run_seconds,
            )
        # After the tasks' own, since those that have ended have let go; and not under that lock: a
        # collection under this one may want it.
        connections = self.connections.read()
        return found(
            connections_opened=connections["opened"],
            connections_reset=connections["reset"],
            connections_reused=connections["reused"],
            connections_closed=connections["closed"],
            close_failures=connections["close_failures"],
        )

    @property
    def busy(self) -> int:
        """How many tasks have begun and not ended."""
        return self.begun - self.completed - self.failed

    def _workers_now(self) -> int:
        return 0


class Executor(concurrent.futures.Executor):
    """`map` as on Python 3.14, on every Python, `submit_on_commit`, and what the reference lists."""

    #: How many threads of this process run its tasks at once, besides those that submit them.
    _most_workers = 0
    #: How many processes of its own on this machine do.
    _most_processes = 0

    _is_shut_down = False
    #: How its tasks run under `run_inline`.
    _in_callers_threads: Any = None

    def submit_on_commit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskFuture[R]:
        """Submit this call when the transaction has committed that the calling thread is in.

        That is the outermost `atomic`, on whatever alias; with several aliases in one, all of them.
        Outside of one it is submitted at once, as by `submit`. It is called with this moment's
        contextvars and language. `transaction.on_commit` has it run, so a test needs
        `captureOnCommitCallbacks(execute=True)` or pytest-django's fixture of that name; and where an
        earlier `on_commit` callback raises, Django forgets it as it forgets the others.

        The future is cancelled if the task is not submitted: at once when the transaction rolls back,
        or an inner `atomic` that this was called in, or its connection is closed. (As with `on_commit`,
        a savepoint of `transaction.savepoint()` does not count.) Done-callbacks then run in the thread
        that rolls back, inside the end of its `atomic`: they must not use the ORM, and what they raise
        is logged. Until it is submitted, `cancel()` cancels it, and `stats()` does not count it. What
        `submit` raises at the commit is the future's exception: the commit has happened.

        Raises:
            DeadlockError: from the future's `result` and `exception`, in the calling thread and before
                the commit, without a timeout: it could never come.
            SynchronousOnlyOperation: called in a coroutine, as Django's `on_commit`.
            TransactionManagementError: autocommit is switched off on an alias, outside of `atomic`.
            RuntimeError, QueueFull: as `submit`, where there is no transaction.
        """
        return submit_on_commit(self.submit, fn, *args, **kwargs)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Submit a call of `fn` for each item, and return an iterator over the results, in order.

        Tasks are submitted by this call; with a buffersize, so many, and one more each time a result is
        asked for. `iterables` are read by the threads that call this and ask for results. When an
        iteration that has begun ends, also by an error or a `break`, what has not begun is cancelled.
        While there is more to submit, the iterator keeps the executor.

        Args:
            timeout: for how many seconds the results may take, from this call on; default None: as long
                as they take.
            chunksize: means nothing to threads, as in the standard class.
            buffersize: how many tasks are submitted ahead, as on Python 3.14. When you would want it:
                the items are many, or read from a database as they come. Default None: all at once.

        Raises:
            TimeoutError: a result was not there in time; from `next()`, as the tasks' own errors are.
            TypeError: buffersize is neither None nor an int.
            ValueError: buffersize is below 1.
            QueueFull: as `submit`; from `next()` too, with a buffersize.
            Exception: what an iterable has raised. Whatever is raised, what was queued is cancelled.
        """
        try:
            return mapped(self, fn, iterables, timeout, buffersize)
        finally:
            del iterables  # or an error's traceback would keep what they read from

    def load(self, queryset: Q) -> Q:
        """Start this queryset's query in a worker, and return at once a queryset that has its rows.

        Whatever needs the rows waits for them, and makes no query of its own: iterating, `async for`,
        `len`, `bool`, indexing, slicing, `count()`, `exists()`, `contains()`, pickling, a template, a
        `Paginator`, a serializer. What derives another queryset, as `filter` and `all` do, makes an
        ordinary one, and `iterator()` a query of its own, as ever. What `prefetch_related` names is
        loaded too. If all workers are busy with something else when the rows are needed, whoever needs
        them runs the query, on their own connection. The query's error is raised where the rows are
        first needed; after it, the queryset is an ordinary one, which tries again.

        It is an ordinary queryset from the start, whose query runs where it is used, in these cases: in
        a transaction of the calling thread's on that alias, whose rows a worker would not see (so with
        ATOMIC_REQUESTS too); under `run_inline`, and on an `ImmediateExecutor`; in a worker of this
        pool; when `max_pending` tasks wait; where this thread holds a connection of a ceiling. One that
        is evaluated already is returned as it is.

        For one number, `submit(queryset.count)`.

        Raises:
            TypeError: no QuerySet, or one with `select_for_update`, or a raw one; or this executor's
                workers are other processes.
            SynchronousOnlyOperation: from the queryset, in a coroutine that needs rows and does not use
                `async for`.
            RuntimeError: as `submit`.
        """
        return load(queryset, self._submit_loading)

    def _submit_loading(self, make: Callable[[], RowsOf]) -> Loading | None:
        """Submit the query, and return its future; None: it is better run where it is used."""
        raise TypeError(
            f"{type(self).__name__}.load(): its workers are other processes. Load by a "
            "ThreadPoolExecutor, or an ImmediateExecutor in tests"
        )

    if TYPE_CHECKING:  # the standard classes' own come after this one's would

        def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]: ...

        def shutdown(
            self,
            wait: bool = True,
            *,
            cancel_futures: bool = False,
            timeout: float | None = None,
            cancel_queries: bool = False,
        ) -> None: ...

    @property
    def name(self) -> str:
        """What logs and `all_connections()` call it: by its alias, its prefix, or a number."""
        return type(self).__name__

    def stats(self) -> ExecutorStats:
        """Return what was done so far, in numbers."""
        raise NotImplementedError

    def _submit_inline(self, named: Callable[..., object], call: Any) -> Any:
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return self._in_callers_threads.submit(named, call)

    def _be_called(self, name: str) -> None:
        """Have logs call it so, where its threads' names do not."""

    def _why_useless(self) -> str | None:
        """Say why no task can run any more that could run in one that is made anew; None: it can."""
        # A private name of the standard pools': a process has died, an initializer has failed.
        why = getattr(self, "_broken", False)
        return str(why) if why else None

    def _begin_anew(self) -> None:
        """In a forked child: be as it was made, with no threads, no work and free locks."""


# `map`: results in the order of the items, with no more of them submitted than a buffer holds.

_Futures = deque[concurrent.futures.Future[R]]


def mapped(
    executor: concurrent.futures.Executor,
    fn: Callable[..., R],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    buffersize: int | None,
) -> Iterator[R]:
    """See `Executor.map`."""
    check_count("buffersize", buffersize)
    deadline = None if timeout is None else Clock.monotonic() + timeout
    futures: _Futures[R] = deque()
    submitted = _Submitted(executor, fn, iterables)
    del iterables
    try:
        # One by one, so that what was submitted is known if the next one fails.
        futures.extend(islice(submitted, buffersize))
    except BaseException:
        submitted.end()
        _cancel(futures)
        raise
    return _results(submitted, futures, deadline)


class _Submitted(Iterator[concurrent.futures.Future[R]]):
    """The futures of what is submitted as they are asked for.

    When it ends it lets go of the items, which may come from a generator that is inside an `atomic`: the
    traceback of an error leads to this object, and would keep that open.
    """

    def __init__(
        self,
        executor: concurrent.futures.Executor,
        fn: Callable[..., R],
        iterables: tuple[Iterable[Any], ...],
    ) -> None:
        self._submit: Callable[..., concurrent.futures.Future[R]] | None = partial(executor.submit, fn)
        self._items: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)

    def __next__(self) -> concurrent.futures.Future[R]:
        if (submit := self._submit) is None:
            raise StopIteration
        try:
            return submit(*next(self._items))
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Submit no more."""
        self._submit, self._items = None, iter(())


def _results(submitted: _Submitted[R], futures: _Futures[R], deadline: float | None) -> Generator[R]:
    try:
        while futures:
            # Before the wait, so that a worker has it meanwhile.
            futures.extend(islice(submitted, 1))
            yield _result(futures.popleft(), deadline)
    finally:
        _cancel(futures)
        submitted.end()


def _result(future: concurrent.futures.Future[R], deadline: float | None) -> R:
    try:
        return future.result(None if deadline is None else deadline - Clock.monotonic())
    finally:
        future.cancel()  # after a timeout
        del future  # which is in the error's traceback


def _cancel(futures: _Futures[R]) -> None:
    for future in futures:
        future.cancel()


# A warning where a task is submitted inside an open transaction.

#: What stands between a call of `submit` and the code that wants it.
_ON_THE_WAY = ("django_executors", "concurrent", "asyncio", "contextlib", "functools")


def warn_if_in_atomic(holder: Holder, fn: Callable[..., Any]) -> None:
    """Warn, once a call site, of a task that is submitted inside an `atomic`, a test's own aside."""
    aliases = sorted(
        wrapper.alias
        for entry in holder.copied()
        if (wrapper := entry.wrapper()) is not None and is_in_atomic(wrapper)
    )
    if not aliases:
        return
    level = 1
    frame: FrameType | None = sys._getframe(0)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _ON_THE_WAY:
        frame = frame.f_back
        level += 1
    warnings.warn(
        f"{task_name(fn)} is submitted inside an open transaction on {', '.join(aliases)}: the worker "
        "does not see what this transaction has not committed, and may wait for its locks for ever: use "
        "submit_on_commit",
        RuntimeWarning,
        stacklevel=level,
    )


# The executors of this process: for those who have to wait until all are idle, and for forks.


class Unfinished(Protocol):
    """What is asked of an executor's queue, which may outlive it."""

    def unfinished(self) -> str | None:
        """Say what is left to do, or None; have idle workers let go of what they keep."""
        ...

    def retire(self) -> None:
        """In a forked child: it is the parent's."""
        ...


# Weak references in dicts, which one call copies: a set of them may change while it is iterated.
_executors: dict[int, weakref.ref[Executor]] = {}
_queues: dict[int, weakref.ref[Unfinished]] = {}


def follow(executor: Executor, queue: Unfinished) -> None:
    """Follow this executor, and its queue: workers may outlive an executor that nobody shut down."""
    key, queue_key = id(executor), id(queue)
    _executors[key] = weakref.ref(executor, lambda _: _executors.pop(key, None))
    _queues[queue_key] = weakref.ref(queue, lambda _: _queues.pop(queue_key, None))


def all_executors() -> tuple[Executor, ...]:
    """Return every thread, process and Dask executor of this process, oldest first, unnamed ones too.

    Each has its `name` and its `stats()`. One that nobody refers to any more is not among them, though
    its workers may have something left to do. Any thread may call this.
    """
    found = (reference() for reference in list(_executors.values()))
    return tuple(executor for executor in found if executor is not None)


def _queues_now() -> list[Unfinished]:
    found = (reference() for reference in list(_queues.values()))
    return [queue for queue in found if queue is not None]


def unfinished() -> list[str]:
    """Say of each executor that is not idle what it still does.

    Idle workers that keep a connection for `conn_max_idle` seconds are told to let go of it.
    """
    return [left for queue in _queues_now() if (left := queue.unfinished()) is not None]


def notice_fork(getpid: Callable[[], int] = os.getpid) -> None:
    """Begin anew if this process was forked in C, where no handler runs. Each `submit` calls this."""
    if getpid() != fork.pid:
        fork.after_in_child()
        _after_fork_in_child()


def _after_fork_in_child() -> None:
    of_parent = _queues_now()
    _queues.clear()
    for queue in of_parent:
        queue.retire()
    for executor in all_executors():
        executor._begin_anew()


os.register_at_fork(after_in_child=_after_fork_in_child)  # after the handler of `connections`


def shut_all_down(deadline: float | None = None, but: Collection[Executor] = ()) -> None:
    """Shut down the executors of this process, one after another in the order in which they were made.

    Args:
        deadline: by `Clock`, for all of them together; then their queries are cancelled. Default
            None: as long as it takes.
        but: not these.
    """
    for executor in all_executors():
        if executor not in but:
            seconds = None if deadline is None else max(0.0, deadline - Clock.monotonic())
            executor.shutdown(timeout=seconds, cancel_queries=deadline is not None)


def end_forked_process(error: BaseException | None) -> NoReturn:
    """End this process, a forked child that comes back from a worker's task, in the thread that forked.

    That thread was a worker of the parent's, and the rest of its work is the parent's: the task's
    future, its callbacks, the queue. Tasks that were submitted in the child are waited for. As in a
    child of `multiprocessing`, no exit handlers run.

    Args:
        error: what the task raised. The exit code is 1 then, and `SystemExit`'s own for that.
    """
    code = 1
    try:
        shut_all_down()
        if error is None:
            code = 0
        elif not isinstance(error, SystemExit):
            traceback.print_exception(error)
        elif isinstance(error.code, int | None):
            code = (error.code or 0) & 0xFF
        else:
            print(error.code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


class Ending(Protocol):
    """What is asked of an executor's books by a shutdown with a deadline."""

    name: str

    def running(self) -> Counter[str]:
        """Count by name what workers have."""
        ...

    def cancel_pending(self) -> Counter[str]:
        """Cancel what no worker has, and return the names."""
        ...


def end_within(
    books: Ending,
    seconds: float,
    wait: Callable[[float], object],
    not_run: Counter[str],
    and_then: Callable[[], object] = lambda: None,
) -> None:
    """Wait for an executor's end, for so many seconds at most; then cancel, and log what it has left.

    Args:
        wait: returns when all has ended, or after the seconds that it is given.
        not_run: the names of what was cancelled before.
        and_then: called when nothing more begins.
    """
    running: Counter[str] = Counter()
    try:
        wait(min(seconds, threading.TIMEOUT_MAX))
        not_run += books.cancel_pending()
        and_then()
        running = books.running()
    finally:
        if running or not_run:
            log(
                logger,
                logging.ERROR,
                "executor=%(executor)s timeout=%(timeout)s shutdown left running=%(running)s "
                "not_run=%(not_run)s",
                executor=books.name,
                timeout=round(seconds, 2),
                running=listed(running),
                not_run=listed(not_run),
            )
