"""Workers that wait for tasks of their own pool, and the waits that could never end."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django_executors.exceptions import DeadlockError
from django_executors.lifecycle.holder import current_holder

if TYPE_CHECKING:
    from .work import Work, Worker

Future = concurrent.futures.Future[Any]


class Waits:
    """Which worker waits for which future, without a timeout."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._futures: dict[Worker, Future] = {}

    @contextmanager
    def waiting(self, work: Work, worker: Worker, future: Future) -> Iterator[None]:
        """Note that this worker waits for that future.

        Raises:
            DeadlockError: the wait could never end.
        """
        with self._lock:
            outer = self._futures.get(worker)  # a signal's handler may wait during a wait
            self._futures[worker] = future
            why = None
            if self._are_all_stuck(work) or self._is_ring(work, worker):
                why = self._why(work, worker)
                self._end(worker, outer)
        if why is not None:
            raise DeadlockError(why)
        try:
            yield
        finally:
            with self._lock:
                self._end(worker, outer)

    def _end(self, worker: Worker, outer: Future | None) -> None:
        if outer is None:
            del self._futures[worker]
        else:
            self._futures[worker] = outer

    def _are_all_stuck(self, work: Work) -> bool:
        """Tell whether no worker is left to run what is queued."""
        waiting = [worker for worker in work.workers if not worker.has_ended()]
        return (
            len(work.workers) >= work.max_workers
            and all(worker in self._futures for worker in waiting)
            and not any(future.done() for future in self._futures.values())
        )

    def _is_ring(self, work: Work, worker: Worker) -> bool:
        """Tell whether it waits for a task whose worker waits for a task ... of its own."""
        runs = {each.item.future: each for each in work.workers if each.runs_task()}
        seen: set[Worker] = set()
        at: Worker | None = worker
        while at is not None and at not in seen:
            seen.add(at)
            future = self._futures.get(at)
            if future is None or future.done():
                return False
            at = runs.get(future)
        return at is worker

    def _why(self, work: Work, worker: Worker) -> str:
        said = (
            "a wait for a task of the worker's own pool that could never end: "
            f"executor={current_holder().executor} workers={work.max_workers} "
            f"waiting={len(self._futures)} pending={work.stats().pending}"
        )
        waits = [
            f"task={work.name_of_worker(each)} waits for task={work.name_of_future(future)}"
            for each, future in self._futures.items()
        ]
        return "\n".join([said, *waits, "Submit from outside of the pool's tasks, or to a second pool."])
