"""A real gunicorn: pools that were used before it forks, named executors, transactions of requests."""

from __future__ import annotations

import collections
import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver
from tests.support.pages import TUTORIAL, plain_blocks
from tests.support.serving import ask, ask_all, gunicorn
from tests.support.waiting import wait_until

REQUESTS = 300
CLIENTS = 4


def test_preload(postgres: PostgresObserver, tmp_path: Path) -> None:
    """Two workers of `--preload` answer 300 requests with a pool that was used before the fork."""
    log = tmp_path / "log"
    with gunicorn(log, "--preload", "--workers=2", "--threads=2") as port:
        found = collections.Counter(ask_all(port, ["/"] * REQUESTS, clients=CLIENTS))
        assert {status for status, _ in found} == {200}
        assert {answer.split()[2] for _, answer in found} == {"0"}
        assert len({answer.split()[0] for _, answer in found}) == 2, found  # both have answered
        assert not postgres.left()  # while both live, and have nothing to do
    assert not postgres.left()
    assert "Traceback" not in log.read_text()


def numbers(port: int) -> dict[str, int]:
    """Return what one of the worker processes says of its executor."""
    found: dict[str, int] = json.loads(ask(port, "/numbers")[1])
    return found


def idle_workers(port: int) -> set[int]:
    """Return the worker processes, none if one of them has work to do."""
    found = [numbers(port) for _ in range(10)]
    return set() if any(each["unfinished"] for each in found) else {each["pid"] for each in found}


def names() -> Iterable[str]:
    """Return the names of the rows that there are."""
    return Entry.objects.values_list("name", flat=True)


#: Has the master use its executor too. Its tasks end before it forks: OpenSSL holds a lock during a
#: process's first connects, and a child that was forked then may wait for it for ever.
PRE_FORK = """
def pre_fork(server, worker):
    from tests.projects.wsgi_named import submit_all
    for future in submit_all(20_000 + 100 * worker.age, 100):
        future.result(20)
"""


@pytest.mark.parametrize("preload", [False, True], ids=["plain", "preload"])
def test_named_executor(preload: bool, postgres: PostgresObserver, tmp_path: Path) -> None:
    """2,000 tasks of two processes run once each, and nothing is left while both live."""
    log, config = tmp_path / "log", tmp_path / "gunicorn.conf.py"
    config.write_text(plain_blocks(TUTORIAL.with_name("named.md"))[-1] + PRE_FORK * preload)
    options = [f"--config={config}", "--workers=2", "--threads=4", *["--preload"] * preload]
    with gunicorn(log, *options, site="tests.projects.wsgi_named") as port:
        paths = [f"/submit/{first}/100" for first in range(0, 2000, 100)]
        answers = ask_all(port, paths, clients=8)
        assert {status for status, _ in answers} == {200}
        assert wait_until(lambda: idle_workers(port), lambda pids: len(pids) == 2, within=60)
        assert not postgres.left()  # while both live, and have nothing to do
        ask_all(port, ["/submit/2000/100", "/submit/2100/100"], clients=1)
    of_the_master = range(20_100, 20_300) if preload else []
    assert sorted(map(int, names())) == [*range(2200), *of_the_master]
    assert "Traceback" not in log.read_text()


ENDINGS = ["commit"] * 100 + ["error"] * 40 + ["set_rollback"] * 30 + ["inner"] * 30


def test_transactions_of_requests(postgres: PostgresObserver, tmp_path: Path) -> None:
    """100 requests that commit have their tasks see the rows, 100 that do not submit nothing."""
    random.Random(7).shuffle(ENDINGS)
    log = tmp_path / "log"
    options = ["--workers=1", "--threads=8"]
    with gunicorn(log, *options, site="tests.projects.wsgi_named", TEST_ATOMIC_REQUESTS="yes") as port:
        answers = ask_all(port, [f"/order/{ending}" for ending in ENDINGS], clients=8)
        assert collections.Counter(status for status, _ in answers) == {200: 160, 500: 40}
        assert wait_until(lambda: idle_workers(port), within=20)
        found = numbers(port)
        assert (found["submitted"], found["cancelled"]) == (100, 100)
        assert (found["found"], found["not found"]) == (100, 0)
        assert not postgres.left()
    found_rows = collections.Counter(names())
    assert found_rows == {"of a request": 100, "of the outer transaction": 30}
    assert "Traceback" not in log.read_text()


def test_django_tasks(postgres: PostgresObserver, tmp_path: Path) -> None:
    """2,000 of Django's Tasks, enqueued by 8 request threads, run once each, with the right results."""
    log = tmp_path / "log"

    def results() -> dict[str, int]:
        found: dict[str, int] = json.loads(ask(port, "/results")[1])
        assert found["wrong"] == 0  # none that has run is said to wait
        return found

    with gunicorn(log, "--workers=1", "--threads=8", site="tests.projects.wsgi_named") as port:
        answers = ask_all(port, [f"/enqueue/{first}/100" for first in range(0, 2000, 100)], clients=8)
        assert {status for status, _ in answers} == {200}
        assert wait_until(results, lambda found: found["right"] == 2000, within=60)["right"] == 2000
        assert not postgres.left()
    assert sorted(map(int, names())) == list(range(2000))
    assert "Traceback" not in log.read_text()
