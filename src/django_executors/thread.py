"""The thread pool and its loop: what `submit` queues, what a worker does, and what both count.

    while task := queue.take(worker):       # lets go before it blocks
        outcome = task.run()                # in a copy of its submitter's context
        queue.settle(worker)                # close, keep or reset, if it touched a connection or a cache
        task.resolve(outcome)               # done-callbacks run here
        queue.settle(worker)                # only if one of them touched something

A pool's `WorkQueue` has all that its workers share, under one lock: what is queued, how many workers
keep connections for it, who waits for whom, and the numbers. It does not refer to the pool, so that
workers end when nobody else does. A `Worker` is one thread; only that thread changes it.

Private names of the standard class's: `_work_queue`, where a replaced `submit` puts its work items and
Python's exit says, by None, that workers are to end; `_adjust_thread_count`, by which the standard
`submit` starts threads; `_threads` and `_broken`; the number and the name that it has chosen,
`_max_workers` and `_thread_name_prefix`; of its module `_threads_queues` and `_shutdown`.
"""

from __future__ import annotations

import concurrent.futures.thread as standard
import contextlib
import contextvars
import enum
import logging
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures.thread import BrokenThreadPool
from types import FunctionType
from typing import Any, Literal, ParamSpec, TypeVar

from . import context, observing, task
from .arguments import check_bound, check_seconds, check_timeout, check_workers
from .base import (
    Books,
    Executor,
    ExecutorStats,
    end_forked_process,
    end_within,
    follow,
    notice_fork,
    warn_if_in_atomic,
)
from .clock import Clock
from .connections import caches, cancelling, release, thread_end
from .connections.ledger import current_holder
from .exceptions import DeadlockError, QueueFull
from .immediate import InCallersThreads, is_inline
from .loading import Loading, RowsOf
from .naming import task_name
from .task import Task, TaskFuture

P = ParamSpec("P")
R = TypeVar("R")

#: The standard library's, which logs so.
logger = logging.getLogger("concurrent.futures")

_now = Clock.monotonic  # looked up once

#: For how many seconds queries are cancelled after a deadline, and how often.
CANCELLING, _PAUSE = 1.0, 0.05

_BROKEN = "A thread initializer failed, the thread pool is not usable anymore"


class Doing(enum.Enum):
    """What a worker does."""

    INITIALIZER = "an initializer"
    TASK = "a task"
    CALLBACKS = "callbacks"
    WAITING = "nothing"


INITIALIZER, TASK, CALLBACKS, WAITING = Doing


class Worker(task.Worker):
    """One thread of a pool."""

    __slots__ = ("context", "doing", "fn", "holder", "is_forked", "keeps", "queue", "task", "waited")

    def __init__(self, queue: WorkQueue, name: str, doing: Doing) -> None:
        self.queue = queue
        self.holder = current_holder()
        self.holder.become_worker(name, queue.connections)
        self.doing = doing
        #: The task that it runs, and what it is called by.
        self.task: Task[Any] | None = None
        self.fn: Any = None
        #: For how many seconds that task was queued.
        self.waited = 0.0
        #: It is one of those that keep their connections for a queued task. Guarded by the queue's lock.
        self.keeps = False
        #: In a forked child, where its thread is the only one.
        self.is_forked = False
        #: As the initializer left it.
        self.context: contextvars.Context | None = None

    def waiting_for(self, task: Task[Any]) -> contextlib.AbstractContextManager[None] | None:
        return self.queue.waiting(self, task) if task.queue is self.queue else None

    def initialize(self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> bool:
        """Run the user's initializer, and tell whether it has succeeded."""
        if initializer is not None:
            error: BaseException | None = None
            try:
                initializer(*initargs)
            except BaseException as raised:  # noqa: BLE001 - as the standard class
                error = raised
            if self.is_forked:
                end_forked_process(error)
            if error is not None:
                logger.critical("Exception in initializer:", exc_info=error)
                return False
        self.context = context.copy()
        self.context.run(caches.forget_all)
        if self.holder.is_touched:
            self.queue.settle(self)
        return True

    def begin(self, task: Task[Any], waited: float) -> None:
        """It has taken this task. Under the queue's lock, so that it is never seen to do nothing."""
        self.task, self.fn, self.doing = task, task.named, TASK
        self.waited = waited

    def wait(self) -> None:
        """It waits from now on, and refers to nothing of its last task."""
        self.fn, self.doing = None, WAITING

    def retire(self) -> None:
        """In a forked child: it is the parent's."""
        self.is_forked = True

    def work(self) -> None:
        """The loop."""
        queue, holder = self.queue, self.holder
        while (task := queue.take(self)) is not None:
            began = _now()
            holder.run(self.fn)
            task.set_running_or_notify_cancel()
            result, error = task.run(self.context)
            if self.is_forked:
                end_forked_process(error)
            context.end(holder)
            if holder.is_holding:
                queue.settle(self, interrupted=error is not None and not isinstance(error, Exception))
            holder.run(None)
            if holder.scopes:
                holder.scopes.clear()
            self.task, self.doing = None, CALLBACKS
            queue.task_ended(ran := _now() - began, error is not None)
            if (observer := observing.observer) is not None:
                observer.task_ended(queue.name, self.fn, error is not None, self.waited, ran)
            try:
                task.resolve(result, error)
            except BaseException:  # SystemExit, of a callback: this thread is everybody's, and stays
                logger.critical("Exception in worker", exc_info=True)
            if holder.is_touched:
                queue.settle(self)
            del task, result, error


class WorkQueue(Books):
    """What the workers of one pool share."""

    def __init__(
        self,
        name: str,
        max_workers: int,
        conn_max_idle: float,
        max_pending: int | None,
        *,
        blocks: bool,
    ) -> None:
        super().__init__()
        self.name = name
        self._max_workers = max_workers
        self._conn_max_idle = conn_max_idle
        self._max_pending = max_pending
        self._blocks = blocks
        #: Workers wait for a task here, and everybody else for anything.
        self._has_task = threading.Condition(self.lock)
        self._changed = threading.Condition(self.lock)
        # All guarded by lock. What is cancelled stays in the queue until a worker takes it out.
        self._tasks: deque[Task[Any]] = deque()
        self._waits: dict[Worker, Task[Any]] = {}
        self.workers: list[Worker] = []
        self.threads: set[threading.Thread] = set()
        self._live = self._idle = self._keepers = self._stale = self._let_go = 0
        self._is_closed = self.is_broken = False
        self.start_worker: Callable[[], threading.Thread] = threading.Thread

    @property
    def pending(self) -> int:
        # By what is in the queue: a signal's handler may raise between any two steps of a `submit`.
        return len(self._tasks) - self._stale

    # What a pool does.

    def put(self, item: Any) -> None:
        """What the standard class calls: by None, workers are to end when all is done."""
        if item is None:
            self.close()
        else:
            _arrived(self, item)

    def add(self, task: Task[Any], *, waits: bool = True) -> None:
        """Queue a task, and start a worker if none waits for it.

        Args:
            waits: if the queue is full, wait or refuse, as the pool was made to do; else return only.

        Raises:
            QueueFull: the queue is full, and that is refused; or nobody waits.
            RuntimeError, BrokenThreadPool: as `submit`.
        """
        with self.lock:
            if self._is_closed or self.is_broken or _exit():
                self._refuse()
            if self._max_pending is not None:
                if not waits and self.pending >= self._max_pending:
                    raise QueueFull
                self._wait_for_room(self._max_pending)
            self._tasks.append(task)
            if self._idle:
                self._has_task.notify()
            if self._live < self._max_workers and self.pending > self._idle:
                self._start_worker(task)

    def _refuse(self) -> None:
        if self.is_broken:
            raise BrokenThreadPool(_BROKEN)
        when = "shutdown" if self._is_closed else "interpreter shutdown"
        raise RuntimeError(f"cannot schedule new futures after {when}")

    def _wait_for_room(self, most: int) -> None:
        while self.pending >= most:
            why = None
            if not self._blocks:
                why = "when_full='raise'"
            elif self.is_mine():
                why = "a worker of its own would wait for itself"
            elif context.runs_event_loop():
                why = "waiting would block the event loop that runs in this thread"
            if why is not None:
                self.rejected += 1
                raise QueueFull(
                    f"the queue is full, and {why}: workers={self._live} busy={self.busy} "
                    f"pending={self.pending}"
                )
            self._changed.wait()
            if self._is_closed or self.is_broken:
                self._refuse()

    def _start_worker(self, task: Task[Any]) -> None:
        try:
            thread = self.start_worker()
            self._live += 1
            self.threads.add(thread)
            vars(standard)["_threads_queues"][thread] = self
        except BaseException as error:
            if not self._live:  # nobody is there to run it, and nobody gets its future
                task.cancel()
            elif isinstance(error, Exception):  # the workers that are there run it
                return
            raise

    def is_behind(self) -> bool:
        """Say whether more tasks are queued than there are workers that take one at once."""
        with self.lock:
            busy = sum(worker.doing is not WAITING for worker in self.workers)
            return self.pending > self._live - busy

    def is_mine(self) -> bool:
        """Say whether the calling thread is one of the workers."""
        worker = task.current.worker
        return isinstance(worker, Worker) and worker.queue is self

    def close(self) -> None:
        """Take no more tasks; workers end when there are none."""
        with self.lock:
            self._is_closed = True
            self._notify()

    def forgotten(self) -> None:
        """Nobody refers to the pool: close it, as the collector may, at any moment and without a wait.

        If another thread has the lock, that one finds it closed, and tells those who wait.
        """
        self._is_closed = True
        if self.lock.acquire(blocking=False):
            self._notify()
            self.lock.release()

    def _notify(self) -> None:
        self._has_task.notify_all()
        self._changed.notify_all()

    def cancel_pending(self) -> Counter[str]:
        """Cancel each task that no worker has taken, and return their names.

        Callbacks of their futures run in the calling thread, which is none of the workers.
        """
        names: Counter[str] = Counter()
        while True:
            with self.lock:
                if not self._tasks:
                    return names
                task = self._tasks.popleft()
                named = task.named
                self._stale -= 1  # until it is cancelled
            if task.cancel_pending():
                names[task_name(named)] += 1

    def task_cancelled(self) -> None:
        with self.lock:
            super().task_cancelled()
            self._stale += 1
            if self._max_pending is not None:
                self._changed.notify_all()

    def wait_for_end(self, timeout: float) -> None:
        """Return when all workers have ended, or after that many seconds."""
        with self.lock:
            self._changed.wait_for(lambda: not self._live, timeout)

    def cancel_queries(self) -> None:
        """Cancel what its workers ask a server, until they have let go or a second has passed."""
        deadline = _now() + CANCELLING
        while (left := deadline - _now()) > 0 and self._live:
            with self.lock:
                holders = {worker.holder for worker in self.workers}
            if not cancelling.cancel_queries(holders, deadline):
                return
            self.wait_for_end(min(_PAUSE, left))  # what has been between two queries is in one now

    def running(self) -> Counter[str]:
        """Count by name what workers have taken and not ended."""
        with self.lock:
            busy = [(worker.doing, worker.fn) for worker in self.workers]
        found: Counter[str] = Counter()
        for doing, fn in busy:
            if doing is INITIALIZER:
                found["an initializer"] += 1
            elif doing is TASK:
                found[task_name(fn)] += 1
            elif doing is CALLBACKS:
                found[f"a callback of {task_name(fn)}"] += 1
        return found

    def unfinished(self) -> str | None:
        """Say what is left to do, or None; have idle workers let go of what they keep.

        Any thread may call this.
        """
        with self.lock:
            pending = self.pending
            busy = [worker for worker in self.workers if worker.doing is not WAITING]
            if not pending and not busy:
                if not any(release.has_to_let_go(worker.holder) for worker in self.workers):
                    return None
                self._let_go += 1
                self._has_task.notify_all()
                busy = []
            running = [worker.fn for worker in busy if worker.doing is TASK]
        if self._is_closed:  # since a moment ago, by `forgotten`
            self.close()
        if not pending and not busy:
            return f"executor={self.name} keeps connections"
        names = ", ".join(map(task_name, running))
        if not names and busy:
            names = "a callback or an initializer"
        return f"executor={self.name} busy={len(busy)} pending={pending} tasks={names}"

    def _workers_now(self) -> int:
        return self._live

    def retire(self) -> None:
        """In a forked child: the parent's threads are not here, and its work is not done here."""
        # Without the lock, which a thread that is not here may have.
        for worker in self.workers:
            worker.retire()
        for each in [*self._tasks, *(worker.task for worker in self.workers)]:
            if each is not None and each.queue is not None:  # neither cancelled nor done
                each.abandon()
        # Or the child's end would wait for the parent's lock, and a thread that has forked for itself.
        for thread in self.threads:
            vars(standard)["_threads_queues"].pop(thread, None)

    # What a worker does.

    def run_worker(self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
        """The whole life of the calling thread, as a worker of this pool."""
        doing = WAITING if initializer is None else INITIALIZER
        task.current.worker = worker = Worker(self, self.name, doing)
        thread_end.arm(worker.holder)
        with self.lock:
            self.workers.append(worker)
        try:
            if worker.initialize(initializer, initargs):
                worker.work()
            else:
                self._break()
        finally:
            release.settle(worker.holder)
            with self.lock:
                self.workers.remove(worker)
                self._live -= 1
                self._changed.notify_all()

    def take(self, worker: Worker) -> Task[Any] | None:
        """Return the next task, or None: the worker is to end. Lets go before it blocks."""
        if worker.is_forked:  # in a callback
            end_forked_process(None)
        holder = worker.holder
        let_go, has_let_go = self._let_go, False
        while True:
            with self.lock:
                if worker.keeps:
                    self._reserve(worker, keeps=False)
                while self._tasks:
                    task = self._tasks.popleft()
                    if not task.claim():  # it was cancelled
                        self._stale -= 1
                        continue
                    self.begun += 1
                    waited = _now() - task.queued_at
                    self.queue_seconds += waited
                    if self._max_pending is not None:
                        self._changed.notify_all()
                    worker.begin(task, waited)
                    return task
                timeout = None
                if holder.is_holding and not has_let_go:
                    until = release.kept_until(holder, self._conn_max_idle)
                    may_hold = until is not None and let_go == self._let_go and not self._is_closed
                    timeout = until - Clock.monotonic() if until is not None and may_hold else 0.0
                if timeout is None or timeout > 0:
                    if self._is_closed:
                        self._notify()
                        return None
                    self._wait(worker, timeout)
                    continue
                let_go, has_let_go = self._let_go, True
            release.settle(holder)

    def _wait(self, worker: Worker, timeout: float | None) -> None:
        worker.wait()
        self._idle += 1
        try:
            self._has_task.wait(timeout and min(timeout, threading.TIMEOUT_MAX))
        finally:
            self._idle -= 1

    def settle(self, worker: Worker, *, interrupted: bool = False) -> None:
        """Between two tasks: keep what this worker holds if there is work for it, or let go.

        A worker keeps only while more tasks are queued than workers keep: of eight that end together
        with three tasks queued, three keep.
        """
        holder = worker.holder
        with self.lock:
            self._reserve(worker, keeps=False)
            reserved = self.pending > self._keepers
            self._reserve(worker, keeps=reserved)
        may_idle = self._conn_max_idle > 0 and not release.is_limited(holder)
        release.settle(holder, keep=reserved or may_idle, interrupted=interrupted)
        if not holder.is_holding:
            with self.lock:
                self._reserve(worker, keeps=False)

    def _reserve(self, worker: Worker, *, keeps: bool) -> None:
        self._keepers += keeps - worker.keeps
        worker.keeps = keeps

    def _break(self) -> None:
        """An initializer has failed: so does all that is queued."""
        with self.lock:
            self.is_broken = True
            tasks, self._tasks = self._tasks, deque()
            claimed = [each for each in tasks if each.claim()]
            self._stale -= len(tasks) - len(claimed)
            self.begun += len(claimed)
            self.failed += len(claimed)
            self._notify()
        for each in claimed:
            each.drop_call()
            each.set_running_or_notify_cancel()
            each.resolve(None, BrokenThreadPool(_BROKEN))

    @contextlib.contextmanager
    def waiting(self, worker: Worker, task: Task[Any]) -> Iterator[None]:
        """Note that this worker waits for that task of its own pool.

        Raises:
            DeadlockError: the wait could never end: so does every worker.
        """
        with self.lock:
            outer = self._waits.get(worker)  # a signal's handler may wait during a wait
            self._waits[worker] = task
            if (
                len(self.workers) >= self._max_workers
                and all(each in self._waits for each in self.workers)
                and all(each.queue is not None for each in self._waits.values())
            ):
                why = self._why()
                self._stop_waiting(worker, outer)
                raise DeadlockError(why)
        try:
            yield
        finally:
            with self.lock:
                self._stop_waiting(worker, outer)

    def _stop_waiting(self, worker: Worker, outer: Task[Any] | None) -> None:
        if outer is None:
            del self._waits[worker]
        else:
            self._waits[worker] = outer

    def _why(self) -> str:
        said = (
            "a wait for a task of the worker's own pool that could never end: "
            f"executor={self.name} workers={self._max_workers} waiting={len(self._waits)} "
            f"pending={self.pending}"
        )
        waits = [
            f"task={task_name(worker.fn)} waits for task={task_name(task.named)}"
            for worker, task in self._waits.items()
        ]
        return "\n".join([said, *waits, "Submit from outside of the pool's tasks, or to a second pool."])


def _exit() -> bool:
    """Tell whether the interpreter exits."""
    return bool(standard._shutdown)


# A standard `submit` that somebody has replaced on the class, as tracing and error reporting do: it gets
# the user's function, and what it makes of that arrives at the queue as a standard work item.


class _Arriving(threading.local):
    """What has arrived at a queue while the calling thread submits."""

    items: list[Any] | None = None


_arriving = _Arriving()


_Standard = standard.ThreadPoolExecutor  # somebody may put our own class in its place there


def _is_original(submit: Any) -> bool:
    return type(submit) is FunctionType and submit.__globals__ is vars(standard)


def _call_of(item: Any) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return what a standard work item calls: on Python 3.14 and newer, and before."""
    found: Any = item.task if hasattr(item, "task") else (item.fn, item.args, item.kwargs)
    return found  # type: ignore[no-any-return]


def _arrived(queue: WorkQueue, item: Any) -> None:
    if _arriving.items is not None:
        _arriving.items.append(item)
        return
    # A replaced `submit` goes on in another thread.
    call = _call_of(item)
    task: Task[Any] = Task(queue, call[0], call, context.copy(), context.inherited())
    task.stand_for(item.future)
    queue.add(task)


class ThreadPoolExecutor(Executor, _Standard):
    """Run calls in threads that let go of their database connections: the standard pool for Django.

    It is `concurrent.futures.ThreadPoolExecutor` in all else: the same constructor, `submit`, `map`,
    `shutdown`, `with`, and a subclass, so that `wait`, `as_completed`, `asyncio.wrap_future`,
    `loop.run_in_executor` and `loop.set_default_executor` take it.

    Tasks, the initializer, and done-callbacks that were added before the task ended run in the pool's
    worker threads, and each worker has connections of its own, as any thread under Django has. When a
    task ends, in whatever way, and no other is queued, what it opened on every alias is closed in its
    worker before its future resolves. While more tasks are queued than workers keep connections, a
    worker may keep its own for the next task, which gets a fresh session on it (CONN_MAX_AGE = 0) or
    the same one until its max age. What an initializer or a callback opened is let go before the
    worker waits; what is left when a worker ends, as it ends. Connections that a worker did not open
    (the submitter's, a test's, one lent to the thread) are never touched. Cache clients are let go by
    the same rules: a worker has one set of its own for all its tasks, never the submitter's.

    Args:
        max_workers: the most threads at once; default `min(32, cpus + 4)`.
        thread_name_prefix: how the threads, and the executor in `all_connections()`, are called.
        initializer: called in each worker before its first task. If it raises, pending futures get
            `BrokenThreadPool`.
        initargs: its arguments.
        conn_max_idle: for how many seconds a worker may keep its connections while it waits for work;
            never beyond their max age, and not at all under EXECUTORS_MAX_CONNECTIONS. When you would
            want it: tasks come one at a time, and connecting takes longer than they do. Default 0.0:
            an idle worker holds nothing.
        max_pending: how many tasks may be submitted and not begun. When you would want it: tasks come
            faster than they are done, and each keeps its arguments in memory. Default None: any number.
        when_full: what `submit` does when there are as many: "block" until one has begun or was
            cancelled, or "raise" `QueueFull`. In one of the pool's own workers, and where an event loop
            runs in the calling thread (but for DJANGO_ALLOW_ASYNC_UNSAFE), it raises either way.
        inherit_context: run each task in a copy of its submitter's contextvars, with the submitter's
            language, time zone, URLconf and script prefix. When you would want False: what the
            initializer has set is to hold for each task. Either way nothing that a task sets reaches
            its submitter or the next task.

    Raises:
        ValueError: max_workers or max_pending is not greater than 0, conn_max_idle is below 0, or
            when_full is neither "block" nor "raise", or is "raise" without max_pending.
        TypeError: initializer is not callable, conn_max_idle is no number, max_workers or max_pending
            is no int, or inherit_context is no bool.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        conn_max_idle: float = 0.0,
        max_pending: int | None = None,
        when_full: Literal["block", "raise"] = "block",
        inherit_context: bool = True,
    ) -> None:
        check_workers(max_workers)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._conn_max_idle = check_seconds("conn_max_idle", conn_max_idle)
        check_bound(max_pending, when_full)
        if not isinstance(inherit_context, bool):
            raise TypeError(f"inherit_context must be True or False, not {inherit_context!r}")
        self._bound = max_pending, when_full
        self._inherit_context = inherit_context
        self._users_initializer = initializer, initargs
        self._begin(max_workers, thread_name_prefix)

    def _begin_anew(self) -> None:
        self._begin(self._max_workers, self._thread_name_prefix or "")

    def _begin(self, max_workers: int | None, thread_name_prefix: str) -> None:
        """Be a pool without threads and work, and with locks that nobody has."""
        super().__init__(max_workers, thread_name_prefix)
        self._most_workers = self._max_workers
        name = self._thread_name_prefix or ""
        initializer, initargs = self._users_initializer
        max_pending, when_full = self._bound
        self._queue = queue = WorkQueue(
            name, self._max_workers, self._conn_max_idle, max_pending, blocks=when_full == "block"
        )
        self._work_queue: Any = queue
        self._threads = queue.threads
        numbers = iter(range(1 << 62))

        def start_worker() -> threading.Thread:
            # In a context of its own: Python 3.14 may give it that of the thread that starts it.
            thread = threading.Thread(
                target=contextvars.Context().run,
                args=(queue.run_worker, initializer, initargs),
                name=f"{name}_{next(numbers)}",
            )
            thread.start()
            return thread

        queue.start_worker = start_worker
        weakref.finalize(self, queue.forgotten).atexit = False
        self._in_callers_threads = InCallersThreads(
            queue, initializer, initargs, inherit_context=self._inherit_context, broken=BrokenThreadPool
        )
        if self._is_shut_down:
            queue.close()
        follow(self, queue)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        """Queue `fn(*args, **kwargs)` for a worker and return its future, as the standard class does.

        Raises:
            QueueFull: `max_pending` tasks have not begun, and waiting is not wanted or could never end.
            RuntimeError: after `shutdown`, or while the interpreter exits.
            BrokenThreadPool: an initializer failed.
        """
        notice_fork()
        if (holder := current_holder()).entries and not is_inline():
            warn_if_in_atomic(holder, fn)
        return self._submit(fn, args, kwargs)  # type: ignore[no-any-return]

    def _submit(self, fn: Any, args: Any, kwargs: Any, *, waits: bool = True) -> Any:
        if not _is_original(submit := _Standard.submit):
            return self._submit_by(submit, fn, args, kwargs, waits=waits)
        if is_inline():
            return self._submit_inline(fn, (fn, args, kwargs))
        task = self._task(fn, (fn, args, kwargs))
        self._queue.add(task, waits=waits)
        return task

    def _submit_loading(self, make: Callable[[], RowsOf]) -> Loading | None:
        notice_fork()
        queue = self._queue
        if is_inline() or queue.is_mine():
            return None
        task = make()
        try:
            return Loading(self._submit(task, (), {}, waits=False), task, queue.is_behind)
        except QueueFull:
            return None

    def _task(self, named: Any, call: Any) -> Task[Any]:
        changes: context.Changes = ()
        copied = None
        if self._inherit_context:
            copied, changes = context.copy(), context.inherited()
        if context.watchers.get():
            changes += context.watched()
        return Task(self._queue, named, call, copied, changes)

    def _submit_by(self, submit: Any, fn: Any, args: Any, kwargs: Any, *, waits: bool) -> Any:
        """Submit by what somebody has put in the place of the standard class's."""
        outer, _arriving.items = _arriving.items, []
        try:
            returned = submit(self, fn, *args, **kwargs)
            items = _arriving.items
        finally:
            _arriving.items = outer
        for item in items:
            future: Any
            if is_inline():
                future = self._submit_inline(fn, _call_of(item))
                future.stand_for(item.future)
            else:
                future = self._task(fn, _call_of(item))
                future.stand_for(item.future)
                self._queue.add(future, waits=waits)
            if item.future is returned:
                returned = future
        return returned

    def _adjust_thread_count(self) -> None:
        """The queue starts threads, whoever has put a task there."""

    @property
    def _broken(self) -> Any:
        # As in the standard class, whose constructor sets it to False.
        return self._queue.is_broken and _BROKEN

    @_broken.setter
    def _broken(self, broken: Any) -> None:
        """The queue knows."""

    def shutdown(
        self,
        wait: bool = True,
        *,
        cancel_futures: bool = False,
        timeout: float | None = None,
        cancel_queries: bool = False,
    ) -> None:
        """Refuse tasks from now on, as the standard class does; with a timeout, return when it is over.

        At the timeout, tasks that have not begun are cancelled: they do not run any more, and their
        futures' callbacks run in the calling thread. Those that run cannot be stopped. One ERROR record
        says how many of both there were, by name; there is none if all tasks have run. An exception
        that ends the waiting, such as KeyboardInterrupt, cancels nothing.

        Args:
            wait: return when all tasks have run and the workers have ended.
            cancel_futures: cancel at once those that have not begun. With a timeout they are logged too.
            timeout: for how many seconds to wait at most. When you would want it: the process is about
                to end, and whoever ends it will not wait for ever. Default None: as long as it takes.
            cancel_queries: at the timeout, cancel on the server the queries that workers still run,
                again and again until they have ended, for a second more at most: their tasks get an
                `OperationalError`, and their connections are closed. When you would want it: the
                database is not to work on for nobody. Those of Django's own pool go on.

        Raises:
            TypeError: timeout is no number.
            ValueError: timeout is below 0, or given together with `wait=False`; or cancel_queries
                without a timeout.
            RuntimeError: called with a timeout by one of the pool's own workers, which would wait for
                itself. (Without one, the standard class raises it too, having refused tasks.)
        """
        notice_fork()
        queue = self._queue
        seconds = check_timeout(timeout, wait=wait, cancel_queries=cancel_queries)
        if seconds is not None and queue.is_mine():
            raise RuntimeError("shutdown(timeout=...) was called in a worker, and would wait for itself")
        self._is_shut_down = True
        queue.close()
        not_run = queue.cancel_pending() if cancel_futures else Counter[str]()
        if seconds is not None:
            and_then = (queue.cancel_queries,) if cancel_queries else ()
            end_within(queue, seconds, queue.wait_for_end, not_run, *and_then)
        elif wait:
            for thread in list(queue.threads):
                thread.join()

    @property
    def name(self) -> str:
        return self._queue.name

    def stats(self) -> ExecutorStats:
        """Return what was done so far, in numbers that are all of the same moment.

        Any thread may call this, at any time, after `shutdown` too.
        """
        return self._queue.stats()
