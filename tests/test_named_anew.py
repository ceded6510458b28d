"""`executors`: one that is of no use any more is replaced when it is next asked for."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings

from django_executors import executors

from . import process_tasks as tasks
from .observers import PostgresObserver

pytestmark = pytest.mark.usefixtures("collector_off", "idle_before_and_after")

OPTIONS: dict[str, Any] = {"max_workers": 2}
PROCESSES = {"BACKEND": "django_executors.ProcessPoolExecutor", "OPTIONS": OPTIONS}
THREADS = {"OPTIONS": OPTIONS | {"initializer": tasks.fail}}


@pytest.fixture(autouse=True)
def made_anew() -> Iterator[None]:
    with override_settings(EXECUTORS={"reports": PROCESSES, "mails": THREADS}):
        yield
        executors.shutdown()


def test_a_dead_process(caplog: pytest.LogCaptureFixture, postgres: PostgresObserver) -> None:
    """All threads that ask then get the same new pool, of which the log tells once."""
    broken = executors["reports"]
    with pytest.raises(concurrent.futures.BrokenExecutor):
        broken.submit(tasks.killed).result(30)
    barrier = threading.Barrier(8)

    def ask(_: int) -> object:
        barrier.wait(10)
        return executors["reports"]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        (new,) = set(threads.map(ask, range(8)))
    assert new is executors["reports"] is not broken
    assert executors["reports"].submit(tasks.database).result(30) == tasks.database()
    told = [record.getMessage() for record in caplog.records if "made anew" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("executor=reports is made anew: A child process terminated abruptly")
    with pytest.raises(concurrent.futures.BrokenExecutor):
        broken.submit(tasks.database)


def test_an_initializer_that_failed() -> None:
    broken = executors["mails"]
    with pytest.raises(concurrent.futures.BrokenExecutor):
        broken.submit(print).result(10)
    assert executors["mails"] is not broken


def test_other_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who asked before get an error, and what they had submitted runs on the databases of then."""
    first = executors["reports"]
    before = first.submit(tasks.database)
    default, other = (connections.settings[alias]["NAME"] for alias in ("default", "other"))
    monkeypatch.setitem(connections.settings["default"], "NAME", other)
    assert executors["reports"].submit(tasks.database).result(30) == other
    assert before.result(30) == default
    first.shutdown()


def test_those_of_a_shut_down_registry() -> None:
    """What is made anew refuses tasks too."""
    with pytest.raises(concurrent.futures.BrokenExecutor):
        executors["reports"].submit(tasks.killed).result(30)
    executors.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executors["reports"].submit(print)
