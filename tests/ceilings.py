"""What the tests of the ceiling share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db.backends.postgresql.base import DatabaseWrapper
from django.test import override_settings

from django_executors.lifecycle import limits

from .gates import Gate
from .testapp.models import Entry


@contextlib.contextmanager
def ceiling(most: int, timeout: float = 20.0, alias: str = "default") -> Iterator[None]:
    with override_settings(
        EXECUTORS_MAX_CONNECTIONS={alias: most}, EXECUTORS_CONNECTION_WAIT_TIMEOUT=timeout
    ):
        yield


class QueriesThenWaits(Gate):
    """A task that holds a connection while it waits."""

    def __call__(self, *_: object) -> None:
        Entry.objects.count()
        super().__call__()


class Most:
    """How many connections Django has had at once, from before it connects until it has closed."""

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
    get_new, close = DatabaseWrapper.get_new_connection, DatabaseWrapper._close

    def get_new_connection(self: Any, params: Any) -> Any:
        counted.change(1)
        try:
            return get_new(self, params)
        except BaseException:
            counted.change(-1)
            raise

    def _close(self: Any) -> None:
        is_open = self.connection is not None
        try:
            close(self)
        finally:
            counted.change(-is_open)

    monkeypatch.setattr(DatabaseWrapper, "get_new_connection", get_new_connection)
    monkeypatch.setattr(DatabaseWrapper, "_close", _close)
    return counted


def waits(alias: str) -> int:
    """Return how many wait for a permit."""
    return len(limits._ceilings[alias]._waiting)
