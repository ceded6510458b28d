"""The pytest plugin drains every executor before pytest-django drops the test database."""

from __future__ import annotations

from pathlib import Path

import pytest

from .drain_project.run import TEST_DATABASES
from .observers import PostgresObserver
from .pytest_projects import Project, Run

SETTINGS = """
    import os

    from private_servers import django_database

    SECRET_KEY = "of the inner project"
    USE_TZ = True
    DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
    INSTALLED_APPS = ["tests.testapp"]
    DATABASES = {{"default": django_database(os.environ["TEST_POSTGRES_URL"]) | {{"NAME": {name!r}}}}}
"""


# It takes less than the five seconds for which the server itself would wait; then its worker keeps
# the connection for longer.
SLOW = """
    import threading

    import pytest
    from django.db import connections

    from django_executors import ThreadPoolExecutor
    from tests.testapp.models import Entry

    POOL = ThreadPoolExecutor(2, conn_max_idle=60)

    def work():
        Entry.objects.count()
        begun.release()
        threading.Event().wait(1)

    begun = threading.Semaphore(0)

    def leave_work():
        for _ in range(2):
            POOL.submit(work)
        for _ in range(2):
            assert begun.acquire(timeout=10)

    # No `transaction=True`: emptying the tables would wait for the tasks.
    @pytest.mark.django_db
    def test_first(): leave_work()

    @pytest.mark.django_db
    def test_second(): leave_work()
"""


CUSTOM = {
    "pytest-django's own": "",
    "extended": """
        import pytest

        from django_executors.testing import drain

        @pytest.fixture(scope="session")
        def django_db_setup(django_db_setup):
            yield
            drain(0)  # it is idle already
    """,
    "replaced": """
        import pytest
        from django.test.utils import setup_databases, teardown_databases

        @pytest.fixture(scope="session")
        def django_db_setup(django_test_environment, django_db_blocker):
            with django_db_blocker.unblock():
                made = setup_databases(verbosity=0, interactive=False)
            yield
            with django_db_blocker.unblock():
                teardown_databases(made, verbosity=0)
    """,
}


def slow_project(folder: Path, database: str, conftest: str = "") -> Project:
    folder.mkdir()
    project = Project(folder)
    project.add_setting("DJANGO_SETTINGS_MODULE = project_settings")
    project.add_setting("pythonpath = .")
    project.write("project_settings.py", SETTINGS.format(name=database))
    project.write("conftest.py", conftest)
    project.write("test_it.py", SLOW)
    return project


@pytest.mark.usefixtures("no_test_database_before")
def test_drains_before_the_database_is_dropped(tmp_path: Path, postgres: PostgresObserver) -> None:
    """Tasks that hold connections keep no database from being dropped; without the plugin, they do."""
    started = {
        options: slow_project(tmp_path / database, database).start("-s", *options)
        for database, options in {
            "drained": (),
            "drained_twice": ("-n", "2"),
            "left": ("-p", "no:django_executors"),
        }.items()
    }
    runs = {options: Run(process) for options, process in started.items()}
    for run in runs.values():
        assert len(run.passed) == 2, run.output
    assert postgres.execute(TEST_DATABASES) == [("test_left",)]
    without = runs.pop(("-p", "no:django_executors"))
    assert "test_left" in without.output
    assert "is being accessed by other users" in without.output
    for run in runs.values():
        assert run.code == 0, run.output


@pytest.mark.usefixtures("no_test_database_before")
@pytest.mark.parametrize("kind", CUSTOM)
def test_custom_django_db_setup(kind: str, tmp_path: Path, postgres: PostgresObserver) -> None:
    """Whatever the project makes of `django_db_setup`, they are drained before its end."""
    run = slow_project(tmp_path / "project", "custom", CUSTOM[kind]).run()
    assert (run.code, len(run.passed)) == (0, 2), run.output
    assert postgres.execute(TEST_DATABASES) == []
