"""`docs/outgrowing.md`: the same tasks, on one backend after another, with their real workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.observers import PostgresObserver
from tests.support.subprocesses import ROOT, WITH_APP, environment, python, run_python

SETTINGS = "tests.projects.outgrown.settings_"
DATABASE = "outgrown"


class Backend(NamedTuple):
    """One row of the page's table."""

    has: list[str]
    #: What becomes of a task whose transaction rolls back.
    rolled_back: str
    #: The command that runs the tasks, if the process that enqueues does not.
    worker: str
    #: What has to be installed.
    needs: str


CELERY = "-m celery --app=tests.projects.outgrown.celery worker --pool=solo --loglevel=INFO"
RQ = "-m django rqworker --job-class=django_tasks_rq.Job --with-scheduler"
DB = "-m django db_worker --interval=0.05 --no-startup-delay"
BACKENDS = {
    "memory": Backend([], "never enqueued", "", "django_executors"),
    "db": Backend(["defer", "priority"], "never enqueued", DB, "django_tasks_db"),
    "celery": Backend(["defer", "priority"], "SUCCESSFUL", CELERY, "django_tasks_celery"),
    "rq": Backend(["defer"], "SUCCESSFUL", RQ, "django_tasks_rq"),
}


@pytest.fixture
def database(postgres: PostgresObserver) -> Iterator[None]:
    """A database of the project's own."""
    postgres.execute(f"CREATE DATABASE {DATABASE}")
    yield
    postgres.kill(DATABASE)
    postgres.execute(f"DROP DATABASE {DATABASE}")


def run(settings: str, *arguments: str) -> str:
    done = python(*arguments, variables=variables(settings))
    assert done.returncode == 0, done.stderr
    return done.stdout


def variables(settings: str) -> dict[str, str]:
    return environment(f"{SETTINGS}{settings}") | {"TEST_DATABASE": DATABASE}


@contextlib.contextmanager
def worker(settings: str, log: Path) -> Iterator[None]:
    """Run the backend's own worker, where it has one, until the end of the block."""
    command = BACKENDS[settings].worker
    if not command:
        yield
        return
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command.split()],
            cwd=ROOT,
            env=variables(settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


@pytest.mark.parametrize("settings", BACKENDS)
@pytest.mark.usefixtures("database")
def test_the_same_tasks(settings: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Values, failures, errors and attempts are the same; only the settings differ."""
    has, rolled_back, _, needs = BACKENDS[settings]
    pytest.importorskip(needs, reason=f"{needs} is not for this Python or Django")
    if settings in ("celery", "rq"):
        request.getfixturevalue("redis")
    run(settings, "-m", "django", "migrate", "--run-syncdb", "--verbosity=0")
    log = tmp_path / "log"
    with worker(settings, log):
        found = json.loads(run(settings, "-m", "tests.projects.outgrown.run"))
    assert found == {
        "has": has,
        "rolled back": rolled_back,
        "run after": "SUCCESSFUL" if "defer" in has else "refused",
        "values": [1, 1],
        "statuses": ["SUCCESSFUL", "SUCCESSFUL", "FAILED"],
        "errors": ["builtins.LookupError"],
        "attempts": [1, 1, 1],
        "told": True,
        "elsewhere": settings != "memory",
    }, log.read_text() if log.exists() else ""


def test_celery_finds_no_tasks_of_ours() -> None:
    """Celery imports `tasks` of each installed app: ours has no such module, and nothing goes wrong."""
    pytest.importorskip("celery")
    done = run_python(
        """
        import sys
        from celery import Celery
        app = Celery("project")
        app.config_from_object("django.conf:settings", namespace="CELERY")
        app.autodiscover_tasks(force=True)
        app.loader.import_default_modules()
        from django.apps import apps
        print(apps.is_installed("django_executors"), "django_executors.tasks" in sys.modules)
        """,
        settings=WITH_APP,
        warnings="ignore",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True False\n", "")
