"""Fifty threads, each with a pool of its own, on a server that allows thirty connections."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from django.db import OperationalError, connections

from django_executors import ThreadPoolExecutor, all_connections
from private_servers import start_postgres
from tests.support.ceilings import ceiling, count_connections

CALLERS = 50
WORKERS = 20
TASKS = 20
CEILING = 16


@pytest.fixture
def small_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It is the alias `small`. Each test has one of its own: what leaks ends with it."""
    with start_postgres(settings={"max_connections": "30"}) as server:
        entry = {
            **connections.settings["default"],
            "PORT": str(server.port),
            "PASSWORD": server.password,
            "NAME": "postgres",
        }
        monkeypatch.setitem(connections.settings, "small", entry)
        yield


def task(number: int) -> int:
    with connections["small"].cursor() as cursor:
        cursor.execute("SELECT %s::int", [number])
        (answer,) = cursor.fetchone()
        return int(answer)


def call_all(kind: type[concurrent.futures.ThreadPoolExecutor]) -> list[Future[int]]:
    """Have every caller submit to a pool of its own, all at once, and wait for all of them."""
    start = threading.Barrier(CALLERS)
    done: list[Future[int]] = []

    def call(caller: int) -> None:
        with kind(WORKERS) as pool:
            start.wait(60)
            done.extend([pool.submit(task, caller * TASKS + n) for n in range(TASKS)])

    callers = [threading.Thread(target=call, args=[caller]) for caller in range(CALLERS)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(90)
        assert not thread.is_alive()
    return done


@pytest.mark.parametrize("conn_max_age", [0, 60])
@pytest.mark.usefixtures("small_server")
def test_with_a_ceiling(conn_max_age: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 tasks of 50 pools all results are right, and there were never more connections."""
    monkeypatch.setitem(connections.settings["small"], "CONN_MAX_AGE", conn_max_age)
    counted = count_connections(monkeypatch)
    with ceiling(CEILING, timeout=60.0, alias="small"):
        futures = call_all(ThreadPoolExecutor)
    assert sorted(future.result(0) for future in futures) == list(range(CALLERS * TASKS))
    assert counted.most == CEILING
    assert all_connections() == ()


@pytest.mark.assert_no_open_connections(False)
@pytest.mark.usefixtures("small_server", "leaked_before")
def test_standard_pool() -> None:
    """The same with the standard pool ends at «too many clients already»."""
    kinds = {type(future.exception(0)) for future in call_all(concurrent.futures.ThreadPoolExecutor)}
    assert OperationalError in kinds
