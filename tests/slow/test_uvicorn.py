"""Sync views under a real uvicorn, app installed: the threads of asgiref let go when they end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.observers import PostgresObserver
from tests.support.serving import ask_all, uvicorn

CLIENTS = 20
REQUESTS = 200


@pytest.mark.parametrize("conn_max_age", ["0", "null"])
def test_sync_views(conn_max_age: str, tmp_path: Path, postgres: PostgresObserver) -> None:
    """After the last of 200 responses no connection is left, whatever CONN_MAX_AGE says."""
    log = tmp_path / "uvicorn.log"
    with uvicorn(log, TEST_CONN_MAX_AGE=conn_max_age) as port:
        answers = ask_all(port, ["/"] * REQUESTS, clients=CLIENTS)
        left = postgres.left()
    assert answers == [(200, "0")] * REQUESTS, log.read_text()
    assert not left
    assert log.read_text() == ""


def test_without_the_app(tmp_path: Path, postgres: PostgresObserver) -> None:
    """What the app is for: without it, request threads leave their connections on the server."""
    log = tmp_path / "uvicorn.log"
    with uvicorn(log, TEST_CONN_MAX_AGE="600", TEST_WITHOUT_APP="yes") as port:
        answers = ask_all(port, ["/"] * REQUESTS, clients=CLIENTS)
        left = postgres.left(within=1.0)
    assert any(status == 200 for status, _ in answers)
    assert len(left) >= CLIENTS
