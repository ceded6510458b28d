"""Fifty threads, each with a pool of its own, on a server that allows thirty connections."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from django.db import OperationalError, connections

from django_executors import ThreadPoolExecutor, all_connections
from private_servers import Postgres, start_postgres
from tests.support.ceilings import ceiling, count_connections
from tests.support.observers import PostgresObserver

CALLERS = 50
WORKERS = 20
TASKS = 20
CEILING = 16


@pytest.fixture
def small_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    """It is the alias `small`. Each test has one of its own: what leaks ends with it."""
    with start_postgres(settings={"max_connections": "30"}) as server:
        entry = {
            **connections.settings["default"],
            "PORT": str(server.port),
            "PASSWORD": server.password,
            "NAME": "postgres",
        }
        monkeypatch.setitem(connections.settings, "small", entry)
        yield server


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


SAMPLE = """
CREATE OR REPLACE FUNCTION pg_temp.most_clients(OUT most int, OUT samples int) AS $$
DECLARE found int;
BEGIN
    most := 0;
    samples := 0;
    WHILE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory') LOOP
        PERFORM pg_stat_clear_snapshot();
        SELECT count(*) INTO found FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND application_name <> 'observer';
        most := greatest(most, found);
        samples := samples + 1;
    END LOOP;
END $$ LANGUAGE plpgsql;
SET application_name = 'observer'
"""


class Sampler:
    """Counts the clients in the server itself, which no lock of this process can hold up."""

    def __init__(self, url: str) -> None:
        self._sampling, self._stopping = PostgresObserver(url), PostgresObserver(url)
        self._stopping.execute("SET application_name = 'observer'")
        self._sampling.execute(SAMPLE)
        self._thread = threading.Thread(target=self._run)
        self.most = self.samples = 0

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.execute("SELECT pg_advisory_lock(1)")
        self._thread.join(10)
        self._sampling.close()
        self._stopping.close()

    def _run(self) -> None:
        ((self.most, self.samples),) = self._sampling.execute("SELECT * FROM pg_temp.most_clients()")


@pytest.mark.parametrize("conn_max_age", [0, 60])
def test_with_a_ceiling(
    conn_max_age: int, small_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,000 tasks of 50 pools all results are right, and there were never more connections."""
    monkeypatch.setitem(connections.settings["small"], "CONN_MAX_AGE", conn_max_age)
    sampler = Sampler(small_server.url)
    counted = count_connections(monkeypatch)
    with ceiling(CEILING, timeout=60.0, alias="small"), sampler:
        futures = call_all(ThreadPoolExecutor)
    assert sorted(future.result(0) for future in futures) == list(range(CALLERS * TASKS))
    assert counted.most == CEILING
    assert sampler.samples > 1000
    assert sampler.most <= CEILING, sampler.samples
    assert all_connections() == ()


@pytest.mark.assert_no_open_connections(False)
@pytest.mark.usefixtures("small_server", "leaked_before")
def test_standard_pool() -> None:
    """The same with the standard pool ends at «too many clients already»."""
    kinds = {type(future.exception(0)) for future in call_all(concurrent.futures.ThreadPoolExecutor)}
    assert OperationalError in kinds
