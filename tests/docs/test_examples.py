"""The Python that stands by itself on a page, in no file of a project, run as it is written.

The pages that have a module of their own here are not in this one.
"""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import TestCase, override_settings
from django.utils import translation

import django_executors
from django_executors import ThreadPoolExecutor, all_connections, conf, release_connections
from django_executors.checks import check_settings
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support.ceilings import ceiling, count_connections, waits
from tests.support.forks import fork
from tests.support.gates import Gate
from tests.support.kept import backend, results
from tests.support.leaking import leaks
from tests.support.observers import PostgresObserver
from tests.support.pages import BLOCK, DIFF, TUTORIAL, defined_by, plain_blocks
from tests.support.running_cases import run_case
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

DOCS = TUTORIAL.parent
README = DOCS.with_name("README.md")
PAGES = [README, *sorted(DOCS.glob("*.md"))]

# A block more on one of these pages is an error here, until it has a test.
(REPORT_TESTS,) = plain_blocks(README)
CEILING, TOTALS = plain_blocks(DOCS / "ceiling.md")
(GERMAN,) = plain_blocks(DOCS / "context.md")
PRELOADED, CLOSE_ALL = plain_blocks(DOCS / "deploying.md")
CLOSING_EXECUTOR, INSTALLED_APPS, SHOW = plain_blocks(DOCS / "migrate.md")
HOLD_WARNING, APPLICATION_NAME = plain_blocks(DOCS / "operations.md")
(IDLE,) = plain_blocks(DOCS / "speed.md")
(IMMEDIATE,) = plain_blocks(DOCS / "testing.md")

PYTHON = re.compile(r"^\s*(?:```|:::)(?:py|\{(?:code-block|code|sourcecode)\} py)", re.MULTILINE)
#: Those with files of a project: their modules make the whole project.
PROJECTS = {"deploying.md", "testing.md", "tutorial.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_example_is_forgotten(page: Path) -> None:
    """Each block of Python is one that the tests find, and a test reads its page."""
    plain = plain_blocks(page)
    in_files = [text for language, _, text in BLOCK.findall(page.read_text()) if language == "python"]
    assert len(plain) + len(in_files) == len(PYTHON.findall(page.read_text()))
    assert bool(in_files) == (page.name in PROJECTS)
    if plain:
        assert any(f'"{page.name}"' in test.read_text() for test in Path(__file__).parent.glob("*.py"))


@leaks
@pytest.mark.parametrize(
    "page", [README, DOCS / "index.md", DOCS / "migrate.md"], ids=lambda page: page.name
)
def test_the_changed_line(page: Path, postgres: PostgresObserver) -> None:
    """The line that comes leaves no connection, the line that goes does."""

    def count_with(line: str) -> None:
        with defined_by(line)["ThreadPoolExecutor"](1) as pool:
            assert pool.submit(Entry.objects.count).result(10) == 0

    ((goes, comes),) = DIFF.findall(page.read_text())
    count_with(comes)
    assert not postgres.left()
    count_with(goes)
    assert len(postgres.backends()) == 1


def test_a_test_case_with_run_inline() -> None:
    """README: the tasks run in the test's own thread, and what they write is rolled back."""
    case: Any = defined_by(REPORT_TESTS, run_inline=run_inline, TestCase=TestCase)["ReportTests"]
    assert run_case(case).wasSuccessful()
    found = []

    class Case(case):  # type: ignore[misc]
        def test_report(self) -> None:
            with ThreadPoolExecutor(2) as pool:
                pool.submit(Entry.objects.create, name="a report").result(10)
                found.append(pool.submit(threading.get_ident).result(10))
            found.append(Entry.objects.count())

    assert run_case(Case).errors == []
    assert found == [threading.get_ident(), 1]
    assert Entry.objects.count() == 0


def test_ceiling(monkeypatch: pytest.MonkeyPatch, holding: Gate) -> None:
    """Of twenty workers sixteen connect, and four wait for their turn; the timeout is the default."""
    default = conf.current().connection_wait_timeout
    most = count_connections(monkeypatch)
    found = {name: value for name, value in defined_by(CEILING).items() if name.isupper()}
    with override_settings(**found), ThreadPoolExecutor(20) as pool:
        assert check_settings() == []
        assert conf.current().max_connections == {"default": 16}
        assert conf.current().connection_wait_timeout == default
        futures = [pool.submit(holding) for _ in range(20)]
        holding.wait_for(16)
        assert wait_until(lambda: waits("default"), lambda count: count == 4, within=20) == 4
        holding.open()
        results(futures)
    assert most.most == 16


def test_operations() -> None:
    """Both settings are right ones."""
    found = {**defined_by(HOLD_WARNING), **defined_by(APPLICATION_NAME)}
    with override_settings(**{name: value for name, value in found.items() if name.isupper()}):
        assert check_settings() == []
        assert conf.current().hold_warning == 30.0
        with ThreadPoolExecutor(1, "reports") as pool:
            shown = pool.submit(application_name).result(20)
    assert shown == f"tests:reports:{os.getpid()}"


def application_name() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW application_name")
        return str(cursor.fetchone()[0])


def test_totals_under_a_ceiling() -> None:
    """What the task gives back, those that it waits for can take."""
    Entry.objects.create(name="a shop")

    def total(shop: Entry) -> tuple[str, int]:
        return shop.name, Entry.objects.count()

    with ceiling(1, timeout=5.0), ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(1) as another:
        names = {"Shop": Entry, "release_connections": release_connections, "pool": pool, "total": total}
        assert another.submit(defined_by(TOTALS, **names)["totals"]).result(20) == [("a shop", 1)]


def test_language_of_the_initializer() -> None:
    """The pool's tasks speak German, whatever their submitter speaks."""
    with defined_by(GERMAN)["pool"] as pool, translation.override("fr"):
        assert pool.submit(translation.get_language).result(10) == "de"


def test_pool_made_before_the_fork(postgres: PostgresObserver) -> None:
    """It works on both sides, with threads of its own on each."""
    pool = defined_by(PRELOADED)["pool"]

    def use() -> None:
        assert pool.submit(os.getpid).result(10) == os.getpid()
        assert pool.submit(Entry.objects.count).result(10) == 0

    use()
    assert fork(use) == (0, "")
    use()
    pool.shutdown()
    assert not postgres.left()


def test_close_all_before_the_fork(postgres: PostgresObserver) -> None:
    """There is no socket left for the child to share."""
    Entry.objects.count()
    assert len(postgres.backends()) == 1
    defined_by(CLOSE_ALL)
    assert not postgres.left()

    def child() -> None:
        assert connection.connection is None
        assert Entry.objects.count() == 0

    assert fork(child) == (0, "")


def test_class_under_the_name_of_ones_own() -> None:
    """It is ours."""
    executor = defined_by(CLOSING_EXECUTOR)["ClosingExecutor"]
    assert executor is django_executors.ThreadPoolExecutor


def test_installed_app() -> None:
    """With it, a thread that ends closes its connection."""
    done = run_python(
        "import tests.settings",
        INSTALLED_APPS.replace("...", "*tests.settings.INSTALLED_APPS"),
        """
        import gc, threading, django
        gc.disable()
        tests.settings.INSTALLED_APPS = INSTALLED_APPS
        django.setup()
        from django_executors import all_connections
        from tests.projects.testapp.models import Entry
        thread = threading.Thread(target=Entry.objects.count)
        thread.start()
        thread.join(10)
        print(all_connections())
        """,
        settings=None,
        DJANGO_SETTINGS_MODULE="tests.settings",
    )
    assert (done.returncode, done.stdout) == (0, "()\n"), done.stderr


def test_what_is_open(holding: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints a line for a connection that a task holds, and nothing afterwards."""
    with ThreadPoolExecutor(1, "reports") as pool:
        future = pool.submit(holding)
        holding.wait_for()
        defined_by(SHOW)
        shown = capsys.readouterr().out
        holding.open()
        future.result(10)
        defined_by(SHOW)
    assert re.fullmatch(r"default reports_0 tests\.support\.ceilings\.QueriesThenWaits \d\n", shown)
    assert capsys.readouterr().out == ""


def test_conn_max_idle(postgres: PostgresObserver) -> None:
    """Tasks that come one at a time share a connection, which is still there between them."""
    with defined_by(IDLE)["pool"] as pool:
        used = {pool.submit(backend).result(10)}
        assert postgres.backends() == used
        assert pool.submit(backend).result(10) in used
    assert all_connections() == ()


def test_immediate_executor() -> None:
    """The function that takes an executor has its tasks run in the caller's thread."""
    found = []

    def write_report(executor: Executor) -> None:
        found.append(executor.submit(threading.get_ident).result(10))

    defined_by(IMMEDIATE, write_report=write_report)
    assert found == [threading.get_ident()]
