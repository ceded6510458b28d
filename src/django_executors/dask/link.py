"""Between an executor and a cluster: one client of Dask's, and the thread that settles its futures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import multiprocessing
import os
import queue
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import distributed.utils
from distributed import Future as DaskFuture

from django_executors.clock import Clock
from django_executors.execution import pickling, portable
from django_executors.execution.remotefuture import Outcome
from django_executors.execution.remotework import is_alive
from django_executors.naming import task_name

from . import setup, worker
from .pickles import dumps, loads
from .place import Connected
from .work import ClusterFuture, ClusterWork

R = TypeVar("R")

#: The most bytes of tasks that are sent in one message: Dask warns of large ones.
_BATCH = 1_000_000

_numbers = itertools.count()


class Link:
    """One client of Dask's. Its event loop is in a thread of Dask's; futures are settled in `thread`.

    A future is in `_futures` until whoever takes it out settles it, or has it cancelled.
    """

    def __init__(
        self,
        work: ClusterWork,
        connect: Callable[[], Connected],
        used: setup.Used | None,
    ) -> None:
        if _exits.is_set():
            raise RuntimeError(_TOO_LATE)
        self._work = work
        self._used = used
        self._topic = f"django_executors-{uuid.uuid4().hex}"
        # Reentrant: a generator that the collector finalizes may cancel what it has submitted.
        self._lock = threading.RLock()
        self._futures: dict[int, ClusterFuture[Any]] = {}  # guarded by _lock
        self._remotes: dict[int, DaskFuture[Any]] = {}  # guarded by _lock
        self._to_send: deque[tuple[int, str, bytes]] = deque()  # guarded by _lock
        #: A task's number, and its report, or an error; None: it has begun.
        self._news: queue.SimpleQueue[tuple[int, bytes | BaseException | None] | None]
        self._news = queue.SimpleQueue()
        self._following: set[asyncio.Task[None]] = set()
        self._ends = False
        self._client, self._cluster = connect()
        self._loop: Any = self._client.loop
        self._plugin: str | None = None
        try:
            if used is not None:
                self._plugin = setup.register(self._client, used, work.name)
            self._client.subscribe_topic(self._topic, self._note_begun)
        except BaseException:
            self._close()
            raise
        self._comm = self._client.scheduler_comm
        self.thread = threading.Thread(target=self._settle_all, name=work.name, daemon=True)
        self.thread.start()
        work.add(self)
        _all.add(self)
        if _exits.is_set():  # and did not know of this one
            self.end()
            self.thread.join()
            raise RuntimeError(_TOO_LATE)

    def is_for(self, used: setup.Used | None) -> bool:
        """Say whether the cluster is there, and was set up so."""
        client = self._client
        is_connected = client.status == "running" and client.scheduler_comm is self._comm
        return is_connected and used == self._used

    def submit(self, fn: Callable[..., R], args: Any, kwargs: Mapping[str, Any]) -> ClusterFuture[R]:
        """Send this call to the cluster."""
        future: ClusterFuture[R] = ClusterFuture()
        future.link, future.work, future.number = self, self._work, next(_numbers)
        future.fn, future.queued_at = fn, Clock.monotonic()
        error: Exception | None = None
        packed = b""
        try:
            call = dumps((fn, args, kwargs))
            packed = dumps((self._topic, future.number, self._plugin, portable.pack(), call))
        except Exception as found:  # noqa: BLE001 - of whatever class
            error = pickling.of_call(found, dumps, fn, args, kwargs)
        with self._lock:
            if self._ends:
                raise RuntimeError(_TOO_LATE)
            self._work.note_submitted(future)
            self._futures[future.number] = future
            if error is not None:
                self._news.put((future.number, error))
            else:
                self._to_send.append((future.number, task_name(fn), packed))
                if len(self._to_send) == 1:
                    self._loop.add_callback(self._send)
        return future

    def drop(self, future: ClusterFuture[Any]) -> None:
        """It was cancelled: have the scheduler forget its task."""
        with self._lock:
            if self._futures.pop(future.number, None) is None:
                return
            future.set_running_or_notify_cancel()  # or `wait` and `as_completed` sleep on
            remote = self._remotes.pop(future.number, None)
        if remote is not None:
            remote.release()
        self._news.put(None)

    def end(self) -> None:
        """Take no more tasks, and have the thread end when all are settled."""
        with self._lock:
            self._ends = True
        self._news.put(None)

    def retire(self) -> None:
        """In a forked child: all of it is the parent's, and nothing is closed here."""
        _of_parents.append((self._client, self._cluster))
        if self._cluster is not None:
            # Private names, of Dask's and multiprocessing's: what is in them is ended at exit.
            type(self._cluster)._instances.discard(self._cluster)
            vars(multiprocessing.process)["_children"].clear()

    def _send(self) -> None:
        """In the event loop: send what was submitted."""
        found: list[tuple[int, str, bytes]] = []
        size = 0
        with self._lock:
            while self._to_send and size < _BATCH:
                found.append(self._to_send.popleft())
                size += len(found[-1][-1])
            if self._to_send:
                self._loop.add_callback(self._send)
            found = [each for each in found if each[0] in self._futures]
        if not found:
            return
        numbers, names, packed = zip(*found, strict=True)
        keys = [f"{name}-{uuid.uuid4()}" for name in names]
        try:
            remotes = self._client.map(worker.run, packed, key=keys, pure=False)
        except Exception as error:  # noqa: BLE001 - the client is closed
            for number in numbers:
                self._news.put((number, error))
            return
        for number, remote in zip(numbers, remotes, strict=True):
            with self._lock:
                if number not in self._futures:
                    continue
                self._remotes[number] = remote
            task = asyncio.ensure_future(self._follow(number, remote))
            self._following.add(task)
            task.add_done_callback(self._following.discard)

    async def _follow(self, number: int, remote: DaskFuture[Any]) -> None:
        found: bytes | BaseException
        try:
            found = await self._client.gather(remote, asynchronous=True)
        except BaseException as error:  # noqa: BLE001 - it is the future's
            found = error
        self._news.put((number, found))

    def _note_begun(self, event: tuple[float, list[int]]) -> None:
        for number in event[1]:
            self._news.put((number, None))

    def _settle_all(self) -> None:
        while self._futures or not self._ends:
            if (news := self._news.get()) is not None:
                self._note(*news)
            del news
        self._close()

    def _note(self, number: int, found: bytes | BaseException | None) -> None:
        with self._lock:
            future = self._futures.get(number)
            if future is None:
                return
            is_cancelled = not future.running() and not future.set_running_or_notify_cancel()
            if is_cancelled or found is not None:
                del self._futures[number]
                self._remotes.pop(number, None)
        if found is None or is_cancelled:
            return
        if isinstance(found, bytes):
            future.set_result(self._outcome(future, found))
        else:
            future.set_exception(_told(found, task_name(future.fn)))

    def _outcome(self, future: ClusterFuture[Any], packed: bytes) -> Outcome:
        report: worker.Report = loads(packed)
        pickled, failed, run_seconds, counts = report
        for what, count in counts.items():
            for _ in range(count):
                self._work.connections.add(what)
        queue_seconds = max(0.0, Clock.monotonic() - future.queued_at - run_seconds)
        return pickled, failed, queue_seconds, run_seconds

    def _close(self) -> None:
        try:
            self._client.close()
        finally:
            if self._cluster is not None:
                self._cluster.close()


def _told(error: BaseException, name: str) -> BaseException:
    """Return what Dask has raised as an error of a future's."""
    if not isinstance(error, concurrent.futures.CancelledError | asyncio.CancelledError):
        return error
    told = concurrent.futures.BrokenExecutor(f"the cluster has lost task={name}: {error}")
    told.__cause__ = error
    return told


#: Those whose threads have not ended.
_all: weakref.WeakSet[Link] = weakref.WeakSet()
#: Clients and clusters.
_of_parents: list[object] = []


#: Set when the interpreter exits.
_exits = threading.Event()
_TOO_LATE = "cannot schedule new futures after interpreter shutdown"


def _at_exit() -> None:
    _exits.set()
    links = [link for link in _all if is_alive(link.thread)]
    for link in links:
        link.end()
    for link in links:
        link.thread.join()


# A private name of the standard library's, which its own executors use: before its threads refuse work.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]


def _after_fork_in_child() -> None:
    _all.clear()
    # A private name of Dask's: its thread is not here, and its scheduler would wait for it for ever.
    vars(distributed.utils)["_offload_executor"] = concurrent.futures.ThreadPoolExecutor(1)


os.register_at_fork(after_in_child=_after_fork_in_child)
