"""What an executor has done so far, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExecutorStats:
    """What `stats()` returns: numbers since the executor was made, all of the same moment.

    `submitted` is the sum of `pending`, `busy`, `completed`, `failed` and `cancelled`, and `workers` is
    that of `busy` and `idle`. A task counts as ended once it has let go of its connections, before its
    future gives its result. Connections are those of every alias that the workers opened;
    `connections_opened - connections_closed` of them are open.
    """

    #: Threads that run: the pool's workers, and callers' threads in which a task runs at once.
    workers: int
    #: Tasks that have begun and not ended.
    busy: int
    #: Workers that run no task: they wait, or run an initializer or a callback.
    idle: int
    #: Tasks that are submitted and have not begun.
    pending: int
    #: Tasks that were taken.
    submitted: int
    #: Tasks that have returned a result.
    completed: int
    #: Tasks that have raised, or did not run because an initializer had failed.
    failed: int
    #: Tasks that were cancelled before they began.
    cancelled: int
    #: Tasks that were refused by `QueueFull`.
    rejected: int
    #: Connections that a worker opened, or got from Django's pool.
    connections_opened: int
    #: How often a task got a kept connection with a fresh session (CONN_MAX_AGE = 0).
    connections_reset: int
    #: How often a task got a kept connection with its session (another CONN_MAX_AGE).
    connections_reused: int
    #: Connections that were closed, or went back to Django's pool.
    connections_closed: int
    #: Errors while closing a connection; it is closed all the same.
    close_failures: int
    #: For how many seconds, all together, the tasks that have begun had waited in the queue.
    queue_seconds: float
    #: For how many seconds, all together, the tasks that have ended ran, until they had let go.
    run_seconds: float


class Tally:
    """Numbers that one thread writes, so that it needs no lock, and that others read."""

    __slots__ = ("begun", "completed", "failed", "queue_seconds", "run_seconds")

    def __init__(self) -> None:
        self.begun = self.completed = self.failed = 0
        self.queue_seconds = self.run_seconds = 0.0

    def read(self) -> tuple[int, int, int, float, float]:
        return self.begun, self.completed, self.failed, self.queue_seconds, self.run_seconds
