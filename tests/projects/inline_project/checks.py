"""What the cases of both test runners assert."""

from __future__ import annotations

import threading
from collections.abc import Callable, Set

from django.db import connection

from django_executors import all_connections

from .orders.models import Order
from .orders.work import POOL


def names() -> set[str]:
    return set(Order.objects.values_list("name", flat=True))


def check(work: Callable[[], set[str]], before: Set[str] = frozenset()) -> None:
    """Its rows are seen here, in this transaction and on this connection, which goes on.

    Nothing is here but `before`: what the tests before this one wrote was rolled back.
    """
    assert names() == before
    driver = connection.connection
    written = work()
    assert written
    assert names() == before | written
    assert connection.connection is driver
    assert connection.in_atomic_block
    assert {info.thread_ident for info in all_connections()} == {threading.get_ident()}


def runs_inline() -> bool:
    """Tell whether a task runs in this thread, or in a worker of its pool."""
    thread = POOL.submit(threading.current_thread).result(10)
    assert thread is threading.current_thread() or thread.name.startswith("orders")
    return thread is threading.current_thread()
