"""The project of the page on deploying: its own blocks, and tasks that leave a trace in the database."""

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
from urllib.request import urlopen

from django.db import connection

from tests.projects.testapp.models import Entry
from tests.support.pages import BLOCK, TUTORIAL, plain_blocks
from tests.support.serving import Served, serve
from tests.support.subprocesses import environment
from tests.support.waiting import wait_until

PAGE = TUTORIAL.with_name("deploying.md")
QUICK, HELD = Counter(quick=5), Counter(rebuild=4)
QUEUED = Counter(mail=30, index=7)

#: Takes the place of the page's own pool.
NAMED = """
from django_executors import executors

pool = executors["default"]
"""

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

NAMED_SETTINGS = """
EXECUTORS = {"default": {"OPTIONS": {"max_workers": 4}}}
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
            path.write_text(text.replace("timeout=20)", "timeout=0.5)"))
        shop = self.folder / "shop"
        jobs = shop / "jobs.py"
        jobs.write_text(jobs.read_text() + JOBS)
        (shop / "site.py").write_text(SITE)
        (shop / "settings.py").write_text(SETTINGS)
        (shop / "wsgi.py").write_text(WSGI)

    def name_its_pool(self) -> None:
        """Have the settings name the pool, and the page on named executors say how it is shut down."""
        shop = self.folder / "shop"
        (shop / "jobs.py").write_text(NAMED + JOBS)
        (shop / "settings.py").write_text(SETTINGS + NAMED_SETTINGS)
        hook = plain_blocks(TUTORIAL.with_name("named.md"))[-1]
        (self.folder / "gunicorn.conf.py").write_text(hook.replace("timeout=20)", "timeout=0.5)"))

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
        with urlopen(f"http://127.0.0.1:{port}/", timeout=20) as response:
            return int(response.read())

    def all_is_submitted(self) -> bool:
        return wait_until((self.folder / "all submitted").exists, within=60)

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

    def says_nothing(self) -> bool:
        return "shutdown left" not in self.log.read_text()


def rows() -> Counter[str]:
    """Count by name the tasks that have run."""
    try:
        return Counter(Entry.objects.values_list("name", flat=True))
    finally:
        connection.close()


def kill(pid: int) -> None:
    """Do what a server does that is out of patience."""
    os.kill(pid, signal.SIGKILL)
