"""The errors that are this library's own. A task's own exception is never one of them."""

import queue

from django.db.utils import OperationalError


class ExecutorError(Exception):
    """Every error of this library's own is one."""


class QueueFull(ExecutorError, queue.Full):  # noqa: N818
    """A task was refused: `max_pending` tasks are submitted and have not begun.

    With `when_full="block"` too, where waiting could never end: in one of the pool's own workers, and in
    a thread in which an event loop runs, but for DJANGO_ALLOW_ASYNC_UNSAFE. The message has the numbers.
    """


class DeadlockError(ExecutorError, RuntimeError):
    """A task asked for the result of a task of its own pool that could never come.

    All workers wait for tasks of their pool, so that none is left to run what is queued. The message
    says which task waits for which.
    """


class ConnectionLimitTimeout(ExecutorError, OperationalError):  # noqa: N818
    """A worker had no turn to connect within EXECUTORS_CONNECTION_WAIT_TIMEOUT seconds.

    The worker threads of this process hold as many connections as EXECUTORS_MAX_CONNECTIONS allows.
    The message says how many, and which thread, executor and task holds each, and for how long.
    """


class ConnectionLeakError(ExecutorError, AssertionError):
    """A database connection was left open. Raised by `django_executors.testing` only."""
