"""What an executor that broke tells of the tasks that nobody has asked for: one record for all."""

from __future__ import annotations

import concurrent.futures
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from django_executors import ProcessPoolExecutor, ThreadPoolExecutor
from django_executors.dask import DaskExecutor

from . import process_tasks as tasks
from .gates import Gate
from .subprocesses import run_python

pytestmark = pytest.mark.usefixtures("collector_off", "dask_sockets", "idle_before_and_after")

LOGGER = "django_executors.execution.futures"
SAID = (
    "tasks=6 (tests.process_tasks.a_lock x5, builtins.abs x1) failed as their executor broke, "
    "and nobody has asked for their results"
)


def submit_unasked(pool: Any) -> Any:
    """Return a future of which somebody asks, unlike of six others."""
    asked = pool.submit(tasks.names)
    for _ in range(5):
        pool.submit(tasks.a_lock)
    pool.submit(abs, -1)
    return asked


def a_failed_initializer(_: Path) -> Any:
    gate = Gate()

    def broken_later() -> None:
        gate()
        raise OSError

    pool = ThreadPoolExecutor(1, initializer=broken_later)
    asked = submit_unasked(pool)
    del pool  # which the standard class breaks only where somebody refers to it
    gate.open()
    return asked


def a_dead_process(tmp_path: Path) -> Any:
    pool = ProcessPoolExecutor(1)
    died = pool.submit(tasks.die_when_there_is_a_file, str(tmp_path / "go"))
    asked = submit_unasked(pool)
    (tmp_path / "go").touch()
    assert isinstance(died.exception(30), concurrent.futures.BrokenExecutor)
    return asked


@pytest.mark.parametrize("break_it", [a_failed_initializer, a_dead_process])
def test_told_once(
    break_it: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = break_it(tmp_path)
    assert isinstance(asked.exception(30), concurrent.futures.BrokenExecutor)
    del asked
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    assert (record.levelno, record.getMessage()) == (logging.ERROR, SAID)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], concurrent.futures.BrokenExecutor)


def test_a_lost_scheduler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that fail in a row are told together; how many those are is the network's to say."""
    executor = DaskExecutor(n_workers=1, threads_per_worker=1)
    running = executor.submit(tasks.wait_for_a_file, str(tmp_path / "go"))
    asked = submit_unasked(executor)
    link = executor._link
    assert link is not None
    link._client.close()
    assert isinstance(running.exception(30), concurrent.futures.BrokenExecutor)
    assert isinstance(asked.exception(30), concurrent.futures.BrokenExecutor)
    (tmp_path / "go").touch()
    executor.shutdown()
    told = "".join(record.getMessage() for record in caplog.records if record.name == LOGGER)
    assert sum(map(int, re.findall(r"a_lock x(\d)", told))) == 5
    assert told.count("builtins.abs x1") == 1


def test_told_at_exit() -> None:
    """Also of those whose futures are there until the end."""
    code = """
    from django_executors import ProcessPoolExecutor
    from tests import process_tasks as tasks

    pool = ProcessPoolExecutor(1, "fork")
    futures = [pool.submit(tasks.killed), *(pool.submit(abs, -1) for _ in range(20))]
    """
    said = run_python(code, settings="tests.settings_with_app").stderr
    assert said.count("nobody has asked") == 1
    assert "failed as their executor broke" in said
