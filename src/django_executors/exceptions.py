"""The errors that are this library's own. A task's own exception is never one of them."""

from django.db.utils import OperationalError


class ExecutorError(Exception):
    """Every error of this library's own is one."""


class ConnectionLimitTimeout(ExecutorError, OperationalError):  # noqa: N818
    """A worker had no turn to connect within EXECUTORS_CONNECTION_WAIT_TIMEOUT seconds.

    The worker threads of this process hold as many connections as EXECUTORS_MAX_CONNECTIONS allows.
    The message says how many, and which thread, executor and task holds each, and for how long.
    """


class ConnectionLeakError(ExecutorError, AssertionError):
    """A database connection was left open. Raised by `django_executors.testing` only."""
