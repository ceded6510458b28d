"""The page on testing does what it says: its examples, run as written, with both runners."""

from __future__ import annotations

import os
import pprint
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.db import DEFAULT_DB_ALIAS, connections, transaction

from django_executors import ThreadPoolExecutor
from private_servers import django_database
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver
from tests.support.pages import BLOCK, TUTORIAL

PAGE = TUTORIAL.with_name("testing.md")
LEAK = re.compile(r"^```text\n(.*ConnectionLeakError(?:.*\n)*?)```$", re.MULTILINE)
OPENED_AT = re.compile(r"^  opened at .*\n(?:  .*\n)*?  .*imports\.py", re.MULTILINE)

Block = tuple[str, str, str]


@dataclass
class Project:
    """The reader's project."""

    folder: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        ours = {"DJANGO_SETTINGS_MODULE", "PYTEST_ADDOPTS", "PYTHONPATH"}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if name not in ours},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def do(self, block: Block) -> None:
        """Write, or lengthen, the file that a block of the page names."""
        _, caption, text = block
        path = self.folder / caption.rpartition(" ")[2]
        if caption.startswith("at the end of "):
            text = f"{path.read_text()}\n{text}"
        path.write_text(text)

    def run_django(self, *arguments: str) -> str:
        """Run Django's runner; every test passes."""
        done = self.run("manage.py", "test", "--noinput", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    def run_pytest(self, *arguments: str) -> str:
        """Run pytest; every test passes."""
        done = self.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def blocks_of(page: Path) -> list[Block]:
    return BLOCK.findall(page.read_text())


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's project, with the table that the examples need, on SQLite in memory."""
    project = Project(tmp_path_factory.mktemp("tutorial"))
    startproject = ("-m", "django", "startproject", "bookshop", ".")
    for command in (startproject, ("manage.py", "startapp", "sales")):
        assert project.run(*command).returncode == 0
    for block in blocks_of(TUTORIAL)[:2]:  # its settings and its models
        project.do(block)
    assert project.run("manage.py", "makemigrations", "sales").returncode == 0
    return project.folder


@pytest.fixture
def project(tutorial: Path, tmp_path: Path) -> Project:
    """A copy of it for one test."""
    return Project(shutil.copytree(tutorial, tmp_path / "bookshop"))


@pytest.fixture
def whole_project(
    request: pytest.FixtureRequest, project: Project, postgres: PostgresObserver
) -> Iterator[Project]:
    """The same with all examples of the page, on SQLite in a file, or on PostgreSQL."""
    for block in blocks_of(PAGE):
        project.do(block)
    if request.param == "postgresql":
        entry = django_database(os.environ["TEST_POSTGRES_URL"]) | {"NAME": "of_the_page"}
        settings = project.folder / "bookshop" / "settings.py"
        settings.write_text(f"{settings.read_text()}\nDATABASES['default'] = {pprint.pformat(entry)}\n")
    yield project
    assert not postgres.execute("SELECT datname FROM pg_database WHERE datname LIKE '%of_the_page%'")


def test_inline_examples_need_nothing_but_memory(project: Project) -> None:
    """Up to the second tool, Django's default for SQLite will do, with both runners."""
    blocks = blocks_of(PAGE)
    (end,) = [place for place, (_, caption, _) in enumerate(blocks) if "test_connections" in caption]
    for block in blocks[:end]:
        project.do(block)
    assert "Ran 5 tests" in project.run_django()
    assert "8 passed" in project.run_pytest()


@pytest.mark.parametrize(
    ("whole_project", "options"),
    [("sqlite", ()), ("postgresql", ("--parallel", "2"))],
    indirect=["whole_project"],
)
def test_all_examples_in_djangos_runner(whole_project: Project, options: tuple[str, ...]) -> None:
    """All pass, and the test databases can be dropped."""
    assert "Ran 10 tests" in whole_project.run_django(*options)


@pytest.mark.parametrize(
    ("whole_project", "options"),
    [("sqlite", ("-n", "2")), ("postgresql", ())],
    indirect=["whole_project"],
)
def test_all_examples_in_pytest(whole_project: Project, options: tuple[str, ...]) -> None:
    """All pass with the page's settings."""
    assert "15 passed" in whole_project.run_pytest(*options)


def test_standard_pool_fails_as_the_page_shows(project: Project) -> None:
    """Both examples fail with the page's message, which says where the connection was opened."""
    for block in blocks_of(PAGE):
        project.do(block)
    imports = project.folder / "sales" / "imports.py"
    pool = "with ThreadPoolExecutor("
    assert imports.read_text().count(pool) == 1
    text = imports.read_text().replace(pool, "with concurrent.futures.ThreadPoolExecutor(")
    imports.write_text(f"import concurrent.futures\n{text}")
    tests = project.folder / "sales" / "test_connections.py"
    # As `-X tracemalloc=25` does, but not before Django is imported, which would take long.
    tests.write_text(f"import tracemalloc\n\n{tests.read_text()}\n\ntracemalloc.start(25)\n")
    done = project.run("manage.py", "test", "sales.test_connections")
    assert "FAILED (failures=2)" in done.stderr
    (message,) = LEAK.findall(PAGE.read_text())
    expected = re.sub(r"age=\d\\.\d", r"age=\\d\\.\\d", re.escape(message))
    assert len(re.findall(expected, done.stderr)) == 2, done.stderr
    assert len(OPENED_AT.findall(done.stderr)) == 2, done.stderr


def test_two_threads_on_one_connection_mix_up_their_transactions() -> None:
    """The task that fails has its row kept, and the test that goes well loses its own."""
    begun, written = threading.Event(), threading.Event()

    def fail() -> None:
        connections[DEFAULT_DB_ALIAS] = lent
        with transaction.atomic():
            Entry.objects.create(name="of the task that fails")
            begun.set()
            assert written.wait(10)
            raise ZeroDivisionError

    lent = connections[DEFAULT_DB_ALIAS]
    lent.inc_thread_sharing()
    try:
        with transaction.atomic(), ThreadPoolExecutor(max_workers=1) as pool:
            future = pool.submit(fail)
            assert begun.wait(10)
            with transaction.atomic():
                Entry.objects.create(name="of the test")
                written.set()
                with pytest.raises(ZeroDivisionError):
                    future.result(10)
    finally:
        lent.dec_thread_sharing()
    assert [entry.name for entry in Entry.objects.all()] == ["of the task that fails"]
