"""`run_inline`: by itself here, and in the tests of a small project, under both test runners."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import subprocess
import sys
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import SimpleTestCase

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.execution import inline
from django_executors.testing import run_inline
from private_servers import django_database

from .observers import PostgresObserver
from .running_cases import run_case
from .subprocesses import ROOT, environment
from .testapp.models import Entry

PROJECT, PACKAGE = "tests/inline_project", "tests.inline_project"
RUNNERS = {
    "django": (["django", "test", f"{PACKAGE}.cases_django", "--noinput"], "Ran {} tests"),
    "pytest": (
        ["pytest", "-c", f"{PROJECT}/cases_pytest.ini", f"{PROJECT}/cases_pytest.py"],
        "{} passed",
    ),
}


def _server(variable: str) -> dict[str, Any]:
    if variable not in os.environ:
        pytest.skip(f"no {variable}")
    return django_database(os.environ[variable]) | {"NAME": "inline"}


def _sqlite(**test: str) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "TEST": test}


DATABASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "postgresql": lambda folder: _server("TEST_POSTGRES_URL"),
    "mariadb": lambda folder: _server("TEST_MARIADB_URL"),
    "sqlite in memory": lambda folder: _sqlite(),
    "sqlite in a file": lambda folder: _sqlite(NAME=str(folder / "test.sqlite3")),
}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("database", DATABASES)
def test_in_a_project(runner: str, database: str, tmp_path: Path, postgres: PostgresObserver) -> None:
    """A project's tests see what tasks wrote, roll it back, and keep their connection."""
    arguments, summary = RUNNERS[runner]
    variables = environment(f"{PACKAGE}.settings")
    variables["INLINE_PROJECT_DATABASE"] = json.dumps(DATABASES[database](tmp_path))
    variables.pop("PYTEST_ADDOPTS", None)
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", *arguments],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    assert re.search(summary.format("[1-9][0-9]"), finished.stdout), finished.stdout
    assert not re.search("skipped|deselected|xfailed", finished.stdout), finished.stdout
    assert not postgres.left("test_inline")


def runs_inline(pool: concurrent.futures.Executor) -> bool:
    return pool.submit(threading.get_ident).result(10) == threading.get_ident()


def test_workers_again_afterwards() -> None:
    """When it ends, by an exception too, tasks run in workers again; it may be nested."""
    with ThreadPoolExecutor(1) as pool:
        assert not runs_inline(pool)
        with run_inline():
            assert runs_inline(pool)
            with pytest.raises(LookupError), run_inline():
                raise LookupError
            assert runs_inline(pool)
        assert not runs_inline(pool)


def test_decorates_functions() -> None:
    """A decorated function runs inline each time it is called, and only then."""
    with ThreadPoolExecutor(1) as pool:

        @run_inline
        def decorated(pool: ThreadPoolExecutor) -> bool:
            """Say it."""
            return runs_inline(pool)

        assert [decorated(pool), runs_inline(pool), decorated(pool)] == [True, False, True]
    assert (decorated.__name__, decorated.__doc__) == ("decorated", "Say it.")


@pytest.mark.parametrize("what", [int, 5], ids=["a class", "a number"])
def test_decorates_nothing_else(what: Any) -> None:
    """It refuses what is neither a function nor a test case."""
    with pytest.raises(TypeError, match=r"int|\(5\)"):
        run_inline(what)


def test_ends_where_a_class_fails_to_set_up() -> None:
    """It ends too when a decorated class cannot be set up."""

    @run_inline
    class Broken(SimpleTestCase):
        @classmethod
        def setUpClass(cls) -> None:
            super().setUpClass()
            raise LookupError

        def test(self) -> None:
            raise AssertionError

    result = run_case(Broken)
    ((_, error),) = result.errors
    assert "LookupError" in error
    with ThreadPoolExecutor(1) as pool:
        assert not runs_inline(pool)


def test_holds_in_every_thread() -> None:
    """It is in force in all threads: each runs its tasks itself, on its own connection."""
    with (
        run_inline(),
        ThreadPoolExecutor(1) as pool,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        assert list(threads.map(runs_inline, [pool] * 4, timeout=10)) == [True] * 4
        assert runs_inline(pool)


def test_opens_nothing_and_starts_no_worker(postgres: PostgresObserver) -> None:
    """The caller's connection is all that the server sees, and no thread is started."""
    threads = threading.active_count()
    with run_inline(), transaction.atomic(), ThreadPoolExecutor(4) as pool:
        Entry.objects.create(name="of the caller")
        assert list(pool.map(lambda _: Entry.objects.count(), range(8))) == [1] * 8
        assert threading.active_count() == threads
        assert len(postgres.backends()) == len(all_connections()) == 1
        transaction.set_rollback(True)
    assert Entry.objects.count() == 0


def test_what_was_submitted_before_goes_on() -> None:
    """A task in a worker stays there, lets go at its end, and runs inline what it submits meanwhile."""
    started, go_on = threading.Event(), threading.Event()
    pool = ThreadPoolExecutor(1, "before")

    def task() -> tuple[str, bool]:
        Entry.objects.create(name="of the worker")
        started.set()
        assert go_on.wait(10)
        pool.submit(connection.close).result(10)
        return threading.current_thread().name, runs_inline(pool)

    future = pool.submit(task)
    assert started.wait(10)
    with run_inline():
        go_on.set()
        assert future.result(10) == ("before_0", True)
    assert all_connections() == ()


def test_after_shutdown() -> None:
    """A pool that is shut down refuses tasks, inline or not."""
    pool = ThreadPoolExecutor(1)
    with run_inline():
        with pool:
            assert runs_inline(pool)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            pool.submit(int)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)


def test_a_decorated_class_leaves_no_setup_of_its_siblings_out() -> None:
    """As one base of several, it runs the next one's setUpClass, and its own where it has one."""
    ran: list[str] = []

    @run_inline
    class Base(unittest.TestCase):
        pass

    @run_inline
    class Own(unittest.TestCase):
        @classmethod
        def setUpClass(cls) -> None:
            ran.append(f"own of {cls.__name__}")
            super().setUpClass()

    class Other(unittest.TestCase):
        @classmethod
        def setUpClass(cls) -> None:
            ran.append("other")
            super().setUpClass()

    class Mixed(Base, Own, Other):
        def test(self) -> None:
            assert inline.switched_on

    result = run_case(Mixed)
    assert result.wasSuccessful()
    assert result.testsRun == 1
    assert ran == ["own of Mixed", "other"]
    assert not inline.switched_on
