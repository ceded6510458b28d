"""The code of `docs/queue.md`, which includes it from here."""

from __future__ import annotations

import json
import logging

import pytest
from django.test import RequestFactory

from django_executors import DeadlockError, ThreadPoolExecutor
from tests.projects.bounded_views import confirmed, metrics, order, rebuild, reports
from tests.support.gates import Gate
from tests.support.waiting import wait_until


def is_idle() -> bool:
    stats = reports.stats()
    return stats.pending == stats.busy == 0


def test_the_view(gate: Gate) -> None:
    """It takes 100 requests' tasks beside those that run, and refuses the next one."""
    request = RequestFactory().post("/")
    for _ in range(4):
        reports.submit(gate)
    gate.wait_for(4)
    assert [rebuild(request, 1).status_code for _ in range(101)] == [202] * 100 + [503]
    gate.open()
    assert wait_until(is_idle, within=20)
    assert rebuild(request, 1).status_code == 202


def test_after_the_commit(caplog: pytest.LogCaptureFixture) -> None:
    """The task sees the row, and nothing is logged."""
    assert order(RequestFactory().post("/", {"name": "mine"})).status_code == 201
    assert wait_until(lambda: confirmed) == ["mine"]
    assert caplog.records == []


def test_the_metrics() -> None:
    """The numbers are JSON."""
    reports.submit(int).result(10)
    assert json.loads(metrics(RequestFactory().get("/")).content)["completed"] >= 1


def test_the_record(caplog: pytest.LogCaptureFixture) -> None:
    """The error of a task that the view has started is logged as the page says."""
    assert rebuild(RequestFactory().post("/"), -1).status_code == 202

    def errors() -> list[logging.LogRecord]:
        return [each for each in caplog.records if each.levelno == logging.ERROR]

    (record,) = wait_until(errors)
    name = "tests.projects.bounded_views.rebuild_report"
    assert record.getMessage() == f"task={name} failed, and nobody has asked for its result"


def test_the_deadlock() -> None:
    """A task that waits for one of a pool without a free worker gets the error that the page shows."""

    def report() -> int:
        return pool.submit(int).result()

    with ThreadPoolExecutor(1, "reports") as pool, pytest.raises(DeadlockError) as caught:
        pool.submit(report).result(10)
    assert str(caught.value) == (
        "a wait for a task of the worker's own pool that could never end: "
        "executor=reports workers=1 waiting=1 pending=1\n"
        "task=tests.docs.test_queue.test_the_deadlock.<locals>.report waits for task=builtins.int\n"
        "Submit from outside of the pool's tasks, or to a second pool."
    )
