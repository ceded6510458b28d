"""The ways to run tasks that are compared."""

import concurrent.futures
import importlib.util
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import distributed
from django.db import close_old_connections, connection, connections

import django_executors
from django_executors.dask import DaskExecutor

from . import processes

Pool = concurrent.futures.ThreadPoolExecutor
PROCESSES = 2


class RecipeExecutor(Pool):
    """The standard pool with the usual recipes, around each task."""

    def __init__(
        self,
        *arguments: Any,
        before: Callable[[], None] | None = None,
        after: Callable[[], None],
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._before = before
        self._after = after

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        def task() -> Any:
            if self._before is not None:
                self._before()
            try:
                return fn(*args, **kwargs)
            finally:
                self._after()

        return super().submit(task)


def close_after(*arguments: Any, **options: Any) -> Pool:
    # Looked up at each call: `connection` is whatever the thread's is.
    return RecipeExecutor(*arguments, after=lambda: connection.close(), **options)


def close_old(*arguments: Any, **options: Any) -> Pool:
    return RecipeExecutor(
        *arguments, before=close_old_connections, after=close_old_connections, **options
    )


def fresh_session(*arguments: Any, **options: Any) -> Pool:
    return RecipeExecutor(*arguments, after=discard_all, **options)


def discard_all() -> None:
    # By libpq alone: neither psycopg nor Django adds to it.
    connection.connection.pgconn.exec_(b"DISCARD ALL")


def django_thread(*arguments: Any, **options: Any) -> Pool:
    import django_thread

    pool: Pool = django_thread.ThreadPoolExecutor(*arguments, **options)
    return pool


def ours_idle(*arguments: Any, **options: Any) -> Pool:
    return django_executors.ThreadPoolExecutor(*arguments, conn_max_idle=5.0, **options)


def standard_processes(warm: Any, end: Any) -> concurrent.futures.Executor:
    """A pool of processes that Django is set up in by hand, with the database in use."""
    return concurrent.futures.ProcessPoolExecutor(
        PROCESSES,
        multiprocessing.get_context("forkserver"),
        processes.set_up_by_hand_and_keep,
        (connections["default"].settings_dict, warm, end),
    )


def our_processes(warm: Any, end: Any) -> concurrent.futures.Executor:
    database = connections["default"].settings_dict
    return django_executors.ProcessPoolExecutor(
        PROCESSES, None, processes.use_and_keep, (database, warm, end)
    )


class BareDask(concurrent.futures.Executor):
    """A client of Dask's, on a cluster in which Django is set up by hand."""

    def __init__(self) -> None:
        self._cluster = distributed.LocalCluster(
            n_workers=PROCESSES, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        )
        self._client = distributed.Client(self._cluster)
        self._client.run(processes.set_up_by_hand, connections["default"].settings_dict)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return self._client.submit(fn, *args, **kwargs, pure=False)

    def results(self, futures: list[Any]) -> list[Any]:
        """Return them as one does with Dask: all at once."""
        results: list[Any] = self._client.gather(futures)
        return results

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._client.close()
        self._cluster.close()


def our_dask() -> concurrent.futures.Executor:
    return DaskExecutor(n_workers=PROCESSES, threads_per_worker=1)


def our_dask_idle() -> concurrent.futures.Executor:
    return DaskExecutor(n_workers=PROCESSES, threads_per_worker=1, conn_max_idle=5)


@dataclass(frozen=True)
class Contestant:
    """One way.

    Attributes:
        key: its name on the command line.
        title: its name in tables and pictures.
        make: makes the pool; takes what the standard pool's constructor takes. One of processes takes
            the two barriers of the warm-up, one of a cluster nothing.
        colour: the name of its colour in `drawing`.
        conn_max_age: the setting CONN_MAX_AGE that it runs with.
        one_at_a_time: makes no difference, and is left out, where tasks are always queued.
        servers: the keys of those that it makes sense on; if empty, all.
        place: where its workers are: "threads", "processes" or "cluster".
        closes: each of its tasks ends with `connection.close()`.
    """

    key: str
    title: str
    make: Callable[..., concurrent.futures.Executor]
    colour: str
    conn_max_age: int = 0
    one_at_a_time: bool = False
    servers: tuple[str, ...] = ()
    place: str = "threads"
    closes: bool = False


LEAKING = Contestant("leaks", "standard pool, leaking", Pool, "standard")
# What a fresh session costs at the least, since no server gives one without being asked. Not through a
# pooler, where it would hit the sessions of other clients.
FLOOR = Contestant(
    "floor", "floor, leaking and DISCARD ALL", fresh_session, "standard", servers=("tcp", "socket")
)
CLOSING = Contestant("close", "connection.close() after", close_after, "recipe")
OURS = Contestant("ours", "django-executors", django_executors.ThreadPoolExecutor, "ours")
OURS_60 = Contestant(
    "ours-60", "django-executors, CONN_MAX_AGE = 60", django_executors.ThreadPoolExecutor, "ours", 60
)
OURS_IDLE = Contestant("idle", "django-executors, conn_max_idle = 5", ours_idle, "ours")
OURS_IDLE_60 = Contestant(
    "idle-60",
    "django-executors, conn_max_idle = 5, CONN_MAX_AGE = 60",
    ours_idle,
    "ours",
    60,
    one_at_a_time=True,
)

PROCESSES_STANDARD = Contestant(
    "processes", "standard processes, leaking", standard_processes, "standard", place="processes"
)
PROCESSES_OURS = Contestant(
    "processes-ours", "django-executors, processes", our_processes, "ours", place="processes"
)
PROCESSES_OURS_60 = Contestant(
    "processes-ours-60",
    "django-executors, processes, CONN_MAX_AGE = 60",
    our_processes,
    "ours",
    60,
    place="processes",
)

CLUSTER_BARE = Contestant("cluster", "bare Dask client, leaking", BareDask, "standard", place="cluster")
CLUSTER_OURS = Contestant("cluster-ours", "django-executors, Dask", our_dask, "ours", place="cluster")
CLUSTER_OURS_IDLE = Contestant(
    "cluster-ours-idle",
    "django-executors, Dask, conn_max_idle = 5",
    our_dask_idle,
    "ours",
    servers=("tcp",),
    place="cluster",
)

CONTESTANTS = (
    LEAKING,
    FLOOR,
    CLOSING,
    Contestant("old", "close_old_connections", close_old, "recipe"),
    Contestant("old-60", "close_old_connections, CONN_MAX_AGE = 60", close_old, "recipe", 60),
    Contestant("thread", "django-thread", django_thread, "recipe"),
    Contestant("thread-60", "django-thread, CONN_MAX_AGE = 60", django_thread, "recipe", 60),
    OURS,
    OURS_60,
    OURS_IDLE,
    OURS_IDLE_60,
    PROCESSES_STANDARD,
    Contestant(
        "processes-close",
        "connection.close() after, processes",
        standard_processes,
        "recipe",
        servers=("tcp",),
        place="processes",
        closes=True,
    ),
    PROCESSES_OURS,
    PROCESSES_OURS_60,
    CLUSTER_BARE,
    Contestant(
        "cluster-close",
        "connection.close() after, Dask",
        BareDask,
        "recipe",
        servers=("tcp",),
        place="cluster",
        closes=True,
    ),
    CLUSTER_OURS,
    CLUSTER_OURS_IDLE,
)
# Parts of the benchmark in which not all of a place are compared.
CHOSEN = {"cpu": (LEAKING, FLOOR, OURS, OURS_60), "pools": (CLOSING, OURS)}


def of_part(part: str) -> Sequence[Contestant]:
    """Return those that are compared in this part of the benchmark."""
    return CHOSEN.get(part) or [each for each in CONTESTANTS if each.place == part]


def missing() -> dict[str, str]:
    """What is not installed, by contestant, and the command that mends it."""
    if importlib.util.find_spec("django_thread"):
        return {}
    why = "it is not installed: run `pip install django-thread`"
    return {each.title: why for each in CONTESTANTS if each.make is django_thread}
