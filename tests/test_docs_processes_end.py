"""What `docs/processes.md` says of the ends of processes and pools, by name and under gunicorn too."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings

from django_executors import ProcessPoolExecutor, executors
from django_executors.checks import check_settings

from . import process_reports
from .observers import PostgresObserver
from .serving import ask_all, gunicorn
from .test_docs_named import defined_by
from .test_docs_processes import AGAIN, SETTINGS
from .testapp.models import Entry
from .waiting import wait_until

reports: Any = process_reports


@pytest.fixture
def pks() -> list[int]:
    return [Entry.objects.create(name="x" * length).pk for length in (1, 2, 3)]


def test_a_deadline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What runs at the deadline is named, and goes on to its end."""
    begun, path = tmp_path / "begun", tmp_path / "end"
    pool = ProcessPoolExecutor(1)
    future = pool.submit(reports.wait_for_file, str(begun), str(path))
    assert wait_until(begun.exists, within=20)
    pool.shutdown(timeout=0)
    (record,) = caplog.records
    assert "tests.process_reports.wait_for_file" in record.getMessage()
    path.touch()
    assert future.result(30) == "done"


def test_a_process_that_dies(pks: list[int], postgres: PostgresObserver) -> None:
    """Its task and the next one fail, a new pool works, and the server is left with nothing."""
    attempt = defined_by(AGAIN)["attempt"]
    with ProcessPoolExecutor(1) as pool:
        with pytest.raises(BrokenProcessPool):
            pool.submit(reports.kill_oneself).result(30)
        with pytest.raises(BrokenProcessPool):
            pool.submit(reports.pid)
    with pytest.raises(RuntimeError, match="twice"):
        attempt(reports.kill_oneself, [1])
    assert attempt(reports.length_of, pks) == [1, 2, 3]
    connections.close_all()
    assert not postgres.left()


def test_max_tasks_per_child() -> None:
    """A process does so many tasks, and another one the next; forked ones cannot."""
    with ProcessPoolExecutor(1, max_tasks_per_child=2) as pool:
        pids = [pool.submit(reports.pid).result(30) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        ProcessPoolExecutor(1, "fork", max_tasks_per_child=2)


def test_by_name() -> None:
    """The setting makes such a pool, and the checks find nothing wrong with it."""
    with override_settings(EXECUTORS=defined_by(SETTINGS)["EXECUTORS"]):
        assert check_settings() == []
        try:
            assert isinstance(executors["reports"], ProcessPoolExecutor)
            future = executors["reports"].submit(reports.start_method)
        finally:
            executors.shutdown(timeout=30)
        assert future.done()
        assert future.result() == "spawn"


def test_under_gunicorn(tmp_path: Path) -> None:
    """Each worker has a pool of its own, also where it was made before the fork."""
    log = tmp_path / "log"
    with gunicorn(log, "--preload", "--workers=2", site="tests.process_site") as port:
        answers = ask_all(port, ["/"] * 24, clients=8)
    assert {status for status, _ in answers} == {200}, log.read_text()
    gunicorns: dict[str, set[str]] = {}
    for _, answer in answers:
        parent, child = answer.split()
        gunicorns.setdefault(parent, set()).add(child)
    assert not set.intersection(*gunicorns.values()) or len(gunicorns) == 1
    assert all(len(children) <= 2 for children in gunicorns.values())
