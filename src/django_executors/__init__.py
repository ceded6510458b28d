"""`concurrent.futures` for Django: executors that let go of their database connections.

Importing this opens no connection and needs no settings; it may stand before `django.setup()`.
"""

from .exceptions import (
    ConnectionLeakError,
    ConnectionLimitTimeout,
    DeadlockError,
    ExecutorError,
    QueueFull,
)
from .execution.immediate import ImmediateExecutor
from .execution.process import ProcessPoolExecutor
from .execution.stats import ExecutorStats
from .execution.thread import ThreadPoolExecutor
from .lifecycle.listing import ConnectionInfo, all_connections
from .lifecycle.scope import connection_scope, release_connections
from .registry import executors

__all__ = [
    "ConnectionInfo",
    "ConnectionLeakError",
    "ConnectionLimitTimeout",
    "DeadlockError",
    "ExecutorError",
    "ExecutorStats",
    "ImmediateExecutor",
    "ProcessPoolExecutor",
    "QueueFull",
    "ThreadPoolExecutor",
    "all_connections",
    "connection_scope",
    "executors",
    "release_connections",
]
