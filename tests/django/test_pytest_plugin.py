"""The pytest plugin's fixture, markers and settings, in small projects with a pytest of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.projects.drain_project.run import TEST_DATABASES
from tests.support.observers import PostgresObserver
from tests.support.pytest_projects import Project, Run

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


INLINE = """
    import threading

    import pytest

    from django_executors import ThreadPoolExecutor

    POOL = ThreadPoolExecutor(1)

    def is_inline():
        return POOL.submit(threading.get_ident).result(10) == threading.get_ident()

    def test_plain(): assert is_inline()

    def test_fixture(run_inline): assert is_inline()

    @pytest.mark.run_inline(on=False)
    def test_off_by_name(): assert not is_inline()

    @pytest.fixture
    def of_a_fixture(): return is_inline()

    @pytest.mark.run_inline
    def test_in_a_fixture(of_a_fixture): assert of_a_fixture

    @pytest.mark.run_inline
    class TestClass:
        def test_on_in_class(self): assert is_inline()
"""
INLINE_TESTS = sorted(re.findall(r"def (test_\w+)", INLINE))


def last_names(found: list[str]) -> list[str]:
    return sorted(name.rpartition("::")[2] for name in found)


@pytest.mark.parametrize("setting", ["", "executors_run_inline = true"])
def test_run_inline(setting: str, project: Project) -> None:
    """The fixture and the marker turn it on, the marker off too; the setting says what holds else."""
    project.add_setting(setting)
    project.write("test_it.py", INLINE)
    run = project.run("-p", "no:django")
    failed = [] if setting else ["test_plain"]
    assert last_names(run.failed) == failed, run.output
    assert last_names(run.passed) == sorted({*INLINE_TESTS} - {*failed}), run.output


LEAKS = """
    import threading
    import unittest

    import pytest
    from django.db import connections

    def leak(name):
        begun = threading.Event()

        def hold():
            connections["default"].ensure_connection()
            begun.set()
            threading.Event().wait()

        threading.Thread(target=hold, name=name, daemon=True).start()
        assert begun.wait(10)

    @pytest.fixture
    def fixture_that_leaks_at_its_end():
        yield
        leak("of the end of the fixture")

    def test_innocent(): connections["default"].ensure_connection()

    def test_leaks(): leak("left behind")

    def test_by_the_end_of_its_fixture(fixture_that_leaks_at_its_end): pass

    class TestByItsSetUp(unittest.TestCase):
        @classmethod
        def setUpClass(cls): leak("of the class")
        def test_by_its_class(self): pass

    @pytest.mark.assert_no_open_connections
    def test_on(): leak("of a checked test")

    @pytest.mark.assert_no_open_connections
    class TestClass:
        def test_on_in_class(self): leak("of a checked class")

    @pytest.mark.assert_no_open_connections(False)
    def test_off(): leak("of a test that may")
"""
MARKED = {"test_on": "of a checked test", "test_on_in_class": "of a checked class"}
UNMARKED = {
    "test_leaks": "left behind",
    "test_by_the_end_of_its_fixture": "of the end of the fixture",
    "test_by_its_class": "of the class",
}
CONFTEST_WITH_SQLITE = """
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "app.sqlite3"}}
    )
"""


@pytest.mark.parametrize("on", [False, True])
def test_assert_no_open_connections(on: bool, project: Project) -> None:
    """A test that leaks fails, and says which thread holds what; by the setting or by the marker."""
    project.add_setting(f"executors_assert_no_open_connections = {str(on).lower()}")
    project.write("conftest.py", CONFTEST_WITH_SQLITE)
    project.write("test_it.py", LEAKS)
    run = project.run("-p", "no:django")
    expected = MARKED | (UNMARKED if on else {})
    assert run.code == 1, run.output
    assert last_names(run.errors) == sorted(expected), run.output
    assert len(run.passed) == 7
    named = re.findall(r"^E .*thread=(.+) alias=default", run.output, re.MULTILINE)
    assert sorted(named) == sorted(expected.values()), run.output


#: Runs asynchronous tests as pytest-asyncio does: the loop is in the main thread, and the ORM is not.
RUNS_COROUTINES = """
    import asyncio
    import inspect

    import pytest

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(pyfuncitem):
        if inspect.iscoroutinefunction(pyfuncitem.obj):
            asyncio.run(pyfuncitem.obj())
            return True
"""
ASYNC_LEAKS = """
    import asyncio
    import threading
    import unittest

    import pytest
    from asgiref.sync import sync_to_async
    from django.db import connections
    from django.test import SimpleTestCase

    from django_executors.testing import assert_no_open_connections

    threads = set()

    def query():
        threads.add(threading.current_thread())
        connections["default"].close()  # that of the test before
        connections["default"].ensure_connection()

    async def use_the_orm(): await sync_to_async(query)()

    async def test_the_orm(): await use_the_orm()

    @assert_no_open_connections
    async def test_decorated(): await use_the_orm()

    async def test_leaks():
        await use_the_orm()
        thread = threading.Thread(target=query, name="left behind")
        thread.start()
        thread.join()

    class TestOfUnittest(unittest.IsolatedAsyncioTestCase):
        async def test_of_unittest(self): await use_the_orm()

    class TestOfDjango(SimpleTestCase):
        databases = "__all__"
        async def test_of_django(self): await use_the_orm()

    def test_that_is_synchronous():
        assert threading.main_thread() in threads
        asyncio.run(use_the_orm())
"""


@pytest.mark.parametrize("way", ["setting", "marker"])
def test_asynchronous_tests(way: str, project: Project) -> None:
    """The thread of an asynchronous test's ORM is its own, as for the decorator; others' are not."""
    if way == "setting":
        project.add_setting("executors_assert_no_open_connections = true")
    project.write("conftest.py", CONFTEST_WITH_SQLITE, RUNS_COROUTINES)
    mark = "pytestmark = pytest.mark.assert_no_open_connections" if way == "marker" else ""
    project.write("test_it.py", ASYNC_LEAKS, mark)
    run = project.run("-p", "no:django")
    assert last_names(run.errors) == ["test_leaks", "test_that_is_synchronous"], run.output
    assert len(run.passed) == 6, run.output
    assert run.failed == [], run.output
    assert "thread=left behind" in run.output


WRONG_ARGUMENTS = ["off=True", "True, False", "'no'", "False, on=True"]


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["here", "xdist"])
def test_unknown_argument(options: tuple[str, ...], project: Project) -> None:
    """A marker that says something else is an error of its test, which names the marker."""
    markers = ("run_inline", "assert_no_open_connections")
    wrong = [f"@pytest.mark.{name}({arguments})" for name in markers for arguments in WRONG_ARGUMENTS]
    tests = [f"{mark}\ndef test_{number}(): pass" for number, mark in enumerate(wrong)]
    project.write("test_it.py", "import pytest", *tests, "def test_last(): pass")
    run = project.run("-p", "no:django", *options)
    assert (run.code, run.passed) == (1, ["test_last"]), run.output
    assert run.errors == sorted(f"test_{number}" for number in range(len(wrong))), run.output
    for name in markers:
        said = f"\n@pytest.mark.{name} takes on=True or on=False"
        assert run.output.count(said) == len(WRONG_ARGUMENTS)


def test_markers_and_settings_are_listed(project: Project) -> None:
    """`pytest --markers` and `pytest --help` say what there is."""
    markers, settings = [Run(each) for each in (project.start("--markers"), project.start("--help"))]
    for name in ("run_inline", "assert_no_open_connections"):
        assert f"@pytest.mark.{name}(on=True): " in markers.output
        assert f"executors_{name} (bool)" in settings.output


@pytest.mark.parametrize("options", [(), ("-p", "no:django")], ids=["pytest-django", "no:django"])
def test_without_settings(options: tuple[str, ...], project: Project) -> None:
    """In a project without Django settings it does no harm, the check of every test included."""
    project.add_setting("executors_assert_no_open_connections = true")
    project.write(
        "test_it.py",
        """
        import unittest

        def test_ours(run_inline):
            from django_executors import ThreadPoolExecutor

            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(int).result(10) == 0

        class TestOfUnittest(unittest.TestCase):
            def test_unittest(self): pass
        """,
    )
    run = project.run(*options)
    assert (run.code, len(run.passed)) == (0, 2), run.output


WITHOUT_DJANGO = """
    import sys

    def test_what_is_imported():
        assert "django_executors.pytest_plugin" in sys.modules
        assert not {"django", "asgiref", "django_executors.testing"} & sys.modules.keys()
"""


def test_a_project_without_django(project: Project) -> None:
    """Where tests ask for nothing of ours, the plugin imports neither Django nor what needs it."""
    project.write("test_it.py", WITHOUT_DJANGO)
    run = project.run("-p", "no:django")
    assert run.passed == ["test_what_is_imported"], run.output


# The plugin drains every executor before pytest-django drops the test database.


SETTINGS = """
    from tests.projects.drain_project.settings import *

    DATABASES["default"]["NAME"] = {name!r}
"""
# It takes less than the five seconds for which the server itself would wait; then its worker keeps
# the connection for longer.
SLOW = """
    import threading

    import pytest

    from django_executors import ThreadPoolExecutor
    from tests.projects.testapp.models import Entry

    POOL = ThreadPoolExecutor(2, conn_max_idle=60)
    begun = threading.Semaphore(0)

    def work():
        Entry.objects.count()
        begun.release()
        threading.Event().wait(1)

    # No `transaction=True`: emptying the tables would wait for the tasks.
    @pytest.mark.django_db
    @pytest.mark.parametrize("number", range(2))
    def test_leaves_work(number):
        for _ in range(2):
            POOL.submit(work)
        for _ in range(2):
            assert begun.acquire(timeout=20)
"""
REPLACED = """
    import pytest
    from django.test.utils import setup_databases, teardown_databases

    @pytest.fixture(scope="session")
    def django_db_setup(django_test_environment, django_db_blocker):
        with django_db_blocker.unblock():
            made = setup_databases(verbosity=0, interactive=False)
        yield
        with django_db_blocker.unblock():
            teardown_databases(made, verbosity=0)
"""
#: The options, and what the project makes of `django_db_setup`.
PROJECTS: dict[str, tuple[tuple[str, ...], str]] = {
    "plain": ((), ""),
    "twice": (("-n", "2"), ""),
    "replaced": ((), REPLACED),
    "left": (("-p", "no:django_executors"), ""),
}


@pytest.mark.usefixtures("no_test_database_before")
def test_drains_before_the_database_is_dropped(tmp_path: Path, postgres: PostgresObserver) -> None:
    """Tasks that hold connections keep no database from being dropped; without the plugin, they do."""
    started = {}
    for name, (options, conftest) in PROJECTS.items():
        (tmp_path / name).mkdir()
        project = Project(tmp_path / name)
        project.add_setting("DJANGO_SETTINGS_MODULE = project_settings")
        project.add_setting("pythonpath = .")
        project.write("project_settings.py", SETTINGS.format(name=name))
        project.write("conftest.py", conftest)
        project.write("test_it.py", SLOW)
        started[name] = project.start("-s", *options)
    runs = {name: Run(process) for name, process in started.items()}
    for run in runs.values():
        assert len(run.passed) == 2, run.output
    assert postgres.execute(TEST_DATABASES) == [("test_left",)]
    without = runs.pop("left")
    assert "test_left" in without.output
    assert "is being accessed by other users" in without.output
    for run in runs.values():
        assert run.code == 0, run.output
