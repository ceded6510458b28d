"""What an executor has done so far, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExecutorStats:
    """What `stats()` returns: numbers that are all of the same moment.

    `workers`, `busy`, `idle` and `pending` say what is now; the others grow from the executor's making,
    or, in a forked child, from the fork. `submitted` is the sum of `pending`, `busy`, `completed`,
    `failed` and `cancelled`, and `workers` is that of `busy` and `idle`. A task counts as ended once it
    has let go of its connections, before its future gives its result. Connections are those of every
    alias that the workers opened; `connections_opened - connections_closed` of them are open.

    Attributes:
        workers: threads of this executor; a task that runs in its caller's thread counts as one more.
        busy: tasks that have begun and not ended.
        idle: workers without a task, which wait or run an initializer or a callback.
        pending: tasks that are submitted and have not begun.
        submitted: tasks that were taken.
        completed: tasks that have returned a result.
        failed: tasks that have raised, or did not run because an initializer had failed.
        cancelled: tasks that were cancelled before they began.
        rejected: calls of `submit` that were refused by `QueueFull`.
        connections_opened: connections that a worker opened, or got from Django's pool.
        connections_reset: how often a task got a kept connection with a fresh session
            (CONN_MAX_AGE = 0).
        connections_reused: how often a task got a kept connection with its session (another
            CONN_MAX_AGE).
        connections_closed: connections that were closed, or went back to Django's pool.
        close_failures: errors while closing a connection; it is closed all the same.
        queue_seconds: the sum of the seconds that tasks waited in the queue before they began.
        run_seconds: the sum of the seconds that tasks ran, until they had let go.
    """

    workers: int
    busy: int
    idle: int
    pending: int
    submitted: int
    completed: int
    failed: int
    cancelled: int
    rejected: int
    connections_opened: int
    connections_reset: int
    connections_reused: int
    connections_closed: int
    close_failures: int
    queue_seconds: float
    run_seconds: float


class Tally:
    """Numbers that one thread writes, so that it needs no lock, and that others read."""

    __slots__ = ("begun", "completed", "failed", "queue_seconds", "run_seconds")

    def __init__(self) -> None:
        self.begun = self.completed = self.failed = 0
        self.queue_seconds = self.run_seconds = 0.0

    def read(self) -> tuple[int, int, int, float, float]:
        return self.begun, self.completed, self.failed, self.queue_seconds, self.run_seconds
