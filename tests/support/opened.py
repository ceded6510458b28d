"""Looking at what is open, and dropping it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from django_executors import all_connections
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until


def assert_none_open(postgres: PostgresObserver) -> None:
    """Wait until no thread of this process has anything open, and the server has noticed."""
    assert wait_until(all_connections, lambda found: not found, within=20) == ()
    assert not postgres.left("app")
    assert not postgres.left("other")


def run_in_thread(target: Callable[[], object], name: str | None = None) -> None:
    """Run it in a plain thread, to its end."""
    thread = threading.Thread(target=target, name=name)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def quietly_drop(wrapper: Any) -> None:
    """Close behind the wrapper's back what a driver would warn of when the collector finds it open."""
    if wrapper.connection is not None:
        wrapper.connection.close()
        wrapper.connection = None
