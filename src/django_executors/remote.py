"""A call on its way to another process, its report on the way back, and Django set up over there.

    submitter                                  worker process
    pack: in the submitter's thread  ──call──► Worker.run: set up Django once, load the call, run it as
    RemoteTask: load the report  ◄──report──── a Task, settle; result or error, and what was counted

What travels with a call: its function by reference, its arguments, the submitter's language, time zone,
URLconf and script prefix, the name of the settings module, and where each database is (its NAME, HOST
and PORT): a test's is where no settings file says. Settings do not travel, so passwords cannot.

Call and outcome are pickled by themselves: what cannot be is that task's error alone.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import pickle
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import process
from typing import Any, NamedTuple, ParamSpec, TypeVar

import django
from django.apps import apps
from django.conf import ENVIRONMENT_VARIABLE, settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from . import conf, context, observing
from .arguments import check_timeout
from .base import (
    Books,
    Executor,
    ExecutorStats,
    end_forked_process,
    end_within,
    notice_fork,
    warn_if_in_atomic,
)
from .clock import Clock
from .connections import caches, thread_end
from .connections.ledger import ConnectionCounts, current_holder
from .connections.scope import connection_scope
from .exceptions import DeadlockError
from .immediate import is_inline
from .naming import task_name
from .task import Task, TaskFuture

P = ParamSpec("P")
R = TypeVar("R")

#: The standard library's, which logs what callbacks raise.
logger = logging.getLogger("concurrent.futures")

#: How an executor pickles: all ways can be read by `pickle.loads`.
Dumps = Callable[[Any], bytes]

#: A private class of the standard process pool's, which is shown as its text.
_remote_traceback: Callable[[str], Exception] = process._RemoteTraceback  # type: ignore[assignment]

#: Whoever reads of one that cannot be found is to know what can.
_IMPORTED = "A task must be a function at the top of a module that the worker can import"


class UnpicklingError(process.BrokenProcessPool, pickle.UnpicklingError):
    """What has come cannot be loaded: a task in its worker, or a result here.

    Where the standard class breaks its pool for this, whoever handles that handles this; here the pool
    goes on.
    """


# Where Django's databases are, here and there.

_WHERE = ("NAME", "HOST", "PORT")


class Setup(NamedTuple):
    """What a worker process needs to know of its submitter's Django."""

    #: None: the settings are from no module, as by `settings.configure()`.
    module: str | None
    #: By alias, what DATABASES has for NAME, HOST and PORT.
    databases: dict[str, tuple[Any, ...]]


def used_here() -> Setup | None:
    """Return what this process uses; None: Django has no settings here.

    Raises:
        ImproperlyConfigured: a database is in this process's memory.
    """
    if not settings.configured and not os.environ.get(ENVIRONMENT_VARIABLE):
        return None
    found = {}
    for alias, database in connections.settings.items():
        found[alias] = where = tuple(map(database.get, _WHERE))
        if "memory" in (name := str(where[0])) and (":memory:" in name or "mode=memory" in name):
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}] is SQLite in memory, which no other process can see. Use a file, "
                "in tests by DATABASES[...]['TEST']['NAME'], or django_executors.testing.run_inline"
            )
    return Setup(conf.settings_module(), found)


_lock = threading.Lock()
#: What has raised as Django was set up here, which cannot be tried twice.
_failed: BaseException | None = None


def set_up(wanted: Setup | None, *, may_move: bool) -> None:
    """Set Django up in the calling process, once, with these settings and these databases.

    Args:
        may_move: use other databases from now on, if there are others already: nothing else runs here.

    Raises:
        ImproperlyConfigured: it cannot be done, or is set up otherwise.
    """
    global _failed
    if wanted is None or (apps.ready and used_here() == wanted):
        return
    with _lock:
        if _failed is not None:
            raise _failed
        if not settings.configured:
            if wanted.module is None:
                raise ImproperlyConfigured(
                    "a worker process needs the settings, and its parent's are from "
                    "settings.configure(): put them in a module that DJANGO_SETTINGS_MODULE names, or "
                    "call it at the main module's top"
                )
            os.environ[ENVIRONMENT_VARIABLE] = wanted.module
        try:
            _use(wanted, may_move=may_move or not apps.ready)
            if not apps.ready:
                django.setup()
        except BaseException as error:
            if not apps.ready:
                _failed = error
            raise


def _use(wanted: Setup, *, may_move: bool) -> None:
    here = connections.settings
    if (module := conf.settings_module()) != wanted.module:
        raise ImproperlyConfigured(
            f"it has the settings of {module}, and the tasks are to run with {wanted.module}"
        )
    if missing := wanted.databases.keys() - here.keys():
        raise ImproperlyConfigured(f"its DATABASES has no {', '.join(map(repr, sorted(missing)))}")
    others = {
        alias: where
        for alias, where in wanted.databases.items()
        if where != tuple(map(here[alias].get, _WHERE))
    }
    if others and not may_move:
        raise ImproperlyConfigured(f"it has other databases than the tasks are for: {sorted(others)}")
    for alias, where in others.items():
        if here[alias].get("OPTIONS", {}).get("pool"):
            pooled: Any = connections[alias]
            pooled.close_pool()  # its connections are to the other one
        here[alias].update(zip(_WHERE, where, strict=True))


def check_may_start_processes() -> None:
    """Raise what `multiprocessing` would, an `AssertionError`, with a way out.

    Raises:
        RuntimeError: the calling process is daemonic.
    """
    if multiprocessing.current_process().daemon:
        raise RuntimeError(
            "this process is daemonic, and so may not start others, as the workers of `manage.py test "
            "--parallel`, multiprocessing.Pool and Dask are. In tests use "
            "django_executors.testing.run_inline, or --parallel=1; elsewhere a ThreadPoolExecutor"
        )


# A call, on its way out.


#: The last one, and how it is pickled: it is the same for most calls.
_pickled: tuple[Setup | None, bytes] = None, pickle.dumps(None)


def _pickle_once(setup: Setup | None) -> bytes:
    global _pickled
    last, pickled = _pickled
    if last != setup:
        pickled = pickle.dumps(setup)
        _pickled = setup, pickled
    return pickled


def pack(setup: Setup | None, fn: Any, args: Any, kwargs: Any, dumps: Dumps) -> bytes:
    """Return a call as bytes. Its arguments may query as they are pickled: in the calling thread.

    Raises:
        PicklingError: names what of it cannot be pickled.
    """
    try:
        call = dumps((fn, args, kwargs))
    except Exception as error:
        raise _named(error, fn, args, kwargs, dumps) from error
    activated = []
    for change in context.inherited():
        with contextlib.suppress(Exception):  # a time zone of the user's own class, for one
            activated.append(pickle.dumps(change))
    return pickle.dumps((_pickle_once(setup), activated, call))


def _named(error: Exception, fn: Any, args: Any, kwargs: Any, dumps: Dumps) -> Exception:
    parts = [("the function", fn)]
    parts += [(f"argument {place}", value) for place, value in enumerate(args, 1)]
    parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for part, value in parts:
        try:
            dumps(value)
        except Exception:  # noqa: BLE001 - of whatever class
            return pickle.PicklingError(
                f"{part} of task={task_name(fn)}, a {type(value).__qualname__}, cannot be pickled: "
                f"{error}" + (f". {_IMPORTED}" if value is fn else "")
            )
    return error


# In the worker.


#: What comes back: the task's result, or its error and the text of its traceback, pickled; whether it
#: is an error; for how many seconds it ran; and how often its thread has opened a connection, and so
#: on, since its last report. No class of its own, which would be looked up by name for each.
Report = tuple[bytes, bool, float, dict[str, int]]


class Worker:
    """One thread that runs the calls of other processes, as a pool's worker runs its tasks."""

    def __init__(self, name: str) -> None:
        """Make the calling thread one, whose connections are shown to be this executor's."""
        self.holder = current_holder()
        self._counts = ConnectionCounts()
        self._pid = os.getpid()
        #: As what it was last set up, pickled.
        self._setup = b""
        self.holder.become_worker(name, self._counts)
        thread_end.arm(self.holder)
        self.initialized()

    def initialized(self) -> None:
        """Tasks find the contextvars as they are now."""
        self._context = context.copy()
        self._context.run(caches.forget_all)

    def end_if_forked(self, error: BaseException | None) -> None:
        """In a child that the user's code has forked, end it: the rest of the work is the parent's."""
        if os.getpid() != self._pid:
            end_forked_process(error)

    def settle(self, *, interrupted: bool = False) -> None:
        """Between two tasks: close what the last one opened, or keep it."""
        raise NotImplementedError

    def prepare(self, setup: Setup | None) -> None:
        """Have Django set up for this call and those that come, for which it was set up otherwise.

        Raises:
            Exception: it cannot be; this is the task's error.
        """
        raise NotImplementedError

    def task_cancelled(self) -> None:
        """Nobody here cancels a task."""

    def run(self, packed: bytes, dumps: Dumps) -> Report:
        """Run a call, and let go of what it opened before its report is sent."""
        began = Clock.monotonic()
        setup, activated, call = pickle.loads(packed)
        holder = self.holder
        holder.run(_load_and_call)
        error: BaseException | None
        try:
            if setup != self._setup:
                self.prepare(pickle.loads(setup))
                self._setup = setup
            changes = tuple(map(pickle.loads, activated))
        except BaseException as raised:  # noqa: BLE001 - it is the future's
            result, error = b"", raised
        else:
            task = Task(self, _load_and_call, (_load_and_call, (call, dumps), {}), None, changes)
            result, error = task.run(self._context)
        self.end_if_forked(error)
        context.end(holder)
        if holder.is_holding:
            self.settle(interrupted=error is not None and not isinstance(error, Exception))
        if error is not None:
            result = _dump_error(dumps, holder.task, error)
            if holder.is_touched:
                self.settle()
        holder.run(None)
        holder.scopes.clear()
        seconds = Clock.monotonic() - began
        return result, error is not None, seconds, self._counts.take()


def _load_and_call(call: bytes, dumps: Dumps) -> bytes:
    """Run a task, and return its result pickled: that may query, as a queryset does."""
    try:
        fn, args, kwargs = pickle.loads(call)
    except BaseException as error:
        raise UnpicklingError(
            f"the task has come to a worker, but cannot be unpickled there: {_told(error)}. {_IMPORTED}"
        ) from error
    current_holder().run(fn)
    result = fn(*args, **kwargs)
    try:
        return dumps(result)
    except Exception as error:
        raise _unpicklable(f"result, a {type(result).__qualname__},", fn, error) from error


def _dump_error(dumps: Dumps, fn: Any, error: BaseException) -> bytes:
    """Return an error, pickled so that it can be loaded, with the text of its traceback.

    It may query as it is asked for its text.
    """
    text = "".join(traceback.format_exception(error))
    # They are in the text. Some serializers send them too, with all that they refer to.
    for name in ("__traceback__", "__cause__", "__context__"):
        object.__setattr__(error, name, None)  # also where its class is a frozen dataclass
    try:
        packed = dumps((error, text))
        pickle.loads(packed)
    except BaseException as raised:  # noqa: BLE001 - of whatever class
        packed = dumps((_unpicklable(f"error, a {_told(error)},", fn, raised), text))
    return packed


def _unpicklable(what: str, fn: Any, raised: BaseException) -> pickle.PicklingError:
    return pickle.PicklingError(
        f"the {what} of task={task_name(fn)} cannot be pickled: {_told(raised, with_class=False)}"
    )


def _told(error: BaseException, *, with_class: bool = True) -> str:
    try:
        return f"{type(error).__qualname__}: {error}" if with_class else str(error)
    except BaseException:  # noqa: BLE001 - the user's own `__str__`
        return type(error).__qualname__


# A report, in the submitter's process.


def _load(pickled: bytes, fn: Any, *, failed: bool) -> tuple[Any, BaseException | None]:
    """Return a task's result, or its error."""
    try:
        value = pickle.loads(pickled)
        if not failed:
            return value, None
        error, text = value
        object.__setattr__(error, "__cause__", _remote_traceback(f'\n"""\n{text}"""'))
    except BaseException as raised:  # noqa: BLE001 - of whatever class
        what = "error" if failed else "result"
        error = UnpicklingError(
            f"the {what} of task={task_name(fn)} has come, but cannot be unpickled here: {_told(raised)}"
        )
        error.__cause__ = raised
    return None, error


class RemoteTask(TaskFuture[R]):
    """The future of a call that another process runs: done when `sent`, the report's own, is."""

    #: None before it is sent, and from its end on.
    sent: concurrent.futures.Future[Report] | None = None
    #: The thread that submits it, while it does.
    _submitter: int | None = None

    def __init__(self, books: RemoteBooks, fn: Callable[..., R]) -> None:
        super().__init__()
        self._books = books
        self.fn: Any = fn
        self._queued_at = Clock.monotonic()

    def follow(self, sent: concurrent.futures.Future[Report]) -> None:
        """Get what this one gets."""
        self.sent = sent
        self._books.sent(self)
        self._submitter = threading.get_ident()
        sent.add_done_callback(self._arrived)
        self._submitter = None

    def refuse(self, error: Exception) -> None:
        """It cannot be sent."""
        self._books.ended(0.0, 0.0, failed=True)
        self.fail(self.fn, error)

    def running(self) -> bool:
        sent = self.sent
        return sent is not None and not sent.cancelled() and (sent.running() or sent.done())

    def cancelled(self) -> bool:
        sent = self.sent
        return super().cancelled() or (sent is not None and sent.cancelled())

    def done(self) -> bool:
        return super().done() or self.cancelled()

    def cancel(self) -> bool:
        sent = self.sent
        return (sent is not None and sent.cancel()) or self.cancelled()

    def abandon(self) -> None:
        self.sent = None
        super().abandon()

    def _arrived(self, sent: concurrent.futures.Future[Report]) -> None:
        """Called once, in the thread that settles `sent`, or that cancels it."""
        if sent.cancelled():
            self._withdraw()
        elif self._submitter == threading.get_ident():
            # It was there already. The submitter's thread may run an event loop, or be in a transaction.
            try:
                threading.Thread(target=self._settle, args=(sent,)).start()
            except RuntimeError:  # the interpreter exits
                self._settle(sent)
        else:
            self._settle(sent)

    def _settle(self, sent: concurrent.futures.Future[Report]) -> None:
        books, fn, error = self._books, self.fn, sent.exception()
        is_broken = isinstance(error, concurrent.futures.BrokenExecutor)
        try:
            with books.settling(), connection_scope():  # what loading and callbacks query
                result: Any = None
                seconds = 0.0
                if error is None:
                    pickled, failed, seconds, counted = sent.result()
                    if counted:
                        books.connections.add_all(counted)
                    result, error = _load(pickled, fn, failed=failed)
                with books.lock:
                    self.sent = None
                    waited = max(0.0, Clock.monotonic() - self._queued_at - seconds)
                    books.ended(waited, seconds, failed=error is not None)
                if (observer := observing.observer) is not None:
                    observer.task_ended(books.name, fn, error is not None, waited, seconds)
                if error is None:
                    self.set_result(result)
                else:
                    self.fail(fn, error)
        except BaseException:  # SystemExit, of a callback: this thread is everybody's, and stays
            logger.critical("Exception in worker", exc_info=True)
        self.fn = None
        books.forget(self, is_broken=is_broken)

    def _withdraw(self) -> None:
        with self._books.lock:
            self.sent = None
            self._books.task_cancelled()
        self._books.forget(self)
        try:
            super().cancel()
        finally:  # whatever a callback has raised
            self.set_running_or_notify_cancel()  # or `wait` and `as_completed` sleep on

    def _waiting(self) -> None:
        if not self.done() and self._books.is_settling():
            raise DeadlockError(
                f"a done-callback waits for task={task_name(self.fn)} of the same pool, in the "
                "thread that would settle it: submit without waiting, or give `result` a timeout"
            )


class RemoteBooks(Books):
    """What an executor has to do in other processes, and its numbers."""

    def __init__(self, name: str, executor: Callable[[], Any]) -> None:
        """Make them.

        Args:
            executor: returns it, or None if nobody refers to it.
        """
        super().__init__()
        self.name = name
        self.executor = executor
        #: The same, while it has something to do: without it, nobody would see to that.
        self._kept: Any = None
        #: Those that have not ended, with their callbacks, oldest first. Guarded by lock.
        self._tasks: dict[RemoteTask[Any], None] = {}
        self._settling: set[int] = set()

    @property
    def workers(self) -> int | None:
        """How many there are now, if that is known."""
        return None

    @property
    def busy(self) -> int:
        return super().busy + self._handed_over()

    @property
    def pending(self) -> int:
        return sum(task.sent is not None for task in self._tasks) - self._handed_over()

    def _handed_over(self) -> int:
        """How many tasks workers run. More are handed over, and wait where workers take them."""
        running, workers = sum(task.running() for task in self._tasks), self.workers
        return running if workers is None else min(running, workers)

    def _workers_now(self) -> int:
        return self.workers or 0

    def sent(self, task: RemoteTask[Any]) -> None:
        with self.lock:
            self._tasks[task] = None
            self._kept = self.executor()

    def ended(self, queue_seconds: float, run_seconds: float, *, failed: bool) -> None:
        """A task has come back."""
        with self.lock:
            self.begun += 1
            self.queue_seconds += queue_seconds
            self.task_ended(run_seconds, failed)

    def forget(self, task: RemoteTask[Any], *, is_broken: bool = False) -> None:
        """It is done, and its callbacks have run."""
        kept = None
        with self.lock:
            self._tasks.pop(task, None)
            # A broken pool is left to the collector: it breaks under a lock that its end takes.
            if not self._tasks and not is_broken:
                kept, self._kept = self._kept, None
        del kept  # not under the lock: it may be the last reference

    @contextlib.contextmanager
    def settling(self) -> Iterator[None]:
        """Mark the calling thread as the one that settles futures, in this block."""
        self._settling.add(threading.get_ident())
        try:
            yield
        finally:
            self._settling.discard(threading.get_ident())

    def is_settling(self) -> bool:
        return threading.get_ident() in self._settling

    def running(self) -> Counter[str]:
        """Count by name what was handed to a worker and has not ended, with its callbacks."""
        with self.lock:
            tasks = [(task, task.fn) for task in self._tasks]
        return Counter(
            f"a callback of {task_name(fn)}" if task.done() else task_name(fn)
            for task, fn in tasks
            if fn is not None and (task.done() or task.running())
        )

    def cancel_pending(self) -> Counter[str]:
        """Cancel each task that was not handed to a worker, and return their names."""
        with self.lock:
            tasks = [(task, task.fn) for task in self._tasks]
        return Counter(task_name(fn) for task, fn in tasks if not task.cancelled() and task.cancel())

    def unfinished(self) -> str | None:
        """Say what is left to do, or None. Any thread may call this."""
        if not self._tasks:
            return None
        found = self.stats()
        names = ", ".join(self.running())
        return f"executor={self.name} busy={found.busy} pending={found.pending} tasks={names}"

    def retire(self) -> None:
        """In a forked child: the parent's workers are not this process's, nor is their work."""
        for task in list(self._tasks):
            if task.sent is not None:
                task.abandon()
        self._tasks = {}


class RemoteExecutor(Executor):
    """What executors share whose tasks run in other processes."""

    _books: RemoteBooks
    _dumps: Dumps
    _name: str

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        """Send `fn(*args, **kwargs)` to a worker and return its future, as the standard classes do.

        The arguments are pickled here: what of them queries, as a queryset does, does so in the calling
        thread. What cannot be pickled, an argument, the result or the error, is named by the
        `PicklingError` that the future gets; by an `UnpicklingError`, what cannot be loaded on the other
        side. Where the worker cannot be set up for Django, the future says why.

        Raises:
            RuntimeError: after `shutdown`, while the interpreter exits, or in a daemonic process, which
                may start no others.
            BrokenProcessPool: a process of a `ProcessPoolExecutor` has ended, or an initializer failed.
            PicklingError: the initializer of one cannot be pickled.
            OSError: nobody listens at the address of a `DaskExecutor`, for as long as Dask's setting
                `distributed.comm.timeouts.connect` says.
            ImproperlyConfigured: a database is in this process's memory, where no other can see it.
        """
        notice_fork()
        if is_inline():
            return self._submit_inline(fn, (fn, args, kwargs))  # type: ignore[no-any-return]
        if (holder := current_holder()).entries:
            warn_if_in_atomic(holder, fn)
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        setup = used_here()
        task = RemoteTask(self._books, fn)
        try:
            packed = pack(setup, fn, args, kwargs, self._dumps)
        except Exception as error:  # noqa: BLE001 - it is the future's
            self._refuse(setup, task, error)
        else:
            task.follow(self._send(setup, task_name(fn), packed))
        return task

    def _send(self, setup: Setup | None, name: str, packed: bytes) -> Any:
        """Have a worker run a call, and return the future of its report."""
        raise NotImplementedError

    def _refuse(self, setup: Setup | None, task: RemoteTask[Any], error: Exception) -> None:
        """Give a task the error for which it cannot be sent."""
        task.refuse(error)

    def _end(self) -> None:
        """Return when all tasks have ended, and the workers."""
        raise NotImplementedError

    def shutdown(
        self,
        wait: bool = True,
        *,
        cancel_futures: bool = False,
        timeout: float | None = None,
        cancel_queries: bool = False,
    ) -> None:
        """Refuse tasks from now on, as the standard class does; with a timeout, return when it is over.

        At the timeout, tasks that no worker has are cancelled, and one ERROR record says what was left,
        as the thread pool's `shutdown` does it.

        Args:
            wait: return when all tasks have run and the workers have ended.
            cancel_futures: cancel at once those that no worker has.
            timeout: for how many seconds to wait at most. Default None: as long as it takes.
            cancel_queries: means nothing to worker processes, whose queries go on.

        Raises:
            TypeError: timeout is no number.
            ValueError: timeout is below 0, or given together with `wait=False`.
            RuntimeError: called, to wait, in the thread that runs done-callbacks. Tasks are refused from
                then on all the same.
        """
        seconds = check_timeout(timeout, wait=wait, cancel_queries=cancel_queries)
        notice_fork()
        self._is_shut_down = True
        books = self._books
        not_run = books.cancel_pending() if cancel_futures else Counter[str]()
        would_wait_for_itself = wait and books.is_settling()
        if wait and seconds is None and not would_wait_for_itself:
            self._end()
            return
        ender = threading.Thread(target=self._end, name=f"{books.name}-shutdown", daemon=True)
        with contextlib.suppress(RuntimeError):  # the interpreter exits, which waits for all anyway
            ender.start()
        if would_wait_for_itself:
            raise RuntimeError("shutdown() was called in a done-callback, and would wait for itself")
        if seconds is not None:
            end_within(books, seconds, ender.join, not_run)

    def stats(self) -> ExecutorStats:
        """Return what was done so far, in numbers.

        Workers are processes; on a cluster, which others use too, each task that runs counts as one, and
        there is none without. A task counts as begun when a worker may take it, or, on a cluster, has
        said so; its seconds, and its worker's connections, when its report has come. What a worker
        closes after that is told by its next one. Any thread may call this, at any time.
        """
        return self._books.stats()

    @property
    def name(self) -> str:
        return self._books.name

    def _be_called(self, name: str) -> None:
        self._name = self._books.name = name
