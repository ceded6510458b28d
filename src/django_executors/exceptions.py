"""The errors that are this library's own. A task's own exception is never one of them."""


class ExecutorError(Exception):
    """Every error of this library's own is one."""


class ConnectionLeakError(ExecutorError, AssertionError):
    """A database connection was left open. Raised by `django_executors.testing` only."""
