"""One contestant, one workload, one server, once."""

import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Self

from . import processes
from .contestants import PROCESSES, BareDask, Contestant
from .models import empty_notes
from .project import let_go, use
from .servers import WORKERS, Server
from .workloads import Workload

PATIENCE = 120.0  # seconds, for anything that could hang
HEAD_START = 64  # tasks that are queued before a worker starts
NEW_POOL, JOBS = 20, 3  # the workers that a new pool may have, and the tasks that it gets


def measure(contestant: Contestant, workload: Workload, server: Server, tasks: int) -> float:
    """Return the seconds that one task took, or, in the part "cpu", the seconds of processor time.

    Steady state: the clock starts when each worker has run one task of this kind, and so has
    connected, and is about to end it. What is connected anew after that counts.

    Raises:
        WrongResultError: a task returned a wrong result.
    """
    use(server.database, conn_max_age=contestant.conn_max_age)
    try:
        if workload.writes:
            empty_notes()
            use(server.database, conn_max_age=contestant.conn_max_age)
        task = processes.query_and_close if contestant.closes else workload.task
        workers = WORKERS_OF[workload.part]
        if workload.part == "pools":
            seconds, results = in_new_pools(contestant, task, tasks)
        else:
            warm_up = WARM_UPS[contestant.place](task, workers)
            with warm_up.make(contestant) as pool:
                if workload.one_at_a_time:
                    seconds, results = in_turn(pool, warm_up, task, tasks)
                else:
                    clock = time.process_time if workload.part == "cpu" else time.perf_counter
                    seconds, results = at_once(pool, warm_up, task, tasks, clock)
        let_go()  # before the check, which may need a connection of a pool that is used up
        workload.check(results, extra=workers)
    finally:
        let_go()
    return seconds / tasks


def at_once(
    pool: Executor,
    warm_up: "WarmUp",
    task: Callable[[int], object],
    tasks: int,
    clock: Callable[[], float],
) -> tuple[float, list[object]]:
    """Queue all tasks, then wait for all results."""
    with warm_up.of(pool):
        head = min(tasks, HEAD_START)
        begun = clock()
        futures = [pool.submit(task, number) for number in range(head)]
        warm_up.end()
        futures += [pool.submit(task, number) for number in range(head, tasks)]
        results = warm_up.results(pool, futures)
        seconds = clock() - begun
        warm_up.check()
    return seconds, results


def in_turn(
    pool: Executor, warm_up: "WarmUp", task: Callable[[int], object], tasks: int
) -> tuple[float, list[object]]:
    """Submit a task, wait for its result, submit the next."""
    with warm_up.of(pool):
        warm_up.end()
        warm_up.check()
    begun = time.perf_counter()
    results = [pool.submit(task, number).result(PATIENCE) for number in range(tasks)]
    return time.perf_counter() - begun, results


def in_new_pools(
    contestant: Contestant, task: Callable[[int], object], tasks: int
) -> tuple[float, list[object]]:
    """Make a pool for a few tasks, wait for their results and for its end; make the next."""
    results: list[object] = []
    begun = time.perf_counter()
    for first in range(0, tasks, JOBS):
        with contestant.make(max_workers=NEW_POOL) as pool:
            futures = [pool.submit(task, number) for number in range(first, min(first + JOBS, tasks))]
            results += [future.result(PATIENCE) for future in futures]
    return time.perf_counter() - begun, results


class WarmUp:
    """One task for each worker, which none of them ends before `end`.

    A context manager: it begins when all have connected.
    """

    def __init__(self, task: Callable[[int], object], workers: int) -> None:
        self._task = task
        self._workers = workers
        self._warm, self._end = self._barrier(), self._barrier()
        self._futures: list[Any] = []

    def make(self, contestant: Contestant) -> Executor:
        raise NotImplementedError

    def of(self, pool: Executor) -> Self:
        self._futures = [pool.submit(*self._call()) for _ in range(self._workers)]
        return self

    def __enter__(self) -> Self:
        self._warm.wait(PATIENCE)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # no worker may wait for the end, or the pool's would never come
            self._end.abort()

    def end(self) -> None:
        self._end.wait(PATIENCE)

    def results(self, pool: Any, futures: list[Any]) -> list[object]:
        return [future.result(PATIENCE) for future in futures]

    def check(self) -> None:
        """Wait until all have ended; raise what one of them raised."""
        for future in self._futures:
            future.result(PATIENCE)

    def _barrier(self) -> Any:
        raise NotImplementedError

    def _call(self) -> tuple[Callable[..., object], ...]:
        raise NotImplementedError


class InThreads(WarmUp):
    def make(self, contestant: Contestant) -> Executor:
        return contestant.make(max_workers=self._workers)

    def _barrier(self) -> Any:
        return threading.Barrier(self._workers + 1)

    def _call(self) -> tuple[Callable[..., object], ...]:
        return (self._run,)

    def _run(self) -> object:
        try:
            return self._task(0)
        finally:
            self._warm.wait(PATIENCE)
            self._end.wait(PATIENCE)


class InProcesses(WarmUp):
    def make(self, contestant: Contestant) -> Executor:
        return contestant.make(self._warm, self._end)

    def _barrier(self) -> Any:
        return multiprocessing.get_context("forkserver").Barrier(self._workers + 1)

    def _call(self) -> tuple[Callable[..., object], ...]:
        return processes.warm_up, self._task


class OnCluster(WarmUp):
    """As many tasks as are enough for each worker to have run some. No barrier travels to a cluster."""

    def make(self, contestant: Contestant) -> Executor:
        return contestant.make()

    def of(self, pool: Executor) -> Self:
        futures = [pool.submit(self._task, 0) for _ in range(HEAD_START)]
        self.results(pool, futures)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nobody waits."""

    def end(self) -> None:
        """All have ended."""

    def results(self, pool: Any, futures: list[Any]) -> list[object]:
        if isinstance(pool, BareDask):
            return pool.results(futures)
        return super().results(pool, futures)

    def _barrier(self) -> None:
        return None


WORKERS_OF = {
    "threads": WORKERS,
    "cpu": 1,
    "pools": NEW_POOL,
    "processes": PROCESSES,
    "cluster": PROCESSES,
}
WARM_UPS: dict[str, type[WarmUp]] = {
    "threads": InThreads,
    "processes": InProcesses,
    "cluster": OnCluster,
}
