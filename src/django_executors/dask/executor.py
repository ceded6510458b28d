"""The executor whose workers are those of a Dask cluster."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import distributed

from django_executors.arguments import check_timeout
from django_executors.base import Executor, ExecutorStats, follow, notice_fork, warn_if_in_atomic
from django_executors.clock import Clock
from django_executors.connections.ledger import current_holder
from django_executors.immediate import InCallersThreads, is_inline

from . import setup
from .link import Link
from .place import Connected, Place
from .work import ClusterWork

P = ParamSpec("P")
R = TypeVar("R")

_numbers = itertools.count()


class DaskExecutor(Executor):
    """Run calls on a Dask cluster, on as many machines as it has.

    When you would want it: one machine is not enough, or a cluster is there. For one machine a
    `ProcessPoolExecutor` is faster, and needs no scheduler.

    What is true of a `ProcessPoolExecutor` is true here: what travels is pickled, Django is set up in
    each worker, with the databases that this process uses, before anything of the tasks' is unpickled,
    and a task has its submitter's language, time zone, URLconf and script prefix, and those contextvars
    that are a module's attribute and whose value can be pickled. Passwords do not travel: a worker
    takes them from its own settings. What a task opened, on every alias, is closed before its future
    resolves. Done-callbacks run in one thread of this process's, and what they open is closed there.

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

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a number is below 1, or what is for an own cluster is given with an address.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        security: distributed.Security | Mapping[str, Any] | None = None,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        dashboard_address: str | None = None,
    ) -> None:
        own = {
            "n_workers": n_workers,
            "threads_per_worker": threads_per_worker,
            "dashboard_address": dashboard_address,
        }
        self._place = Place(address, security, own)
        self._name = f"DaskExecutor-{next(_numbers)}"
        self._begin_anew()

    def _begin_anew(self) -> None:
        # Reentrant: a signal's handler may shut it down.
        self._lock = threading.RLock()
        self._link: Link | None = None
        self._work = ClusterWork(self._name)
        self._in_callers_threads = InCallersThreads(
            self._work, None, (), inherit_context=True, broken=concurrent.futures.BrokenExecutor
        )
        weakref.finalize(self, self._work.end).atexit = False
        follow(self, self._work)

    def submit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[R]:
        """Send `fn(*args, **kwargs)` to the cluster and return its future.

        The call runs once for each `submit`, whatever its arguments, unless a worker dies or is retired.
        The first one waits for the cluster to be there. What cannot be pickled, an argument or the
        result, is named by the `PicklingError` that the future gets. A task counts as running when its
        worker has said so, some 10 ms after it began; one that is cancelled in that moment runs all the
        same.

        Raises:
            RuntimeError: after `shutdown`, while the interpreter exits, or without an address in a
                daemonic process.
            OSError: nobody listens at the address, for as long as Dask's setting
                `distributed.comm.timeouts.connect` says.
            ExecutorError: no worker can be set up: it has not the project's code, was set up with other
                settings or databases, or has no password for one. Where some can, a WARNING says which
                cannot, and this is the error of each task that comes to one.
            ImproperlyConfigured: a database is in this process's memory, where no other can see it.
        """
        notice_fork()
        if (holder := current_holder()).entries and not is_inline():
            warn_if_in_atomic(holder, fn)
        if is_inline():
            return self._submit_inline(fn, (fn, args, kwargs))  # type: ignore[no-any-return]
        used = setup.used_here()
        with self._lock:
            self._check_shutdown()
            link = self._link
            if link is None or not link.is_for(used):
                self._work.end()
                link = self._link = Link(self._work, self._connect, used)
                self._check_shutdown()
            return link.submit(fn, args, kwargs)

    def _check_shutdown(self) -> None:
        if self._is_shut_down:
            self._work.end()
            raise RuntimeError("cannot schedule new futures after shutdown")

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Refuse tasks from now on, as the standard classes do; with a timeout, return when it is over.

        At the timeout, tasks that have not begun are cancelled, and one ERROR record says what was left,
        as the thread pool's `shutdown` does it.

        Args:
            wait: return when all tasks have run, and the own cluster has ended.
            cancel_futures: cancel at once those that have not begun.
            timeout: for how many seconds to wait at most. Default None: as long as it takes.

        Raises:
            TypeError: timeout is no number.
            ValueError: timeout is below 0, or given together with `wait=False`.
        """
        seconds = check_timeout(timeout, wait=wait)
        deadline = None if seconds is None else Clock.monotonic() + seconds
        self._is_shut_down = True
        # A `submit` may have it that connects: it finds out by itself.
        if self._lock.acquire(wait, -1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)):
            self._lock.release()
        threads = [link.thread for link in self._work.links()]
        if cancel_futures and seconds is None:
            self._work.cancel_pending()
        self._work.end()
        if deadline is not None:
            seconds = max(0.0, deadline - Clock.monotonic())
            self._work.end_within(threads, seconds, cancel_at_once=cancel_futures)
        elif wait:
            for thread in threads:
                thread.join()

    def stats(self) -> ExecutorStats:
        """Return what was done so far, in numbers.

        Workers are the cluster's, and others use them too: each task that runs counts as one. Any
        thread may call this, at any time.
        """
        return self._work.stats()

    def _be_called(self, name: str) -> None:
        self._name = self._work.name = name

    def _connect(self) -> Connected:
        return self._place.connect(self._name)
