"""The page on deploying does what it says, under the real servers: what is lost is in the log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.db import connection

from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver
from tests.support.pages import BLOCK, TUTORIAL
from tests.support.serving import Served, ask, serve
from tests.support.subprocesses import environment
from tests.support.waiting import wait_until

PAGE = TUTORIAL.with_name("deploying.md")
QUICK, HELD = Counter(quick=5), Counter(rebuild=4)
QUEUED = Counter(mail=30, index=7)

#: Added to the page's shop/jobs.py. `rebuild` goes on until the test lets it.
JOBS = """
import sys
import threading
from pathlib import Path

from tests.projects.testapp.models import Entry
from tests.support.waiting import wait_until

begun = threading.Semaphore(0)

def tell_that_all_is_submitted():
    # Only once the command waits: a signal that comes while it takes its futures' locks leaves them so.
    frame_of_main = lambda: sys._current_frames()[threading.main_thread().ident]
    assert wait_until(lambda: frame_of_main().f_code is threading.Condition.wait.__code__, within=60)
    Path("all submitted").touch()

def quick():
    Entry.objects.create(name="quick")

def rebuild():
    begun.release()
    assert wait_until(Path("go on").exists, within=60)
    Entry.objects.create(name="rebuild")

def mail():
    Entry.objects.create(name="mail")

def index():
    Entry.objects.create(name="index")

def orders():
    yield from [quick] * 5
    yield from [rebuild] * 4
    for _ in range(4):
        assert begun.acquire(timeout=20)
    yield from [mail] * 30
    yield from [index] * 7
    if sys.argv[-1] == "import_orders":
        threading.Thread(target=tell_that_all_is_submitted, daemon=True).start()

def import_order(order):
    order()
"""

SITE = """
import os
from django.http import HttpResponse
from django.urls import path
from . import jobs

def submit(request):
    for order in jobs.orders():
        jobs.pool.submit(order)
    return HttpResponse(str(os.getpid()))

urlpatterns = [path("", submit)]
"""

WSGI = """
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
"""

SETTINGS = """
from tests.settings import *
INSTALLED_APPS = ["tests.projects.testapp", "shop"]
ROOT_URLCONF = "shop.site"
"""


@dataclass
class Project:
    """The page's project, and the log of what runs in it."""

    folder: Path

    def __post_init__(self) -> None:
        self.log = self.folder / "log"
        self.go_on = self.folder / "go on"
        for _, caption, text in BLOCK.findall(PAGE.read_text()):
            path = self.folder / caption
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("timeout=20", "timeout=0.5"))
        shop = self.folder / "shop"
        jobs = shop / "jobs.py"
        jobs.write_text(jobs.read_text() + JOBS)
        (shop / "site.py").write_text(SITE)
        (shop / "settings.py").write_text(SETTINGS)
        (shop / "wsgi.py").write_text(WSGI)

    @property
    def variables(self) -> dict[str, str]:
        found = environment("shop.settings")
        return found | {"PYTHONPATH": os.pathsep.join([str(self.folder), found["PYTHONPATH"]])}

    def gunicorn(self, *options: str) -> AbstractContextManager[Served]:
        return self._serve("gunicorn", "shop.wsgi", "--no-control-socket", *options, bind="--bind=fd://")

    def uvicorn(self, *options: str) -> AbstractContextManager[Served]:
        return self._serve("uvicorn", *options, bind="--fd=")

    def _serve(self, module: str, *options: str, bind: str) -> AbstractContextManager[Served]:
        return serve(self.log, module, *options, bind=bind, cwd=self.folder, variables=self.variables)

    def command(self) -> subprocess.Popen[bytes]:
        """Start the page's management command."""
        with self.log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "django", "import_orders"],
                cwd=self.folder,
                env=self.variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def submit(self, port: int) -> int:
        """Have the site queue its work behind tasks that run, and return the process that does it."""
        return int(ask(port)[1])

    def named(self, within: float = 20) -> tuple[Counter[str], Counter[str]]:
        """Return what the log names as running, and as not run."""
        pattern = re.compile(r"shutdown left running=(.*) not_run=(.*)")
        found = wait_until(lambda: pattern.findall(self.log.read_text()), within=within)
        assert len(found) == 1, self.log.read_text()
        running, not_run = (
            Counter({name: int(count) for name, count in re.findall(r"shop\.jobs\.(\w+) x(\d+)", text)})
            for text in found[0]
        )
        return running, not_run


def rows() -> Counter[str]:
    """Count by name the tasks that have run."""
    try:
        return Counter(Entry.objects.values_list("name", flat=True))
    finally:
        connection.close()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize(
    ("worker", "killed"), [("sync", False), ("gthread", True)], ids=["in time", "killed"]
)
def test_gunicorn(worker: str, killed: bool, project: Project, postgres: PostgresObserver) -> None:
    """A restart by SIGTERM with work queued loses only what the log names."""
    with project.gunicorn(f"--worker-class={worker}") as (server, port):
        pid = project.submit(port)
        server.terminate()
        running, not_run = project.named()
        if killed:
            os.kill(pid, signal.SIGKILL)  # as a server does that is out of patience
        else:
            project.go_on.touch()
        assert server.wait(20) == 0
    assert (running, not_run) == (HELD, QUEUED)
    assert rows() == (QUICK if killed else QUICK + HELD)
    assert not postgres.left()


def test_gunicorn_restarts_its_workers(project: Project, postgres: PostgresObserver) -> None:
    """So does SIGHUP, by which the workers alone are restarted; the new ones have nothing to say."""
    with project.gunicorn() as (server, port):
        project.submit(port)
        server.send_signal(signal.SIGHUP)
        assert project.named() == (HELD, QUEUED)
        project.go_on.touch()
        assert wait_until(rows, lambda found: found == QUICK + HELD, within=20) == QUICK + HELD
        project.submit(port)
        everything = QUICK + HELD + QUEUED
        both = QUICK + HELD + everything
        assert wait_until(rows, lambda found: found == both, within=20) == both
        server.terminate()
        assert server.wait(20) == 0
    assert project.named() == (HELD, QUEUED)
    assert not postgres.left()


def test_uvicorn(project: Project, postgres: PostgresObserver) -> None:
    """With the lifespan's end, a SIGTERM to uvicorn loses only what the log names."""
    with project.uvicorn("shop.asgi:application") as (server, port):
        project.submit(port)
        server.terminate()
        assert server.wait(20) == -signal.SIGTERM
    assert project.named() == (HELD, QUEUED)
    assert rows() == QUICK
    assert not postgres.left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command(number: signal.Signals, project: Project, postgres: PostgresObserver) -> None:
    """A management command that is told to end names what it has not run, and ends what runs."""
    with project.command() as command:
        assert wait_until((project.folder / "all submitted").exists, within=60)
        command.send_signal(number)
        running, not_run = project.named()
        project.go_on.touch()
        ended = command.wait(20)
    assert ended == (128 + number if number == signal.SIGTERM else -number)
    assert (running.total(), not_run.total()) == (HELD.total(), QUEUED.total())
    assert rows() == QUICK + HELD
    assert not postgres.left()
