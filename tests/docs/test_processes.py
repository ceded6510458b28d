"""What `docs/processes.md` says, and its code, run as it is written."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings

from django_executors import ProcessPoolExecutor, executors
from django_executors.checks import check_settings
from tests.projects import process_reports
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver
from tests.support.pages import DIFF, TUTORIAL, defined_by, plain_blocks
from tests.support.running_cases import run_case
from tests.support.serving import ask_all, gunicorn
from tests.support.subprocesses import run_python

PAGE = TUTORIAL.with_name("processes.md")
SCRIPT, AGAIN, SETTINGS = plain_blocks(PAGE)
reports: Any = process_reports


@pytest.fixture
def pks() -> list[int]:
    return [Entry.objects.create(name="x" * length).pk for length in (1, 2, 3)]


def test_the_tasks(pks: list[int], postgres: PostgresObserver) -> None:
    """The lengths are right and in order, and no connection but the parent's is left."""
    assert reports.lengths(pks) == [1, 2, 3]
    connections.close_all()
    assert not postgres.left()


def test_the_changed_line(pks: list[int], postgres: PostgresObserver) -> None:
    """The class that comes leaves no connection in a process that waits, nor does its initializer."""
    ((_, comes),) = DIFF.findall(PAGE.read_text())
    connections.close_all()
    with defined_by(comes)["ProcessPoolExecutor"](1, initializer=reports.remember) as pool:
        assert pool.submit(reports.name_of, pks[0]).result(60) == "x"
        assert not postgres.left()
        assert pool.submit(reports.length_of, pks[0]).result(60) == 1
        assert not postgres.left()


def test_the_initializer(pks: list[int]) -> None:
    """It stands beside models, reads rows before the first task, and is not run in the parent."""
    assert reports.names(pks) == ["x", "xx", "xxx"]
    assert reports.known == {}


@pytest.mark.parametrize("method", ["spawn", "fork", None])
def test_start_methods(method: str | None) -> None:
    """Each may be asked for by its name; else it is forkserver, where there is one."""
    with ProcessPoolExecutor(1, method) as pool:
        assert pool.submit(reports.start_method).result(60) == (method or "forkserver")


def test_the_script(tmp_path: Path) -> None:
    """It prints its results; without the line that guards it, its pool is broken."""
    path = tmp_path / "script.py"
    run = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, {str(path)!r}]).returncode)"
    code = SCRIPT.replace("shop.settings", "tests.settings")
    path.write_text(code)
    done = run_python(run, settings=None)
    assert (done.returncode, done.stdout) == (0, "[1, 2]\n"), done.stderr
    path.write_text(code.replace('if __name__ == "__main__":', "if True:"))
    done = run_python(run, settings=None)
    assert done.returncode == 1
    assert "BrokenProcessPool" in done.stderr
    assert "An attempt has been made to start a new process before" in done.stderr


@pytest.mark.parametrize("case", ["LengthTests", "InlineTests"])
def test_the_test_cases(case: str) -> None:
    """The page's tests pass, and leave no row."""
    result = run_case(getattr(reports, case))
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    assert Entry.objects.count() == 0


def test_a_process_that_dies(pks: list[int], postgres: PostgresObserver) -> None:
    """Its task and the next one fail, a new pool works, and the server is left with nothing."""
    attempt = defined_by(AGAIN)["attempt"]
    with ProcessPoolExecutor(1) as pool:
        with pytest.raises(BrokenProcessPool):
            pool.submit(reports.kill_oneself).result(60)
        with pytest.raises(BrokenProcessPool):
            pool.submit(reports.pid)
    with pytest.raises(RuntimeError, match="twice"):
        attempt(reports.kill_oneself, [1])
    assert attempt(reports.length_of, pks) == [1, 2, 3]
    connections.close_all()
    assert not postgres.left()


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
    with gunicorn(log, "--preload", "--workers=2", site="tests.projects.process_site") as port:
        answers = ask_all(port, ["/"] * 24, clients=8)
    assert {status for status, _ in answers} == {200}, log.read_text()
    gunicorns: dict[str, set[str]] = {}
    for _, answer in answers:
        parent, child = answer.split()
        gunicorns.setdefault(parent, set()).add(child)
    assert not set.intersection(*gunicorns.values()) or len(gunicorns) == 1
    assert all(len(children) <= 2 for children in gunicorns.values())
