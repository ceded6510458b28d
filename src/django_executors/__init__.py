"""`concurrent.futures` for Django: executors that let go of their database connections.

Importing this opens no connection and needs no settings; it may stand before `django.setup()`. Django is
imported with the first of these names that somebody asks for: pytest finds our plugin, and so this
package, in projects that have nothing to do with Django.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_homes = {
    "ConnectionInfo": "lifecycle.listing",
    "ExecutorStats": "execution.stats",
    "ImmediateExecutor": "execution.immediate",
    "ProcessPoolExecutor": "execution.process",
    "ThreadPoolExecutor": "execution.thread",
    "all_connections": "lifecycle.listing",
    "connection_scope": "lifecycle.scope",
    "executors": "registry",
    "release_connections": "lifecycle.scope",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f".{_homes.get(name, 'exceptions')}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
