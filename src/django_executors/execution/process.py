"""The process pool."""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any, ParamSpec, TypeVar

from django_executors.arguments import check_timeout, check_workers
from django_executors.base import (
    Executor,
    ExecutorStats,
    follow,
    mapped,
    notice_fork,
    warn_if_in_atomic,
)
from django_executors.clock import Clock
from django_executors.connections.ledger import current_holder
from django_executors.immediate import InCallersThreads, is_inline

from . import child, databases, portable
from .callqueue import CallQueue, WorkIds
from .processwork import ProcessWork
from .remotework import check_may_start_processes

P = ParamSpec("P")
R = TypeVar("R")

_numbers = itertools.count()


class ProcessPoolExecutor(Executor, concurrent.futures.ProcessPoolExecutor):
    """Run calls in processes that let go of their database connections: the standard pool for Django.

    It is `concurrent.futures.ProcessPoolExecutor` in all else, and a subclass: the same parameters, the
    same limits on what can be pickled, `BrokenProcessPool` when a process is killed. When you would want
    it: tasks compute, in Python. For tasks that wait, threads are faster and need no pickling.

    Each process is one worker, by the rules of `ThreadPoolExecutor`: when a task ends, in whatever way,
    and no other is queued, what it opened on every alias is closed before its future resolves. No
    process has a connection of its parent's. Django is set up in it, with the databases that its parent
    uses, a test's among them, before anything of the tasks', or the initializer, is unpickled. A task
    has its submitter's language, time zone, URLconf and script prefix, and those contextvars that are a
    module's attribute and whose value can be pickled. Done-callbacks run in a thread of the parent's,
    the standard pool's own, and what they open is closed there.

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

    Raises:
        ValueError: max_workers is not greater than 0, max_tasks_per_child is below 1, or mp_context is
            no start method of this system's.
        TypeError: max_workers or max_tasks_per_child is no int, or initializer is not callable.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        check_workers(max_workers)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._users_initializer = initializer, initargs
        self._name = f"ProcessPoolExecutor-{next(_numbers)}"
        if mp_context is None and max_tasks_per_child is not None:
            mp_context = "spawn"  # as the standard class has it
        self._made_with = max_workers, _context(mp_context), max_tasks_per_child
        self._begin()

    def _begin(self) -> None:
        """Be a pool without processes and work."""
        max_workers, mp_context, self._max_tasks = self._made_with
        super().__init__(max_workers, mp_context, max_tasks_per_child=self._max_tasks)
        # Private names of the standard class's.
        standard = vars(self)
        self._calls = CallQueue.take_over(standard["_call_queue"], mp_context)
        work = ProcessWork(self._name, self._calls)
        standard["_initializer"] = child.begin
        standard["_work_ids"] = WorkIds(work, self._pending_work_items)
        self._most_processes: int = standard["_max_workers"]
        #: What DATABASES had when the first task was submitted; None: no settings.
        self._databases: databases.Databases | None = None
        work.processes = self._processes
        if self._max_tasks is not None:
            work.replacing = weakref.ref(self)
        self._work = work
        initializer, initargs = self._users_initializer
        self._in_callers_threads = InCallersThreads(
            work, initializer, initargs, inherit_context=True, broken=BrokenProcessPool
        )
        follow(self, work)

    def _begin_anew(self) -> None:
        self._begin()
        if self._is_shut_down:
            super().shutdown(wait=False)

    def submit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[R]:
        """Queue `fn(*args, **kwargs)` for a process and return its future, as the standard class does.

        What cannot be pickled, an argument, the result or the error, is named by the `PicklingError`
        that the future gets; by an `UnpicklingError`, what cannot be loaded on the other side.

        Raises:
            RuntimeError: after `shutdown`, while the interpreter exits, or in a daemonic process.
            BrokenProcessPool: a process has ended, or an initializer failed.
            ImproperlyConfigured: a database is in this process's memory, where no other can see it; or
                this process has other ones in DATABASES than when the pool's first task was submitted.
            PicklingError: the initializer, or what DATABASES has, cannot be pickled.
        """
        notice_fork()
        if (holder := current_holder()).entries and not is_inline():
            warn_if_in_atomic(holder, fn)
        if is_inline():
            return self._submit_inline(fn, (fn, args, kwargs))  # type: ignore[no-any-return]
        if self._databases is None:
            check_may_start_processes()
            self._databases = databases.configured()
        else:
            databases.refuse_others(self._databases)
        if len(self._work.processes) < self._most_processes:
            start = child.Start(self._name, self._calls, self._users_initializer, self._max_tasks)
            vars(self)["_initargs"] = (start,)
        submit: Callable[..., concurrent.futures.Future[R]] = super().submit
        return submit(child.run, portable.pack(), Clock.monotonic(), child.Call(fn, args, kwargs))

    def _be_called(self, name: str) -> None:
        self._name = self._work.name = name

    def _why_useless(self) -> str | None:
        others = databases.differing(self._databases) if self._databases is not None else []
        return super()._why_useless() or (f"DATABASES has changed: {others}" if others else None)

    def _adjust_process_count(self) -> None:
        # A private method of the standard class's, which counts as idle what has been replaced since,
        # and then starts too few, or none (CPython's issue 115634).
        if threading.current_thread() is self._work.manager():  # one has ended
            if len(self._processes) < min(self._most_processes, len(self._pending_work_items)):
                self._spawn_process()
            return
        idle = vars(self)["_idle_worker_semaphore"]
        while not self._processes and idle.acquire(blocking=False):
            pass
        super()._adjust_process_count()

    def _spawn_process(self) -> None:
        try:
            super()._spawn_process()  # type: ignore[misc]
        except BaseException:
            if threading.current_thread() is not self._work.manager():
                # Called by `submit`, whose task this is: nobody gets its future.
                list(self._pending_work_items.values())[-1].future.cancel()
            raise

    def _start_executor_manager_thread(self) -> None:
        super()._start_executor_manager_thread()
        self._work.manager = weakref.ref(vars(self)["_executor_manager_thread"])

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
                less time than the way to another process and back, some 100 µs.
            buffersize: how many tasks, each of a chunk, are submitted ahead, as on Python 3.14.

        Raises:
            ValueError: chunksize or buffersize is below 1.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize must be 1 or more, not {chunksize!r}")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, buffersize=buffersize)
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        results = mapped(self, child.InChunks(fn), (chunks,), timeout, buffersize)
        return itertools.chain.from_iterable(results)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Refuse tasks from now on, as the standard class does; with a timeout, return when it is over.

        At the timeout, tasks that were not handed to a process are cancelled, and one ERROR record says
        what was left, as the thread pool's `shutdown` does it.

        Args:
            wait: return when all tasks have run and the processes have ended.
            cancel_futures: cancel at once those that were not handed to a process.
            timeout: for how many seconds to wait at most. Default None: as long as it takes.

        Raises:
            TypeError: timeout is no number.
            ValueError: timeout is below 0, or given together with `wait=False`.
        """
        seconds = check_timeout(timeout, wait=wait)
        self._is_shut_down = True
        if seconds is None:
            super().shutdown(wait, cancel_futures=cancel_futures)
            return
        manager = self._work.manager()
        super().shutdown(wait=False)
        threads = [] if manager is None else [manager]
        self._work.end_within(threads, seconds, cancel_at_once=cancel_futures)

    def stats(self) -> ExecutorStats:
        """Return what was done so far, in numbers.

        Workers are processes. A task counts as begun when a process may take it, and its seconds when it
        has ended. Any thread may call this, at any time.
        """
        return self._work.stats()


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
