"""What the tests of `assert_no_open_connections` share: threads that leak, and what it says of them."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection

from django_executors import ConnectionLeakError
from django_executors.testing import assert_no_open_connections
from tests.projects.testapp.models import Entry

Body = Callable[[], object]


def leaks(test: Any) -> Any:
    """Let a test leak: the suite's own check does not look, and what is left is collected afterwards."""
    return pytest.mark.assert_no_open_connections(False)(pytest.mark.usefixtures("leaked_before")(test))


def count() -> None:
    Entry.objects.count()


def count_and_close() -> None:
    count()
    connection.close()


def run(target: Body, name: str = "orders") -> None:
    """Run it in a plain thread, to its end."""
    thread = threading.Thread(target=target, name=name)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def collect() -> None:
    """Collect garbage, with no word of drivers whose connections are open."""
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


def message_of(body: Body, *, timeout: float = 0.0) -> str:
    """Run the body in the block, and return what the block has to say of it."""
    with pytest.raises(ConnectionLeakError) as caught, assert_no_open_connections(timeout=timeout):
        body()
    return str(caught.value)


@contextlib.contextmanager
def standing(work: Body, name: str = "orders") -> Iterator[None]:
    """A thread that has done this work, and lives on until the block's end."""
    done, go_on = threading.Event(), threading.Event()

    def target() -> None:
        work()
        done.set()
        go_on.wait(30)

    thread = threading.Thread(target=target, name=name)
    thread.start()
    assert done.wait(10)
    try:
        yield
    finally:
        go_on.set()
        thread.join(10)
