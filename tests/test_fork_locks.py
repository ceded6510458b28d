"""Locks that a thread of the parent's held at a fork: in the child nobody would ever release them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db.backends.signals import connection_created
from django.utils import translation
from django.utils.translation import trans_real

from django_executors import ExecutorError, ThreadPoolExecutor

from .forking import fork
from .gates import Gate
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@contextlib.contextmanager
def held_elsewhere(lock: Any) -> Iterator[None]:
    """Have another thread hold this lock."""
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            assert let_go.wait(50)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(10)
        yield
    finally:
        let_go.set()
        holder.join(10)


@pytest.mark.parametrize("kind", ["submit", "keep", "asgiref", "signal"])
def test_lock_that_another_thread_held(kind: str, pool: ThreadPoolExecutor) -> None:
    """A pool's locks, and that of what Django keeps the language in, are not waited for."""
    pool.submit(int).result(10)
    language = vars(trans_real._active)
    locks = {
        "submit": pool._shutdown_lock,  # type: ignore[attr-defined]
        "keep": pool._queue._lock,
        "signal": connection_created.lock,
        "asgiref": language.get("_lock") or language["_thread_lock"],
    }

    def child() -> None:
        with translation.override("de"):
            found = pool.map(lambda _: Entry.objects.count(), range(10), timeout=10)
        assert list(found) == [0] * 10
        pool.shutdown()

    with held_elsewhere(locks[kind]):
        assert fork(child) == (0, "")


def test_lock_of_a_future(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """Nor is that of a future which is not done."""
    future = pool.submit(gate)
    gate.wait_for()

    def child() -> None:
        assert isinstance(future.exception(10), ExecutorError)

    with held_elsewhere(future._condition):
        assert fork(child) == (0, "")
