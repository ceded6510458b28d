"""SQLite in memory, which Django never closes: a worker's database lives as long as the worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections

from django_executors import ThreadPoolExecutor, all_connections

from .keeping import queued, results
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")

#: Above BYPASS_WINDOW, so that a kept connection is asked whether it is alive.
PAUSE = 0.6


@pytest.fixture(params=[0, 0.3, 60], ids=lambda age: f"CONN_MAX_AGE={age}")
def pool(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ThreadPoolExecutor]:
    """A pool of one worker, and an alias `memory`."""
    entry = {**connections.settings["sqlite"], "NAME": ":memory:", "CONN_MAX_AGE": request.param}
    monkeypatch.setitem(connections.settings, "memory", entry)
    idle = 0.1 if request.param else 0.0
    with ThreadPoolExecutor(1, conn_max_idle=idle) as pool:
        pool.submit(write).result(10)
        yield pool
    assert wait_until(all_connections, lambda found: not found) == ()


def write() -> None:
    with connections["memory"].cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS written (number int)")
        cursor.execute("INSERT INTO written VALUES (1)")


def count() -> int:
    with connections["memory"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM written")
        number: int = cursor.fetchone()[0]
        return number


def wait_for_a_moment() -> None:
    wait_until(lambda: False, within=PAUSE)


def test_queued_tasks_see_it(pool: ThreadPoolExecutor) -> None:
    """What one task wrote is there for the tasks after it, queued or not."""
    assert results(queued(pool, count, write, count, write, count)) == [1, None, 2, None, 3]
    assert pool.submit(count).result(10) == 3


def test_it_outlives_max_age(pool: ThreadPoolExecutor) -> None:
    """Neither its age nor a pause ends it, between two tasks or inside one."""

    def late() -> int:
        wait_for_a_moment()
        return count()

    tasks: list[Callable[[], Any]] = [write, late, write, late]
    assert results(queued(pool, *tasks)) == [None, 2, None, 3]
    wait_for_a_moment()
    assert pool.submit(count).result(10) == 3


def test_the_worker_sleeps(pool: ThreadPoolExecutor) -> None:
    """A worker that cannot let go of it waits without spending processor time."""
    pool.submit(count).result(10)
    before = time.process_time()
    wait_for_a_moment()
    assert time.process_time() - before < PAUSE / 2
