"""One contestant, one workload, one server, once."""

import threading
import time
from typing import Self

from .contestants import Contestant, Pool
from .models import empty_notes
from .project import let_go, use
from .servers import WORKERS, Server
from .workloads import Workload

PATIENCE = 120.0  # seconds, for anything that could hang
HEAD_START = 64  # tasks that are queued before a worker starts


def measure(contestant: Contestant, workload: Workload, server: Server, tasks: int) -> float:
    """Return the seconds that one task took.

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
        with contestant.make(max_workers=WORKERS) as pool:
            time_them = in_turn if workload.one_at_a_time else at_once
            seconds, results = time_them(pool, workload, tasks)
        let_go()  # before the check, which may need a connection of a pool that is used up
        workload.check(results, extra=WORKERS)
    finally:
        let_go()
    return seconds / tasks


def at_once(pool: Pool, workload: Workload, tasks: int) -> tuple[float, list[object]]:
    """Queue all tasks, then wait for all results."""
    with WarmUp(pool, workload) as warm_up:
        head = min(tasks, HEAD_START)
        begun = time.perf_counter()
        futures = [pool.submit(workload.task, number) for number in range(head)]
        warm_up.end()
        futures += [pool.submit(workload.task, number) for number in range(head, tasks)]
        results = [future.result(PATIENCE) for future in futures]
        seconds = time.perf_counter() - begun
        warm_up.check()
    return seconds, results


def in_turn(pool: Pool, workload: Workload, tasks: int) -> tuple[float, list[object]]:
    """Submit a task, wait for its result, submit the next."""
    with WarmUp(pool, workload) as warm_up:
        warm_up.end()
        warm_up.check()
    begun = time.perf_counter()
    results = [pool.submit(workload.task, number).result(PATIENCE) for number in range(tasks)]
    return time.perf_counter() - begun, results


class WarmUp:
    """One task for each worker, which none of them ends before `end`.

    A context manager: it begins when all have connected.
    """

    def __init__(self, pool: Pool, workload: Workload) -> None:
        self._warm = threading.Barrier(WORKERS + 1)
        self._end = threading.Barrier(WORKERS + 1)
        self._workload = workload
        self._futures = [pool.submit(self._task) for _ in range(WORKERS)]

    def __enter__(self) -> Self:
        self._warm.wait(PATIENCE)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # no worker may wait for the end, or the pool's would never come
            self._end.abort()

    def end(self) -> None:
        self._end.wait(PATIENCE)

    def check(self) -> None:
        """Wait until all have ended; raise what one of them raised."""
        for future in self._futures:
            future.result(PATIENCE)

    def _task(self) -> object:
        try:
            return self._workload.task(0)
        finally:
            self._warm.wait(PATIENCE)
            self._end.wait(PATIENCE)
