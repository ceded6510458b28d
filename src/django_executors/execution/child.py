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

from django_executors.lifecycle import context, databases, forking, guard, portable
from django_executors.lifecycle.holder import current_holder

from . import pickling
from .base import run_task
from .callqueue import CallQueue
from .remotefuture import Outcome
from .stats import Tally


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


class ProcessWorker(Tally):
    """The one worker of this process, and the task that it has taken."""

    __slots__ = ("_tasks_left", "failed_fn", "fn", "keeps", "queued_at")

    def __init__(self, max_tasks: int | None) -> None:
        super().__init__()
        self._tasks_left = max_tasks
        #: Whether it is one of the call queue's keepers.
        self.keeps = False
        self.queued_at = 0.0
        self.fn: Any = None
        self.failed_fn: Any = None

    @property
    def item(self) -> ProcessWorker:
        """What `run_task` takes for the standard pool's work item, which is in the parent."""
        return self

    @property
    def future(self) -> ProcessWorker:
        """What it takes for the item's future."""
        return self

    def is_of(self, work: object) -> bool:
        return False

    def take(self, queued_at: float) -> None:
        self.fn = None
        self.queued_at = queued_at
        if self._tasks_left is not None:
            self._tasks_left -= 1

    def is_to_end(self) -> bool:
        """Say whether it has begun its last task."""
        return self._tasks_left == 0

    def take_seconds(self) -> tuple[float, float]:
        """Return for how long tasks have been queued, and have run, since this was called last."""
        seconds = self.queue_seconds, self.run_seconds
        self.queue_seconds = self.run_seconds = 0.0
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
    forking.leave_all()
    used = start.load_databases()
    if used is not None:
        databases.set_up(start.settings_module, used)
    holder.executor = start.name
    guard.arm(holder)
    holder.counts = start.calls.counts
    holder.worker = ProcessWorker(start.max_tasks)
    _queues.append(start.calls)
    initializer, initargs = start.load_initializer()
    if initializer is not None:
        initializer(*initargs)
    context.begin_worker(holder)


#: The one of this process.
_queues: list[CallQueue] = []


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
    holder = current_holder()
    worker: ProcessWorker = holder.worker
    worker.take(queued_at)
    inherited = portable.unpack(holder, carried)
    failed = False
    try:
        packed = run_task(_queues[-1], inherited, _load_and_call, _load_and_call, worker, call)
    except BaseException as error:  # noqa: BLE001 - it is the future's
        failed = True
        packed = pickling.dump_error(_dumps, worker.fn, error)
        if holder.entries or holder.caches:
            _queues[-1].settle(holder)
    return packed, failed, *worker.take_seconds()


def _load_and_call(worker: ProcessWorker, call: bytes) -> bytes:
    worker.fn, args, kwargs = pickling.load_call(call)
    current_holder().task = worker.fn
    return pickling.dump_result(_dumps, worker.fn, worker.fn(*args, **kwargs))


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
