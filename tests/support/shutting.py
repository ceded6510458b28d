"""What the tests of `shutdown(timeout=…)` share."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

T = TypeVar("T")


def index(*_: object) -> None:
    """Do nothing, under a name of its own."""


def left(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what shutdowns have logged."""
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if "shutdown left" in message]


@contextmanager
def beside(call: Callable[[], T]) -> Iterator[concurrent.futures.Future[T]]:
    """Run this call in a thread beside the block, and wait for it at the end."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        future = thread.submit(call)
        yield future
        future.result(60)
