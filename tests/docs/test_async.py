"""The code of `docs/async.md`, under a real uvicorn."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.test import TestCase, override_settings

from django_executors import ThreadPoolExecutor
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.running_cases import passes
from tests.support.serving import ask, ask_all, uvicorn
from tests.support.waiting import wait_until

SITE = "tests.projects.async_site"
CLIENTS = 8

#: The views, and what each answers for how many rows.
VIEWS = {
    "counted": 1,
    "counted_twice": 2,
    "counted_in_a_thread": 1,
    "counted_by_a_coroutine": 1,
    "in_executor": 2,
}


@pytest.mark.parametrize("conn_max_age", ["0", "600"])
def test_the_views(conn_max_age: str, postgres: PostgresObserver, tmp_path: Path) -> None:
    """Each answers rightly, 8 clients at once, and a second later no connection is left."""
    Entry.objects.bulk_create(Entry(name="apple") for _ in range(3))
    connection.close()
    log = tmp_path / "log"
    with uvicorn(log, SITE, TEST_CONN_MAX_AGE=conn_max_age) as port:
        for view, times in VIEWS.items():
            answers = ask_all(port, [f"/{view}/apple"] * 24, clients=CLIENTS)
            assert set(answers) == {(200, str(3 * times))}, log.read_text()
        created = ask_all(
            port, [f"/created_and_counted/{number:03}" for number in range(24)], clients=CLIENTS
        )
        assert set(created) == {(200, "1")}, log.read_text()
        assert ask(port, "/thread_names")[1].startswith("default_")
        assert not postgres.left()
    assert log.read_text() == ""


@pytest.mark.parametrize("how", ["submit", "run_in_executor"])
def test_client_that_goes_away(how: str, tmp_path: Path) -> None:
    """When a client closes its connection, its view is cancelled, and the task that had not begun."""
    log = tmp_path / "log"

    def numbers() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(ask(port, "/numbers")[1])
        return found

    with uvicorn(log, SITE, TEST_CONN_MAX_AGE="0") as port:
        assert ask(port, "/hold") == (200, "")
        with closing(socket.create_connection(("127.0.0.1", port), 10)) as client:
            client.sendall(f"GET /wait_behind/{how} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            assert wait_until(numbers, lambda found: found["pending"] == 1, within=20)["pending"] == 1
        assert wait_until(numbers, lambda found: found["cancelled"] == 1, within=20)["cancelled"] == 1
        assert json.loads(ask(port, "/go_on")[1]) == {"pending": 0, "cancelled": 1, "ran": []}


def test_cancelled_by_a_timeout(gate: Gate, postgres: PostgresObserver) -> None:
    """What has not begun is cancelled and never runs; what has begun runs to its end."""
    done: list[str] = []

    def task(name: str) -> None:
        gate()
        done.append(f"{name} {Entry.objects.count()}")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10) as soon:
                begun = asyncio.wrap_future(pool.submit(task, "begun"))
                await asyncio.to_thread(gate.wait_for)
                waiting = asyncio.wrap_future(pool.submit(task, "waiting"))
                soon.reschedule(asyncio.get_running_loop().time())
                await asyncio.gather(begun, waiting)
        gate.open()

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(main())
    assert done == ["begun 0"]
    assert (pool.stats().cancelled, pool.stats().completed) == (1, 1)
    assert not postgres.left()


def test_in_a_test_case() -> None:
    """With `run_inline`, the tasks of an asynchronous view see the rows of the test's transaction."""

    # test case: begin
    @run_inline
    class CountTests(TestCase):
        async def test_counted_twice(self) -> None:
            await Entry.objects.acreate(name="apple")
            response = await self.async_client.get("/counted_twice/apple")
            assert response.content == b"2"

    # test case: end
    class Case(CountTests):
        async def test_counted_twice(self) -> None:
            await super().test_counted_twice()
            response = await self.async_client.get("/counted_by_a_coroutine/apple")
            assert response.content == b"1"

    with override_settings(ROOT_URLCONF=SITE):
        passes(Case)
    assert not Entry.objects.exists()


def test_rolled_back(postgres: PostgresObserver) -> None:
    """Whoever awaits a task of a transaction that rolls back gets `CancelledError`; it never runs."""
    done: list[str] = []

    @sync_to_async
    def create() -> Future[None]:
        try:
            with transaction.atomic():
                Entry.objects.create(name="gone")
                future = pool.submit_on_commit(done.append, "ran")
                transaction.set_rollback(True)
            return future
        finally:
            connection.close()

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await (await create())

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(main())
    assert done == []
    assert not postgres.left()
