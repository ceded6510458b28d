"""A real gunicorn that loads the site, uses its pool, and then forks."""

from __future__ import annotations

import collections
import concurrent.futures
import http.client
from pathlib import Path

from .observers import PostgresObserver
from .serving import gunicorn

REQUESTS = 1000
CLIENTS = 4


def ask(port: int, requests: int) -> list[tuple[int, str]]:
    found = []
    for _ in range(requests):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            client.request("GET", "/")
            response = client.getresponse()
            found.append((response.status, response.read().decode()))
        finally:
            client.close()
    return found


def test_preload(postgres: PostgresObserver, tmp_path: Path) -> None:
    """Two workers of `--preload` answer 1,000 requests with a pool that was used before the fork."""
    log = tmp_path / "log"
    with gunicorn(log, "--preload", "--workers=2", "--threads=2") as port:
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
            answers = list(clients.map(lambda _: ask(port, REQUESTS // CLIENTS), range(CLIENTS)))
        found = collections.Counter(answer for each in answers for answer in each)
        assert sum(found.values()) == REQUESTS
        assert {status for status, _ in found} == {200}
        assert {answer.split()[2] for _, answer in found} == {"0"}
        assert len({answer.split()[0] for _, answer in found}) == 2, found  # both have answered
        assert not postgres.left()  # while both live, and have nothing to do
    assert not postgres.left()
    assert "Traceback" not in log.read_text()
