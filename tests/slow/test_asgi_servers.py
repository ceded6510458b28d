"""The site of `docs/async.md` under each ASGI server: one that ends by a lifespan, and one without."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest
from django.db import connection

from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver
from tests.support.serving import ASGI_SERVERS, asgi, ask, ask_all

SITE = "tests.projects.async_site"
CLIENTS = 20
REQUESTS = 200

pytestmark = pytest.mark.parametrize("server", ASGI_SERVERS)


@pytest.mark.parametrize("conn_max_age", ["0", "600"])
def test_to_thread(server: str, conn_max_age: str, postgres: PostgresObserver, tmp_path: Path) -> None:
    """After 200 requests of 20 clients whose views use `to_thread`, no connection is left."""
    log = tmp_path / "log"
    with asgi(server, log, SITE, TEST_CONN_MAX_AGE=conn_max_age) as (_, port):
        answers = ask_all(port, ["/counted_in_a_thread/apple"] * REQUESTS, clients=CLIENTS)
        left = postgres.left(within=1.0)
        assert ask(port, "/thread_names")[1].startswith("default_")
    assert Counter(answers) == {(200, "0"): REQUESTS}, log.read_text()
    assert not left
    assert log.read_text() == ""


def test_sigterm(server: str, postgres: PostgresObserver, tmp_path: Path) -> None:
    """What is queued or running at SIGTERM, and ends by the deadline, is done when the process ends."""
    log = tmp_path / "log"
    with asgi(server, log, SITE, TEST_CONN_MAX_AGE="0") as (process, port):
        assert ask(port, "/leave_work") == (200, "")
        process.terminate()
        code = process.wait(20)
    assert code in (0, -signal.SIGTERM), log.read_text()
    assert Counter(Entry.objects.values_list("name", flat=True)) == {
        "to_thread": 10,
        "named": 10,
        "own": 10,
    }
    connection.close()
    assert not postgres.left()
    assert log.read_text() == ""
