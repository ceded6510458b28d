"""Private servers for the whole run, and what every test may ask for."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from private_servers import MissingServer, ServerFailed, start_mariadb, start_postgres
from steps.stopping import stop_on_signals

from .observers import MariaDBObserver, PostgresObserver
from .waiting import wait_until

_running = contextlib.ExitStack()
_not_run: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Start the servers before Django reads its settings, and make the tables."""
    stop_on_signals()
    folder = _running.enter_context(tempfile.TemporaryDirectory())
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    os.environ["TEST_SQLITE_FILE"] = str(Path(folder, "app.sqlite3"))
    postgres = _running.enter_context(start_postgres(settings={"max_connections": "100"}))
    os.environ["TEST_POSTGRES_URL"] = postgres.url
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        for name in ("other", "pooled"):
            connection.execute(f"CREATE DATABASE {name}".encode())
    try:
        import MySQLdb  # noqa: F401

        os.environ["TEST_MARIADB_URL"] = _running.enter_context(start_mariadb()).url
    except (ImportError, MissingServer, ServerFailed) as missing:
        if os.environ.get("REQUIRE_ALL_SERVERS"):
            raise
        _not_run.append(f"MariaDB: {missing}")
    import django
    from django.core.management import call_command
    from django.db import connections

    django.setup()
    _running.callback(_close_connections)
    for alias in connections:
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
    connections.close_all()


def pytest_unconfigure(config: pytest.Config) -> None:
    _running.close()


def _close_connections() -> None:
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        connection.close()
        if connection.alias == "pooled":
            connection.close_pool()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason in _not_run:
        terminalreporter.write_line(f"not run: {reason}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresObserver]:
    """What PostgreSQL says of its clients."""
    with contextlib.closing(PostgresObserver(os.environ["TEST_POSTGRES_URL"])) as observer:
        yield observer


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDBObserver]:
    """What MariaDB says of its clients."""
    if "TEST_MARIADB_URL" not in os.environ:
        pytest.skip("no MariaDB")
    with contextlib.closing(MariaDBObserver(os.environ["TEST_MARIADB_URL"])) as observer:
        yield observer


@pytest.fixture(autouse=True)
def nothing_is_left(postgres: PostgresObserver) -> Iterator[None]:
    """Empty the tables before each test; after it, the servers have no client of this process left.

    The suite's own `assert_no_open_connections` (pyproject.toml) says which thread left it.
    """
    from django.db import connections

    from .testapp.models import Entry

    for alias in connections:
        Entry.objects.using(alias).all().delete()
    connections.close_all()
    assert not postgres.left("app")  # the server has noticed, so that a test may count from zero
    yield
    connections.close_all()
    assert not postgres.left("app")
    assert not postgres.left("other")


@pytest.fixture
def collector_off() -> Iterator[None]:
    """Disable the cyclic garbage collector: what is let go is let go by us."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def leaked_before(collector_off: None, postgres: PostgresObserver) -> Iterator[None]:
    """Let the test leak, and collect afterwards what it has leaked."""
    yield

    def collect() -> set[int]:
        gc.collect()
        return postgres.backends("app") | postgres.backends("other")

    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        wait_until(collect, lambda pids: not pids)


@pytest.fixture(params=[0, 600, None], ids=lambda age: f"CONN_MAX_AGE={age}")
def conn_max_age(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Run the test at each kind of CONN_MAX_AGE, but on the pooled alias: Django refuses it there."""
    from django.db import connections

    for alias in connections:
        if alias != "pooled":
            monkeypatch.setitem(connections.settings[alias], "CONN_MAX_AGE", request.param)
    age: int | None = request.param
    return age


@pytest.fixture
def watch_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What having `django_executors` in INSTALLED_APPS does."""
    from django_executors.lifecycle import guard, ledger

    monkeypatch.setattr(ledger, "on_open", guard.arm)
