"""What runs in a worker process: one process, one worker, and the rules of a thread pool's worker."""

from __future__ import annotations

import contextvars
import copyreg
import functools
import io
import pickle
import signal
from collections import ChainMap
from collections.abc import Callable, Iterable
from multiprocessing.reduction import ForkingPickler
from typing import Any

from django_executors import context
from django_executors.clock import Clock
from django_executors.connections import caches, fork, thread_end
from django_executors.connections.ledger import current_holder

from . import databases, pickling, portable
from .callqueue import CallQueue
from .remotefuture import Outcome


class Start:
    """What a worker process needs to begin. The user's part is unpickled when Django is set up."""

    def __init__(
        self,
        name: str,
        calls: CallQueue,
        initializer: tuple[Callable[..., object] | None, tuple[Any, ...]],
        max_tasks: int | None,
    ) -> None:
        self.name = name
        self.calls = calls
        self.initializer = initializer
        self.max_tasks = max_tasks
        self.databases = databases.effective()
        self.settings_module = None if self.databases is None else databases.settings_module()

    def __getstate__(self) -> dict[str, Any]:
        # While a process is started: locks and queues can be pickled then only.
        initializer = _dumps_named("initializer or initargs", self.initializer)
        used = _dumps_named("what DATABASES has", self.databases)
        return vars(self) | {"initializer": initializer, "databases": used}

    def load_databases(self) -> databases.Databases | None:
        found = self.databases
        return pickle.loads(found) if isinstance(found, bytes) else found

    def load_initializer(self) -> tuple[Callable[..., object] | None, tuple[Any, ...]]:
        found = self.initializer
        return pickle.loads(found) if isinstance(found, bytes) else found


def _dumps_named(what: str, value: object) -> bytes:
    try:
        return _dumps(value)
    except Exception as error:
        raise pickle.PicklingError(f"{what} cannot be pickled: {error}") from error


class _Worker:
    """The one worker of this process."""

    def __init__(self, calls: CallQueue, tasks_left: int | None) -> None:
        self.calls = calls
        self._tasks_left = tasks_left
        #: As the initializer left it.
        self.context = contextvars.Context()
        self._queue_seconds = self._run_seconds = 0.0

    def begin_task(self, queued_at: float) -> None:
        self._queue_seconds += Clock.monotonic() - queued_at
        if self._tasks_left is not None:
            self._tasks_left -= 1
            self.calls.is_to_end = self._tasks_left == 0

    def end_task(self, began: float) -> None:
        self._run_seconds += Clock.monotonic() - began

    def take_seconds(self) -> tuple[float, float]:
        """Return for how long tasks have been queued, and have run, since this was called last."""
        seconds = self._queue_seconds, self._run_seconds
        self._queue_seconds = self._run_seconds = 0.0
        return seconds


def begin(start: Start) -> None:
    """Make this process a worker, then run the user's initializer.

    In an empty context: that of a forked process is the one in which a task was submitted.
    """
    contextvars.Context().run(_begin, start)


def _begin(start: Start) -> None:
    # The pool ends its processes so when one was killed, and a forked one has its parent's handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    holder = current_holder()
    fork.leave_all()
    used = start.load_databases()
    if used is not None:
        databases.set_up(start.settings_module, used)
    holder.become_worker(start.name, start.calls.counts)
    thread_end.arm(holder)
    _workers.append(worker := _Worker(start.calls, start.max_tasks))
    initializer, initargs = start.load_initializer()
    if initializer is not None:
        initializer(*initargs)
    worker.context = context.copy()
    worker.context.run(caches.forget_all)


#: The one of this process.
_workers: list[_Worker] = []


class Call:
    """A task in its parent. It is pickled on its way, by itself, and comes as bytes."""

    __slots__ = ("_args", "_kwargs", "fn")

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.fn = fn
        self._args = args
        self._kwargs = kwargs

    def __reduce__(self) -> Any:
        try:
            return bytes, (_dumps((self.fn, self._args, self._kwargs)),)
        except Exception as error:
            raise pickling.of_call(error, _dumps, self.fn, self._args, self._kwargs) from error


def run(carried: portable.Carried, queued_at: float, call: bytes) -> Outcome:
    """Run one task in this process, and let go of what it opened before its outcome is sent.

    Args:
        carried: what of its submitter's context could be pickled.
        queued_at: by `time.monotonic()`, which all processes of a machine share.
    """
    holder, worker = current_holder(), _workers[-1]
    worker.begin_task(queued_at)
    began = Clock.monotonic()
    inherited = portable.unpack(worker.context, carried)
    holder.task = _load_and_call
    failed, interrupted = True, True
    fn: Any = None
    try:
        fn, packed = inherited.run(_load_and_call, call)
        failed = interrupted = False
    except BaseException as error:  # noqa: BLE001 - it is the future's
        interrupted = not isinstance(error, Exception)
        fn = holder.task if holder.task is not _load_and_call else None
        context.end(holder)
        if holder.is_holding:
            worker.calls.settle(holder, interrupted=interrupted)
        packed = pickling.dump_error(_dumps, fn, error)
    context.end(holder)
    if holder.is_holding:
        worker.calls.settle(holder)
    holder.task = None
    holder.scopes.clear()
    worker.end_task(began)
    return packed, failed, *worker.take_seconds()


def _load_and_call(call: bytes) -> tuple[Callable[..., Any], bytes]:
    fn, args, kwargs = pickling.load_call(call)
    current_holder().run(fn)
    return fn, pickling.dump_result(_dumps, fn, fn(*args, **kwargs))


class _Pickler(pickle.Pickler):
    """Does what `ForkingPickler` does, which makes its table anew for each object that it pickles."""

    # A private name of multiprocessing's: how connections, sockets and such are sent.
    dispatch_table = ChainMap[Any, Any](  # noqa: RUF012 - the base class reads it there
        vars(ForkingPickler)["_extra_reducers"], copyreg.dispatch_table
    )


def _dumps(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


class InChunks:
    """Calls a function for each item of a chunk, and is called by its name."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn, updated=())

    def __call__(self, chunk: Iterable[tuple[Any, ...]]) -> list[Any]:
        fn: Callable[..., Any] = vars(self)["__wrapped__"]
        return [fn(*arguments) for arguments in chunk]
