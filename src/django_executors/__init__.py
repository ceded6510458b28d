"""`concurrent.futures` for Django: executors that let go of their database connections.

Importing this opens no connection and needs no settings; it may stand before `django.setup()`. Django is
imported when one of these names is first accessed: pytest finds our plugin, and so this package, in
projects that do not use Django.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._public import (
        ConnectionInfo,
        ConnectionLeakError,
        ConnectionLimitTimeout,
        DeadlockError,
        ExecutorError,
        ExecutorStats,
        ImmediateExecutor,
        ProcessPoolExecutor,
        QueueFull,
        ThreadPoolExecutor,
        all_connections,
        all_executors,
        connection_scope,
        executors,
        release_connections,
    )

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
    "all_executors",
    "connection_scope",
    "executors",
    "release_connections",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # All at once, and by the import of one module: a second thread waits for it.
    public = import_module("._public", __name__)
    globals().update((each, getattr(public, each)) for each in __all__)
    found: object = globals()[name]
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
