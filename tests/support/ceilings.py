"""What the tests of the ceiling share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.test import override_settings

from django_executors.connections import ceiling as limits
from tests.projects.testapp.models import Entry
from tests.support.gates import Gate


@contextlib.contextmanager
def ceiling(most: int, timeout: float = 20.0, alias: str = "default") -> Iterator[None]:
    with override_settings(
        EXECUTORS_MAX_CONNECTIONS={alias: most}, EXECUTORS_CONNECTION_WAIT_TIMEOUT=timeout
    ):
        yield


class QueriesThenWaits(Gate):
    """A task that holds a connection while it waits."""

    def __init__(self, alias: str = "default") -> None:
        super().__init__()
        self._alias = alias

    def __call__(self, *_: object) -> None:
        Entry.objects.using(self._alias).count()
        super().__call__()


class Most:
    """How many connections psycopg has had at once, from before it connects until it has closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def change(self, by: int) -> None:
        with self._lock:
            self.now += by
            self.most = max(self.most, self.now)


def count_connections(monkeypatch: pytest.MonkeyPatch) -> Most:
    """Count from now on."""
    counted = Most()
    connect, close = psycopg.connect, psycopg.Connection.close

    def counted_connect(*args: Any, **kwargs: Any) -> Any:
        counted.change(1)
        try:
            return connect(*args, **kwargs)
        except BaseException:
            counted.change(-1)
            raise

    def counted_close(self: Any) -> None:
        was_open = not self.closed
        try:
            close(self)
        finally:
            counted.change(-was_open)

    monkeypatch.setattr(psycopg, "connect", counted_connect)
    monkeypatch.setattr(psycopg.Connection, "close", counted_close)
    return counted


def waits(alias: str) -> int:
    """Return how many wait for a permit."""
    return len(limits._ceilings[alias]._waiting)
