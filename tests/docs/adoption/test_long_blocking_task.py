"""A task that blocks for minutes after its last query.

Its connection would wait as long as it does. `release_connections()` gives it back first.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from django_executors import ThreadPoolExecutor, all_connections, release_connections
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver

blocked, answer = threading.Event(), threading.Event()


def slow_service(names: list[str]) -> str:
    """Stand for a service that takes minutes to answer."""
    blocked.set()
    assert answer.wait(10)
    return ", ".join(names)


def publish(prefix: str) -> str:
    names = list(Entry.objects.filter(name__startswith=prefix).values_list("name", flat=True))
    release_connections()
    url = slow_service(names)
    Entry.objects.create(name=url)
    return url


@pytest.fixture(autouse=True)
def service() -> Iterator[None]:
    """Begin with a service that has not been asked; have it answer in the end, come what may."""
    blocked.clear()
    answer.clear()
    yield
    answer.set()


def test_before(postgres: PostgresObserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the line, the connection is held for as long as the task blocks."""
    monkeypatch.setattr(sys.modules[__name__], "release_connections", lambda: None)
    future = ThreadPoolExecutor(1).submit(publish, "a")
    assert blocked.wait(10)
    assert len(postgres.backends()) == 1
    answer.set()
    future.result(10)


@pytest.mark.usefixtures("conn_max_age")
def test_release_connections(postgres: PostgresObserver) -> None:
    """Nothing is held while the task blocks; its next query connects again, and is let go of too."""
    future = ThreadPoolExecutor(1).submit(publish, "a")
    assert blocked.wait(10)
    assert all_connections() == ()
    assert not postgres.left()
    answer.set()
    assert future.result(10) == ""
    assert all_connections() == ()
    assert not postgres.left()
