"""An executor on a Dask cluster. It needs the extra `dask`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import multiprocessing
import os
import pickle
import queue
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from django.conf import settings
from django.db import connections

from . import remote
from .arguments import check_count, check_seconds
from .base import follow
from .clock import Clock
from .connections import release
from .connections.ledger import Holder, next_serial
from .exceptions import ExecutorError
from .immediate import InCallersThreads
from .remote import RemoteBooks, RemoteExecutor, Report, Setup

try:
    import cloudpickle
    import distributed
    import distributed.utils
    from distributed.comm.addressing import get_address_host_port
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"distributed", "cloudpickle"}:
        raise
    raise ImportError(
        'DaskExecutor needs Dask: python -m pip install "django-executors[dask]"', name=error.name
    ) from error

logger = logging.getLogger(__name__)

_numbers = itertools.count()

#: The most bytes of tasks that are sent in one message: Dask warns of large ones.
_BATCH = 1_000_000

#: For how many seconds a task has run when its submitter is told: most have ended before, which spares
#: a message.
_PAUSE = 0.01

#: For how many seconds a task of an own cluster waits when all workers have died, and none comes back.
_NO_WORKERS_TIMEOUT = 30.0

_TOO_LATE = "cannot schedule new futures after interpreter shutdown"


def _dumps(value: Any) -> bytes:
    """Pickle this; what is in no module that a worker could import, such as a lambda, by its code."""
    try:
        found = pickle.dumps(value)
    except Exception:  # noqa: BLE001 - of whatever class
        pass
    else:
        if b"__main__" not in found:  # which is another module there
            return found
    by_code: bytes = cloudpickle.dumps(value)
    return by_code


class DaskExecutor(RemoteExecutor):
    """Run calls on a Dask cluster, on as many machines as it has.

    When you would want it: one machine is not enough, or a cluster is there. For one machine a
    `ProcessPoolExecutor` is faster, and needs no scheduler.

    What is true of a `ProcessPoolExecutor` is true here: arguments are pickled in the submitter's
    thread, Django is set up in each worker, by this process's settings module and on its databases,
    before anything of the tasks' is unpickled, and a task has its submitter's language, time zone,
    URLconf and script prefix. Passwords do not travel: a worker takes them from its own settings. What a
    task opened, on every alias, is closed before its future resolves, but for `conn_max_idle`.
    Done-callbacks run in one thread of this process's, and what they open is closed there.

    What is different: when a worker dies, or is retired, Dask runs its tasks again on another one. So
    **a task may run twice**, perhaps at the same time, and so may one whose result was in that worker's
    memory. The future of a task whose workers died some times in a row gets
    `distributed.KilledWorker`. While a cluster has no worker at all, tasks
    wait for one: as long as the scheduler's setting `distributed.scheduler.no-workers-timeout` says, by
    default for ever; 30 seconds on a cluster of one's own.

    Nothing connects, and no process starts, before the first `submit`. When the connection to the
    scheduler is lost, each future gets a `BrokenExecutor`, and the next `submit` connects anew.

    Args:
        address: of the scheduler, as in "tcp://10.0.0.1:8786". Default None: a cluster of this
            process's own, on this machine's loopback interface, which ends with the executor.
        security: a `distributed.Security`, or a dict of its arguments: TLS. Without it, whoever
            reaches the scheduler, or a worker, runs code there.
        n_workers: worker processes of the own cluster; default: by the number of processors.
        threads_per_worker: threads of each; default: by the number of processors.
        dashboard_address: where the own cluster shows Dask's dashboard, as in "127.0.0.1:8787", which
            needs `bokeh`. Default None: nowhere.
        conn_max_idle: for how many seconds each thread of a worker may keep its connections between two
            tasks, as in `ThreadPoolExecutor`. Default 0.0: only for as long as a task runs.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a number is below 1, conn_max_idle is below 0, or what is for an own cluster is given
            with an address.
    """

    _dumps = staticmethod(_dumps)

    def __init__(
        self,
        address: str | None = None,
        *,
        security: distributed.Security | Mapping[str, Any] | None = None,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        dashboard_address: str | None = None,
        conn_max_idle: float = 0.0,
    ) -> None:
        own = {
            "n_workers": n_workers,
            "threads_per_worker": threads_per_worker,
            "dashboard_address": dashboard_address,
        }
        if address is not None:
            _check_address(address)
            for name, value in own.items():
                if value is not None:
                    raise ValueError(f"{name}={value!r} is for an own cluster, without an address")
        check_count("n_workers", n_workers)
        check_count("threads_per_worker", threads_per_worker)
        if not isinstance(dashboard_address, str | None):
            raise TypeError(
                f"dashboard_address must be a string, as in '127.0.0.1:8787', not {dashboard_address!r}"
            )
        self._address = address
        self._own = own
        self._security = _security(security)
        self._conn_max_idle = check_seconds("conn_max_idle", conn_max_idle)
        self._name = f"DaskExecutor-{next(_numbers)}"
        self._begin_anew()

    def _begin_anew(self) -> None:
        # Reentrant: a signal's handler may shut it down.
        self._lock = threading.RLock()
        self._links: list[_Link] = []  # the last one takes tasks, if it does
        self._books = _Books(self._name, weakref.ref(self), self._links)
        self._in_callers_threads = InCallersThreads(
            self._books, None, (), inherit_context=True, broken=concurrent.futures.BrokenExecutor
        )
        weakref.finalize(self, _end_all, self._links).atexit = False
        follow(self, self._books)

    def _send(self, setup: Setup | None, name: str, packed: bytes) -> Any:
        """Send a call to the cluster, and connect to it before the first one.

        Raises:
            RuntimeError: while the interpreter exits, or without an address in a daemonic process.
            OSError: nobody listens at the address, for as long as Dask's setting
                `distributed.comm.timeouts.connect` says.
        """
        with self._lock:
            self._check_shutdown()
            if not self._links or not self._links[-1].is_for(setup):
                _end_all(self._links)
                link = _Link(self._books.name, *self._connect(), setup)
                self._links[:] = [*filter(_Link.is_alive, self._links), link]
                self._check_shutdown()
            return self._links[-1].send(name, self._books.name, self._conn_max_idle, packed)

    def _check_shutdown(self) -> None:
        if self._is_shut_down:
            _end_all(self._links)
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _end(self) -> None:
        with self._lock:  # a `submit` may have it that connects
            _end_all(self._links)
        for link in list(self._links):
            link.thread.join()

    def _connect(self) -> tuple[distributed.Client, distributed.LocalCluster | None]:
        """Return a client of the cluster, which is started if it is an own one."""
        if _exits.is_set():
            raise RuntimeError(_TOO_LATE)
        cluster = None if self._address is not None else self._start()
        try:
            client = _Client(cluster or self._address, security=self._security, set_as_default=False)
        except BaseException:
            if cluster is not None:
                cluster.close()
            raise
        return client, cluster

    def _start(self) -> distributed.LocalCluster:
        remote.check_may_start_processes()
        dashboard = self._own["dashboard_address"]
        # Dask has a server for its metrics there even without a dashboard: at whatever port is free.
        own: dict[str, Any] = {**self._own, "dashboard_address": dashboard or "127.0.0.1:0"}
        try:
            cluster = distributed.LocalCluster(
                host="127.0.0.1",
                security=self._security,
                name=self._books.name,
                scheduler_kwargs={"dashboard": dashboard is not None},
                **own,
            )
        except RuntimeError as error:
            raise RuntimeError(
                f"the own cluster did not start: {error} Its workers import the main module: has it the "
                'line `if __name__ == "__main__":`?'
            ) from error
        scheduler: Any = cluster.scheduler
        scheduler.no_workers_timeout = _NO_WORKERS_TIMEOUT
        return cluster


class _Client(distributed.Client):
    """One whose thread ends, where it cannot be made too, or loses its scheduler while it is closed.

    That thread would stay, and at exit the process would wait for ever.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        except BaseException:
            self.close()
            raise

    def close(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().close(*args, **kwargs)  # type: ignore[no-untyped-call]
        except Exception:
            logger.debug("client=%s was closed without its scheduler", self.id, exc_info=True)
        finally:
            # A private name of Dask's: where nobody listens, it is closed, and its thread runs.
            if (runner := vars(self).get("_loop_runner")) is not None:
                runner.stop()


def _check_address(address: object) -> None:
    expected = "address must be a string, as in 'tcp://10.0.0.1:8786', or None, not"
    if not isinstance(address, str):
        raise TypeError(f"{expected} {address!r}")
    try:
        get_address_host_port(address)
    except ValueError as error:
        raise ValueError(f"{expected} {address!r}: {error}") from None


def _security(found: object) -> distributed.Security | None:
    if found is None or isinstance(found, distributed.Security):
        return found
    if not isinstance(found, Mapping):
        raise TypeError(
            f"security must be a distributed.Security, a dict of its arguments, or None, not {found!r}"
        )
    if unknown := found.keys() - {*distributed.Security.__slots__}:
        raise TypeError(
            f"security has the unknown key {', '.join(map(repr, sorted(unknown)))}: it takes "
            f"{', '.join(map(repr, distributed.Security.__slots__))}"
        )
    return distributed.Security(**found)


# Between an executor and a cluster.


class _Link:
    """One client of Dask's. Its event loop is in a thread of Dask's; futures are settled in `thread`."""

    def __init__(
        self,
        name: str,
        client: distributed.Client,
        cluster: distributed.LocalCluster | None,
        setup: Setup | None,
    ) -> None:
        self._client, self._cluster, self._setup = client, cluster, setup
        self._comm = client.scheduler_comm
        self._loop: Any = client.loop
        self._topic = f"django_executors-{client.id}"
        # Reentrant: a generator that the collector finalizes may cancel what it has submitted.
        self._lock = threading.RLock()
        #: The reports that are awaited, by the key of Dask's task; and Dask's own futures.
        self._awaited: dict[str, concurrent.futures.Future[Report]] = {}  # guarded by _lock
        self._remotes: dict[str, distributed.Future[Any]] = {}  # guarded by _lock
        self._to_send: deque[tuple[str, bytes]] = deque()  # guarded by _lock
        #: A task's key and its report, or an error; None: it has begun.
        self._news: queue.SimpleQueue[tuple[str, Report | BaseException | None] | None]
        self._news = queue.SimpleQueue()
        self._following: set[asyncio.Task[None]] = set()
        self._ends = False
        try:
            client.subscribe_topic(self._topic, self._begun)
        except BaseException:
            self._close()
            raise
        self.thread = threading.Thread(target=self._settle_all, name=name, daemon=True)
        self.thread.start()
        _all.add(self)
        if _exits.is_set():  # and did not know of this one
            self.end()
            self.thread.join()
            raise RuntimeError(_TOO_LATE)

    def is_for(self, setup: Setup | None) -> bool:
        """Say whether the cluster is there, and its workers are set up so."""
        client = self._client
        is_connected = client.status == "running" and client.scheduler_comm is self._comm
        return is_connected and setup == self._setup and not self._ends

    def is_alive(self) -> bool:
        # On Python 3.11 and 3.12, a thread whose `join` was interrupted, as by Ctrl-C, says it is not.
        return self.thread.is_alive() or self.thread in threading.enumerate()

    def send(
        self, name: str, executor: str, conn_max_idle: float, packed: bytes
    ) -> concurrent.futures.Future[Report]:
        """Send this call to the cluster."""
        cluster = self._cluster
        if cluster is not None and len(cluster.workers) < len(cluster.worker_spec):
            # One that was long absent when its time was over: Dask forgets it, and starts no other.
            cluster.scale(len(cluster.worker_spec))
        key = f"{name}-{uuid.uuid4()}"
        report: concurrent.futures.Future[Report] = concurrent.futures.Future()
        call = pickle.dumps(_Call(self._topic, executor, conn_max_idle, packed))
        with self._lock:
            if self._ends:
                raise RuntimeError(_TOO_LATE)
            self._awaited[key] = report
            self._to_send.append((key, call))
            if len(self._to_send) == 1:
                self._loop.add_callback(self._send)
        report.add_done_callback(lambda report: self._drop(key) if report.cancelled() else None)
        return report

    def _drop(self, key: str) -> None:
        """It was cancelled: have the scheduler forget its task."""
        with self._lock:
            self._awaited.pop(key, None)
            remote_future = self._remotes.pop(key, None)
        if remote_future is not None:
            remote_future.release()
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
        found: list[tuple[str, bytes]] = []
        size = 0
        with self._lock:
            while self._to_send and size < _BATCH:
                found.append(self._to_send.popleft())
                size += len(found[-1][-1])
            if self._to_send:
                self._loop.add_callback(self._send)
            found = [each for each in found if each[0] in self._awaited]
        if not found:
            return
        keys, calls = map(list, zip(*found, strict=True))
        try:
            remotes = self._client.map(pickle.loads, calls, key=keys, pure=False)
        except Exception as error:  # noqa: BLE001 - the client is closed
            for key in keys:
                self._news.put((key, error))
            return
        for key, remote_future in zip(keys, remotes, strict=True):
            with self._lock:
                if key not in self._awaited:
                    continue
                self._remotes[key] = remote_future
            task = asyncio.ensure_future(self._follow(key, remote_future))
            self._following.add(task)
            task.add_done_callback(self._following.discard)

    async def _follow(self, key: str, remote_future: distributed.Future[Any]) -> None:
        found: Report | BaseException
        try:
            found = await self._client.gather(remote_future, asynchronous=True)
        except BaseException as error:  # noqa: BLE001 - it is the future's
            found = error
        self._news.put((key, found))

    def _begun(self, event: tuple[float, str]) -> None:
        self._news.put((event[1], None))

    def _settle_all(self) -> None:
        while self._awaited or not self._ends:
            if (news := self._news.get()) is not None:
                self._settle(*news)
            del news
        self._close()

    def _settle(self, key: str, found: Report | BaseException | None) -> None:
        with self._lock:
            report = self._awaited.get(key)
            if report is None:
                return
            is_running = report.running() or report.set_running_or_notify_cancel()
            if found is not None or not is_running:
                del self._awaited[key]
            if found is not None:
                self._remotes.pop(key, None)
        if found is None or not is_running:
            return
        if not isinstance(found, BaseException):
            report.set_result(found)
            return
        if isinstance(found, concurrent.futures.CancelledError | asyncio.CancelledError):
            lost = concurrent.futures.BrokenExecutor(f"the cluster has lost task={key}: {found}")
            lost.__cause__, found = found, lost
        report.set_exception(found)

    def _close(self) -> None:
        try:
            self._client.close()
        finally:
            if self._cluster is not None:
                self._cluster.close()


class _Books(RemoteBooks):
    """What an executor has to do on a cluster."""

    def __init__(self, name: str, executor: Callable[[], Any], links: list[_Link]) -> None:
        super().__init__(name, executor)
        self._links = links

    def retire(self) -> None:
        super().retire()
        for link in self._links:
            link.retire()


def _end_all(links: list[_Link]) -> None:
    for link in links:
        link.end()


#: Those whose threads have not ended.
_all: weakref.WeakSet[_Link] = weakref.WeakSet()
#: Clients and clusters.
_of_parents: list[object] = []

#: Set when the interpreter exits.
_exits = threading.Event()


def _at_exit() -> None:
    _exits.set()
    links = [link for link in _all if link.is_alive()]
    _end_all(links)
    for link in links:
        link.thread.join()


# A private name of the standard library's, which its own executors use: before its threads refuse work.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]


def _after_fork_in_child() -> None:
    _all.clear()
    # A private name of Dask's: its thread is not here, and its scheduler would wait for it for ever.
    vars(distributed.utils)["_offload_executor"] = concurrent.futures.ThreadPoolExecutor(1)


os.register_at_fork(after_in_child=_after_fork_in_child)


# In a worker of the cluster.


class _Worker(remote.Worker):
    """One thread of a worker of a cluster, which runs other tasks too."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._address = address
        self._since = 0
        self._conn_max_idle = 0.0
        self._foreign: list[Any] = []

    def begin(self, executor: str, conn_max_idle: float) -> None:
        """What is opened from now on is a task's; what others have open in this thread is put aside."""
        self.holder.become_worker(executor, self._counts)
        self._since, self._conn_max_idle = next_serial(), conn_max_idle
        for wrapper in connections.all(initialized_only=True) if settings.configured else ():
            if wrapper.connection is not None:
                self._foreign.append(wrapper)
                del connections[wrapper.alias]

    def end(self) -> None:
        self.holder.become_worker(None, None)
        while self._foreign:
            wrapper = self._foreign.pop()
            connections[wrapper.alias] = wrapper

    def prepare(self, setup: Setup | None) -> None:
        try:
            remote.set_up(setup, may_move=False)
        except Exception as error:
            raise ExecutorError(
                f"the worker {self._address} could not be set up for Django: {error}"
            ) from error

    def settle(self, *, interrupted: bool = False) -> None:
        holder = self.holder
        keep = self._conn_max_idle > 0 and not self._foreign and not release.is_limited(holder)
        release.settle(holder, keep=keep, interrupted=interrupted, since=self._since)
        if (until := release.kept_until(holder, self._conn_max_idle)) is not None:
            _reaper.close_at(until, holder)


_local = threading.local()


class _Call:
    """Runs when it is unpickled: a worker without this library fails its task, and not itself."""

    def __init__(self, *arguments: object) -> None:
        self._arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Report], tuple[object, ...]]:
        return _run, self._arguments


def _run(topic: str, executor: str, conn_max_idle: float, packed: bytes) -> Report:
    """Run one task in the calling thread."""
    dask_worker = distributed.get_worker()
    key = dask_worker.get_current_task()
    if not hasattr(_local, "worker"):
        _local.worker = _Worker(dask_worker.address)
    worker: _Worker = _local.worker
    worker.begin(executor, conn_max_idle)
    running = {key}

    def tell() -> None:
        if running:
            dask_worker.log_event(topic, key)

    dask_worker.loop.add_callback(dask_worker.loop.call_later, _PAUSE, tell)
    try:
        return worker.run(packed, _dumps)
    finally:
        running.clear()
        worker.end()


class _Reaper:
    """Closes what threads keep that get no task any more: one thread for all of a process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[Holder, float] = {}  # guarded by _changed
        self._thread: threading.Thread | None = None

    def close_at(self, until: float, holder: Holder) -> None:
        """Close what this thread then keeps since before."""
        with self._changed:
            self._due[holder] = until
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="django-executors", daemon=True)
                self._thread.start()
            elif until <= min(self._due.values()):
                self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while True:
                until = min(self._due.values(), default=None)
                now = Clock.monotonic()
                if until is None or until > now:
                    self._changed.wait(None if until is None else until - now)
                    continue
                for holder in [each for each, due in self._due.items() if due <= now]:
                    del self._due[holder]
                    release.close_parked(holder)


_reaper = _Reaper()
