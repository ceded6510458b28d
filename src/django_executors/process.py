"""The process pool.

Private names of the standard class's: `_call_queue`, from which worker processes take tasks, and whose
`get` is replaced in each; `_adjust_process_count`, `_spawn_process`, `_processes`, `_max_workers` and
`_pending_work_items`. Of multiprocessing's, in a forked child: `_children`, and its server of forks.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import functools
import itertools
import multiprocessing
import multiprocessing.util
import os
import pickle
import queue
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from . import remote
from .arguments import check_count, check_seconds, check_workers
from .base import follow, mapped, shut_all_down
from .clock import Clock
from .connections import fork, release
from .immediate import InCallersThreads
from .remote import RemoteBooks, RemoteExecutor, RemoteTask, Report, Setup

R = TypeVar("R")

_numbers = itertools.count()

_Standard = concurrent.futures.ProcessPoolExecutor

#: For how many seconds a worker that keeps connections waits for a task in the queue before it looks
#: again, and how often: whoever reads it may have been killed.
_PAUSE, _TRIES = 0.001, 100


def _dumps(value: object) -> bytes:
    return bytes(ForkingPickler.dumps(value))


class _Start:
    """What a worker process needs to begin. It is pickled while one is started: locks can be then only.

    The user's part is unpickled when Django is set up.
    """

    def __init__(
        self,
        name: str,
        initializer: tuple[Callable[..., object] | None, tuple[Any, ...]],
        max_tasks: int | None,
        conn_max_idle: float,
    ) -> None:
        self.name = name
        self.calls: Any = None
        #: How many tasks wait to be put in that queue. Written by the parent alone, and read without a
        #: lock: a worker that is killed could keep that.
        self.waiting: Any = None
        self.has_initializer = initializer[0] is not None
        self.max_tasks = max_tasks
        self.conn_max_idle = conn_max_idle
        self._setup: Setup | None = None
        self._initializer: Any = initializer

    def be_called(self, name: str) -> None:
        self.name = name

    def be_for(self, setup: Setup | None) -> None:
        """This is what processes that are started from now on need to know of Django."""
        self._setup = setup

    def take_from(self, calls: Any, waiting: Any) -> None:
        """This is the queue, which the pool makes with what it gives its processes."""
        self.calls = calls
        self.waiting = waiting

    def __getstate__(self) -> dict[str, Any]:
        try:
            pickled = _dumps(self._initializer)
        except Exception as error:
            raise pickle.PicklingError(f"initializer or initargs cannot be pickled: {error}") from error
        return vars(self) | {"_initializer": pickled}

    def set_up(self) -> None:
        """Set Django up, if this process was not forked from one in which it is."""
        remote.set_up(self._setup, may_move=True)

    def initialize(self) -> None:
        """Run the user's initializer."""
        found = self._initializer
        initializer, initargs = pickle.loads(found) if isinstance(found, bytes) else found
        if initializer is not None:
            initializer(*initargs)


class _Worker(remote.Worker):
    """The one of a worker process."""

    def __init__(self, start: _Start) -> None:
        try:
            start.set_up()
        except Exception:
            if start.has_initializer:  # which may need it
                raise
            # Each task raises it again, in `prepare`.
        super().__init__(start.name)
        self._calls = start.calls
        self._get = start.calls.get
        self._waiting = start.waiting
        self._tasks_left = start.max_tasks
        self._conn_max_idle = start.conn_max_idle

    def prepare(self, setup: Setup | None) -> None:
        release.settle(self.holder)
        remote.set_up(setup, may_move=True)

    def run_one(self, packed: bytes) -> Report:
        if self._tasks_left is not None:
            self._tasks_left -= 1
        return self.run(packed, _dumps)

    def settle(self, *, interrupted: bool = False) -> None:
        may_idle = self._conn_max_idle > 0 and not release.is_limited(self.holder)
        keep = self._tasks_left != 0 and (may_idle or self._is_more_to_come())
        release.settle(self.holder, keep=keep, interrupted=interrupted)

    def _is_more_to_come(self) -> bool:
        return self._waiting.value > 0 or not self._calls.empty()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the next task, as the queue's `get` does, by which the process takes them.

        Lets go before it blocks.
        """
        holder = self.holder
        if holder.is_touched:
            self.settle()  # what an initializer opened
        if holder.is_holding:
            with contextlib.suppress(queue.Empty):
                if (call := self._get_while_keeping()) is None:  # the process is to end
                    release.settle(holder)
                return call
            release.settle(holder)
        return self._get()

    def _get_while_keeping(self) -> Any:
        until = release.kept_until(self.holder, self._conn_max_idle)
        if until is not None:
            return self._get(timeout=max(0.0, until - Clock.monotonic()))
        for _ in range(_TRIES):
            if not self._is_more_to_come():
                break
            with contextlib.suppress(queue.Empty):  # another worker reads it
                return self._get(timeout=_PAUSE)
        raise queue.Empty


#: The one of this process.
_workers: list[_Worker] = []


def _begin(start: _Start) -> None:
    """Make this process a worker, then run the user's initializer.

    In an empty context: that of a forked process is the one in which a task was submitted.
    """
    contextvars.Context().run(_begin_in_context, start)


def _begin_in_context(start: _Start) -> None:
    # The pool ends its processes so when one was killed, and a forked one has its parent's handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    fork.leave_all()
    _workers.append(worker := _Worker(start))
    # What tasks submit here, to executors of this process, is done before it ends.
    multiprocessing.util.Finalize(None, shut_all_down, exitpriority=100)  # before their queues
    error: BaseException | None = None
    try:
        start.initialize()
    except BaseException as raised:  # noqa: BLE001 - raised below
        error = raised
    worker.end_if_forked(error)
    if error is not None:
        raise error
    worker.initialized()
    start.calls.get = worker.get


class _Call:
    """A call on its way, or the error for which it cannot be sent. Pickled when it is handed over."""

    def __init__(self, packed: bytes | Exception, books: _Books) -> None:
        self._packed = packed
        self._books = books

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        self._books.add_waiting(-1)
        if isinstance(self._packed, Exception):
            raise self._packed
        return bytes, (self._packed,)


def _run(packed: Any) -> Report:
    return _workers[-1].run_one(packed)


class ProcessPoolExecutor(RemoteExecutor, _Standard):
    """Run calls in processes that let go of their database connections: the standard pool for Django.

    It is `concurrent.futures.ProcessPoolExecutor` in all else, and a subclass: the same parameters, the
    same limits on what can be pickled, `BrokenProcessPool` when a process is killed. When you would want
    it: tasks compute, in Python. For tasks that wait, threads are faster and need no pickling.

    Each process is one worker. When a task ends, in whatever way, and no other is queued, what it opened
    on every alias is closed before its future resolves; while there are more, a worker may keep its
    connections for the next one, as in `ThreadPoolExecutor`. No process has a connection of its
    parent's. Django is set up in it, by the parent's settings module and on the parent's databases, a
    test's among them, before anything of the tasks', or the initializer, is unpickled. A task has its
    submitter's language, time zone, URLconf and script prefix, and no contextvars. Arguments are pickled
    by `submit`, in the submitter's thread. Done-callbacks run in a thread of the parent's, the standard
    pool's own, and what they open is closed there.

    Args:
        max_workers: the most processes at once; default: as many as there are processors.
        mp_context: a context of `multiprocessing`, or its start method's name: "forkserver", "spawn" or
            "fork". Default "forkserver", where there is one, or "spawn"; with max_tasks_per_child
            "spawn". When you would want another: tasks need what the parent has in memory ("fork"). The
            sockets to databases that such a process has inherited are cut off in it, without a word to
            the server.
        initializer: called in each process before its first task. If it raises, the pool is broken.
        initargs: its arguments.
        max_tasks_per_child: after how many tasks a process is replaced. When you would want it: they
            leave memory behind. Not with "fork". Default None: never.
        conn_max_idle: for how many seconds a worker may keep its connections while it waits for work, as
            in `ThreadPoolExecutor`. Default 0.0: an idle worker holds nothing.

    Raises:
        ValueError: max_workers is not greater than 0, max_tasks_per_child is below 1, conn_max_idle is
            below 0, or mp_context is no start method of this system's.
        TypeError: max_workers or max_tasks_per_child is no int, conn_max_idle is no number, or
            initializer is not callable.
    """

    _dumps = staticmethod(_dumps)

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        conn_max_idle: float = 0.0,
    ) -> None:
        check_workers(max_workers)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._conn_max_idle = check_seconds("conn_max_idle", conn_max_idle)
        self._users_initializer = initializer, initargs
        self._name = f"ProcessPoolExecutor-{next(_numbers)}"
        if mp_context is None and max_tasks_per_child is not None:
            mp_context = "spawn"  # as the standard class has it
        self._made_with = max_workers, _context(mp_context), max_tasks_per_child
        self._begin_anew()

    def _begin_anew(self) -> None:
        max_workers, mp_context, max_tasks = self._made_with
        self._start = _Start(self._name, self._users_initializer, max_tasks, self._conn_max_idle)
        super().__init__(max_workers, mp_context, _begin, (self._start,), max_tasks_per_child=max_tasks)
        waiting = mp_context.RawValue("q", 0)
        self._start.take_from(vars(self)["_call_queue"], waiting)
        self._ending = threading.RLock()
        self._most_processes: int = vars(self)["_max_workers"]
        self._books: _Books = _Books(self._name, weakref.ref(self), waiting)
        books = self._books
        initializer, initargs = self._users_initializer
        self._in_callers_threads = InCallersThreads(
            books, initializer, initargs, inherit_context=True, broken=BrokenProcessPool
        )
        if self._is_shut_down:
            self._end()
        follow(self, books)

    def _send(self, setup: Setup | None, name: str, packed: bytes | Exception) -> Any:
        if not self._processes:
            remote.check_may_start_processes()
        self._start.be_for(setup)
        books = self._books
        books.add_waiting(1)
        try:
            sent: Any = _Standard.submit(self, _run, _Call(packed, books))
        except BaseException:
            books.add_waiting(-1)
            raise
        return sent

    def _refuse(self, setup: Setup | None, task: RemoteTask[Any], error: Exception) -> None:
        # It takes its place in the queue, and starts a process, as in the standard class.
        task.follow(self._send(setup, "", error))

    def _end(self) -> None:
        with self._ending:  # two threads at once find things half taken apart
            _Standard.shutdown(self)

    def _be_called(self, name: str) -> None:
        super()._be_called(name)
        self._start.be_called(name)

    def _adjust_process_count(self) -> None:
        super()._adjust_process_count()
        # It counts as idle what has been replaced since (CPython's issue 115634).
        while len(self._processes) < min(self._most_processes, len(self._pending_work_items)):
            self._spawn_process()  # type: ignore[attr-defined]

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Submit a call of `fn` for each item, and return an iterator over the results, in order.

        As in the thread pool, but for:

        Args:
            chunksize: how many items make one task. When you would want more than one: the calls take
                less time than the way to another process and back, some 0.4 ms.
            buffersize: how many tasks, each of a chunk, are submitted ahead, as on Python 3.14.

        Raises:
            ValueError: chunksize or buffersize is below 1.
            TypeError: one of them is no int.
        """
        if chunksize is None:
            raise TypeError("chunksize must be an int, not None")
        check_count("chunksize", chunksize)
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, buffersize=buffersize)
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        results = mapped(self, _InChunks(fn), (chunks,), timeout, buffersize)
        return _flat(results)


class _Books(RemoteBooks):
    """What a process pool has to do."""

    def __init__(self, name: str, executor: Callable[[], Any], waiting: Any) -> None:
        super().__init__(name, executor)
        self._waiting = waiting  # guarded by lock

    def add_waiting(self, tasks: int) -> None:
        """So many tasks more are to be handed over, or, where it is below 0, are not."""
        with self.lock:
            self._waiting.value += tasks

    def task_cancelled(self) -> None:
        super().task_cancelled()
        self.add_waiting(-1)

    def _processes(self) -> dict[int, Any]:
        pool = self.executor()
        is_there = pool is not None and not pool._broken
        return (is_there and vars(pool)["_processes"]) or {}

    @property
    def workers(self) -> int:
        return len(self._processes())

    def retire(self) -> None:
        super().retire()
        if processes := self._processes():
            # This process would wait for them as for children, and ask its parent's server of forks.
            vars(multiprocessing.process)["_children"].difference_update(processes.values())
            server: Any = vars(forkserver)["_forkserver"]
            preload, alive = server._preload_modules, server._forkserver_alive_fd
            if alive is not None:
                os.close(alive)
            server.__init__()
            server._preload_modules = preload


def _context(asked: BaseContext | str | None) -> BaseContext:
    methods = multiprocessing.get_all_start_methods()
    if asked is None:
        asked = "forkserver" if "forkserver" in methods else "spawn"
    if not isinstance(asked, str):
        return asked
    if asked not in methods:
        raise ValueError(f"mp_context must be a context, or one of {', '.join(methods)}, not {asked!r}")
    return multiprocessing.get_context(asked)


def _chunks(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[tuple[Any, ...], ...]]:
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk


def _flat(chunks: Iterator[list[R]]) -> Iterator[R]:
    for chunk in chunks:
        yield from chunk


class _InChunks:
    """Calls a function for each item of a chunk, and is called by its name."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn, updated=())

    def __call__(self, chunk: Iterable[tuple[Any, ...]]) -> list[Any]:
        fn: Callable[..., Any] = vars(self)["__wrapped__"]
        return [fn(*arguments) for arguments in chunk]
