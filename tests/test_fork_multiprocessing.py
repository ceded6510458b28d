"""Processes of `multiprocessing` that are forked beside a pool's workers, or by one of them."""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.testing import drain

from .forking import server_pid
from .observers import PostgresObserver
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def in_a_process(pool: ThreadPoolExecutor, sending: Any) -> None:
    """What runs in a process of `multiprocessing`."""
    found = list(pool.map(lambda number: Entry.objects.count() + number, range(5)))
    drain()
    sending.send((found, len(all_connections()), threading.active_count() > 1))


def use_multiprocessing(pool: ThreadPoolExecutor) -> tuple[object, int | None]:
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=in_a_process, args=(pool, sending))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    assert receiving.poll(30)
    found = receiving.recv()
    process.join(30)
    return found, process.exitcode


def test_multiprocessing_from_main(pool: ThreadPoolExecutor, postgres: PostgresObserver) -> None:
    """A process that was forked beside the pool's workers uses the pool, and ends well."""
    pool.submit(Entry.objects.count).result(10)
    assert use_multiprocessing(pool) == (([0, 1, 2, 3, 4], 0, True), 0)
    assert not postgres.left()


def test_multiprocessing_from_a_task(pool: ThreadPoolExecutor, postgres: PostgresObserver) -> None:
    """So does one that was forked by a worker of that pool."""

    def task() -> tuple[object, int | None, bool]:
        before = server_pid("default")
        return *use_multiprocessing(pool), server_pid("default") == before

    assert pool.submit(task).result(60) == (([0, 1, 2, 3, 4], 0, True), 0, True)
    assert not postgres.left()
