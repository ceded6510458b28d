"""What runs in a worker of a cluster."""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections import defaultdict
from typing import Any

from distributed import get_worker
from distributed.worker import Worker

from django_executors import context
from django_executors.clock import Clock
from django_executors.connections import caches
from django_executors.connections.ledger import ConnectionCounts, current_holder
from django_executors.connections.scope import connection_scope
from django_executors.execution import pickling, portable

from . import setup
from .pickles import dumps, loads

#: For how many seconds a task has run when its submitter is told: most have ended before, which spares
#: a message.
_PAUSE = 0.01

#: The pickled result or error, whether it is an error, for how many seconds the task ran, and how often
#: it opened, closed and so on a connection.
Report = tuple[bytes, bool, float, dict[str, int]]


class _Thread(threading.local):
    """A thread's own context, as it was before its first task."""

    def __init__(self) -> None:
        self.context: contextvars.Context = context.copy()
        self.context.run(caches.forget_all)


_of_thread = _Thread()


def run(packed: bytes) -> bytes:
    """Run one task in the calling thread, and let go of what it opened before its report is sent."""
    topic, number, name, carried, call = loads(packed)
    worker = get_worker()
    if name is not None:
        setup.ensure(name, worker.address)
    began = Clock.monotonic()
    holder = current_holder()
    counts = ConnectionCounts()
    notices = _notices_of(worker)
    notices.note_begun(topic, number)
    fn: Any = None
    failed = False
    try:
        with connection_scope():
            fn, args, kwargs = pickling.load_call(call)
            holder.run(fn, counts)
            inherited = portable.unpack(_of_thread.context, carried)
            try:
                pickled = inherited.run(_call, fn, args, kwargs)
            finally:
                context.end(holder)
    except BaseException as error:  # noqa: BLE001 - it is the future's
        failed = True
        with connection_scope():
            pickled = pickling.dump_error(dumps, fn, error)
    finally:
        holder.run(None)
        notices.note_ended(topic, number)
    report: Report = pickled, failed, Clock.monotonic() - began, dict(counts.read())
    return dumps(report)


def _call(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    return pickling.dump_result(dumps, fn, fn(*args, **kwargs))


class _Notices:
    """Tells submitters which of their tasks run in one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = weakref.ref(worker)
        self._untold: dict[tuple[str, int], None] = {}
        self._is_to_tell = False

    def note_begun(self, topic: str, number: int) -> None:
        self._untold[topic, number] = None
        worker = self._worker()
        if not self._is_to_tell and worker is not None:
            self._is_to_tell = True
            worker.loop.add_callback(worker.loop.call_later, _PAUSE, self._tell)

    def note_ended(self, topic: str, number: int) -> None:
        self._untold.pop((topic, number), None)

    def _tell(self) -> None:
        self._is_to_tell = False  # before they are read: one that begins now sees it, or is read
        untold, self._untold = self._untold, {}
        running = defaultdict(list)
        for topic, number in list(untold):
            running[topic].append(number)
        worker = self._worker()
        for topic, numbers in running.items():
            if worker is not None:
                worker.log_event(topic, numbers)


_notices: weakref.WeakKeyDictionary[Worker, _Notices] = weakref.WeakKeyDictionary()


def _notices_of(worker: Worker) -> _Notices:
    found = _notices.get(worker)
    return _notices.setdefault(worker, _Notices(worker)) if found is None else found
