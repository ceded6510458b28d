"""What the tests of `drain` share: tasks, and checks of what is counted and of what is held."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.testing import drain
from tests.projects.testapp.models import Entry
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver

IDLE = 60.0


def is_idle() -> bool:
    """Tell it without waiting."""
    try:
        drain(0)
    except TimeoutError:
        return False
    return True


def query(*_: object) -> str:
    Entry.objects.count()
    return threading.current_thread().name


def assert_holds_nothing(postgres: PostgresObserver) -> None:
    """Nothing is open at this very moment; the server has yet to notice."""
    assert all_connections() == ()
    assert not postgres.left()


def occupy(pool: ThreadPoolExecutor, gate: Gate, queued: int) -> list[Future[str]]:
    """Have its one worker run the gate, and queue this many queries behind it."""
    pool.submit(gate)
    gate.wait_for()
    return [pool.submit(query) for _ in range(queued)]


def drain_through(gate: Gate, left: str = "not idle after 0 seconds") -> None:
    """It says what is left while the gate is shut, and returns when the gate is open."""
    with pytest.raises(TimeoutError, match=left):
        drain(0)
    gate.open()
    drain()


def check_accounting(pool: ThreadPoolExecutor) -> None:
    """The pool works, and counts right: busy while a task runs, idle when it has ended."""
    for _ in range(2):
        gate = Gate()
        pool.submit(gate)
        gate.wait_for()
        drain_through(gate)
        assert gate.ended
        assert is_idle()
