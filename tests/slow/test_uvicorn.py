"""Sync views under a real uvicorn, app installed: the threads of asgiref let go when they end."""

from __future__ import annotations

import http.client
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.observers import PostgresObserver
from tests.support.serving import uvicorn

CLIENTS = 20
REQUESTS = 200


def request_all(port: int) -> list[tuple[int, bytes]]:
    """Send 200 requests from 20 clients at once, each over one connection; return what was answered."""
    start = threading.Barrier(CLIENTS)

    def client(_: int) -> list[tuple[int, bytes]]:
        answers = []
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            start.wait(10)
            for _ in range(REQUESTS // CLIENTS):
                connection.request("GET", "/")
                response = connection.getresponse()
                answers.append((response.status, response.read()))
        return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [answer for answers in pool.map(client, range(CLIENTS)) for answer in answers]


@pytest.mark.parametrize("conn_max_age", ["0", "null"])
def test_sync_views(conn_max_age: str, tmp_path: Path, postgres: PostgresObserver) -> None:
    """After the last of 200 responses no connection is left, whatever CONN_MAX_AGE says."""
    log = tmp_path / "uvicorn.log"
    with uvicorn(log, TEST_CONN_MAX_AGE=conn_max_age) as port:
        answers = request_all(port)
        left = postgres.left()
    assert answers == [(200, b"0")] * REQUESTS, log.read_text()
    assert not left
    assert log.read_text() == ""


def test_without_the_app(tmp_path: Path, postgres: PostgresObserver) -> None:
    """What the app is for: without it, request threads leave their connections on the server."""
    log = tmp_path / "uvicorn.log"
    with uvicorn(log, TEST_CONN_MAX_AGE="600", TEST_WITHOUT_APP="yes") as port:
        answers = request_all(port)
        left = postgres.left(within=1.0)
    assert any(status == 200 for status, _ in answers)
    assert len(left) >= CLIENTS
