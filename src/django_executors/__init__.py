"""`concurrent.futures` for Django: executors that let go of their database connections.

Importing this opens no connection and needs no settings; it may stand before `django.setup()`.
"""

from .executors.thread import ThreadPoolExecutor
from .lifecycle.ledger import ConnectionInfo, all_connections
from .lifecycle.scope import connection_scope, release_connections

__all__ = [
    "ConnectionInfo",
    "ThreadPoolExecutor",
    "all_connections",
    "connection_scope",
    "release_connections",
]
