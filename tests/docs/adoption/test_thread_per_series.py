"""A thread for each series, started by hand, that closes only `default`.

What it opened on another alias stays open. There is no executor whose import could change: the thread
is given `connection_scope`, or the project installs the app.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from django.db import connection

from django_executors import all_connections, connection_scope
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver

SERIES = ("rain", "snow", "wind")


def copy_series(name: str) -> None:
    try:
        Entry.objects.using("other").filter(name=name).count()
        Entry.objects.create(name=name)
    finally:
        connection.close()


def copy_in_threads(*names: str) -> list[threading.Thread]:
    threads = [threading.Thread(target=copy_series, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    return threads


def copy_in_scopes(*names: str) -> list[threading.Thread]:
    threads = [threading.Thread(target=connection_scope(copy_series), args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    return threads


def run(copy: Callable[..., list[threading.Thread]]) -> None:
    for thread in copy(*SERIES):
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.assert_no_open_connections(False)
@pytest.mark.usefixtures("leaked_before")
def test_before(postgres: PostgresObserver) -> None:
    """Each thread has ended, and left its second connection behind."""
    run(copy_in_threads)
    assert not postgres.left("app")
    assert len(postgres.backends("other")) == len(SERIES)


@pytest.mark.usefixtures("conn_max_age")
def test_connection_scope(postgres: PostgresObserver) -> None:
    """A scope closes every alias when the thread's function returns."""
    run(copy_in_scopes)
    assert all_connections() == ()
    assert not postgres.left("other")
    assert not postgres.left("app")


@pytest.mark.usefixtures("conn_max_age", "watch_every_thread")
def test_installed_app(postgres: PostgresObserver) -> None:
    """With the app installed, the code as it was leaves nothing when its threads have ended."""
    run(copy_in_threads)
    assert not postgres.left("other")
    assert not postgres.left("app")
    assert all_connections() == ()
