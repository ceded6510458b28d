"""Private servers for the whole run, and what every test may ask for."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from private_servers import (
    MissingServer,
    ServerFailed,
    start_mariadb,
    start_memcached,
    start_postgres,
    start_redis,
)
from steps.stopping import stop_on_signals
from tests.projects.drain_project.run import TEST_DATABASES
from tests.support.cache_clients import ALIASES, CacheServer, close_own
from tests.support.gates import Gate
from tests.support.observers import MariaDBObserver, MemcachedObserver, PostgresObserver, RedisObserver
from tests.support.waiting import wait_until

ObserverT = TypeVar("ObserverT", MariaDBObserver, RedisObserver, MemcachedObserver)

_running = contextlib.ExitStack()
_not_run: list[str] = []


#: The tiers, and what is in each: the one place where that is chosen, but for a test that bears a mark.
TIERS = {
    "fast": "threads, on PostgreSQL and SQLite; what `pytest` runs",
    "servers": "MariaDB, Redis, memcached, PgBouncer, processes and Dask",
    "slow": "the rest: real web servers, kills, networks, chaos, examples, other programs",
}
SLOW_ROOMS = {"docs", "slow"}
#: A test is of the tier "servers" if one of these is its file, a fixture of its, or a parameter.
OF_SERVERS = {
    *("test_process.py", "test_process_edge_cases.py", "test_remote.py"),
    *("test_dask.py", "test_dask_edge_cases.py"),
    *("mariadb", "redis", "memcached", "cache_server", "pgbouncer", "process", "dask"),
}


def tier_of(item: pytest.Item) -> str:
    """Return the tier of a test that bears none's mark."""
    if item.path.relative_to(item.config.rootpath).parts[1] in SLOW_ROOMS:
        return "slow"
    fixtures: list[str] = getattr(item, "fixturenames", [])
    parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
    what = {item.path.name, *fixtures, *(each for each in parameters if isinstance(each, str))}
    return "servers" if what & OF_SERVERS else "fast"


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker(tier_of(item))


def pytest_configure(config: pytest.Config) -> None:
    """Choose the tier, start its servers before Django reads its settings, and make the tables."""
    for tier, what in TIERS.items():
        config.addinivalue_line("markers", f"{tier}: {what}")
    if not config.option.markexpr and config.args_source is not config.ArgsSource.ARGS:
        config.option.markexpr = "fast"  # what is named on the command line runs, whatever it needs
    stop_on_signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
    folder = _running.enter_context(tempfile.TemporaryDirectory())
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    os.environ["TEST_SQLITE_FILE"] = str(Path(folder, "app.sqlite3"))
    postgres = _running.enter_context(start_postgres(settings={"max_connections": "100"}))
    os.environ["TEST_POSTGRES_URL"] = postgres.url
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        for name in ("other", "pooled"):
            connection.execute(f"CREATE DATABASE {name}".encode())
    if config.option.markexpr != "fast":
        _start_servers()
    import django
    from django.core.management import call_command
    from django.db import connections

    django.setup()
    _running.callback(_close_connections)
    for alias in connections:
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
    connections.close_all()


def _start_servers() -> None:
    """Start those that are not PostgreSQL, as far as this machine has them."""
    try:
        import MySQLdb  # noqa: F401

        os.environ["TEST_MARIADB_URL"] = _running.enter_context(start_mariadb()).url
    except (ImportError, MissingServer, ServerFailed) as missing:
        if os.environ.get("REQUIRE_ALL_SERVERS"):
            raise
        _not_run.append(f"MariaDB: {missing}")
    for name, variable, start in (
        ("Redis", "TEST_REDIS_URL", start_redis),
        ("memcached", "TEST_MEMCACHED_ADDRESS", start_memcached),
    ):
        try:
            server = _running.enter_context(start())
            os.environ[variable] = server.url if name == "Redis" else server.address
        except (MissingServer, ServerFailed) as missing:
            if os.environ.get("REQUIRE_ALL_SERVERS"):
                raise
            _not_run.append(f"{name}: {missing}")


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


def _observe(kind: Callable[[str], ObserverT], variable: str, server: str) -> Iterator[ObserverT]:
    if variable not in os.environ:
        pytest.skip(f"no {server}")
    with contextlib.closing(kind(os.environ[variable])) as observer:
        yield observer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresObserver]:
    """What PostgreSQL says of its clients."""
    with contextlib.closing(PostgresObserver(os.environ["TEST_POSTGRES_URL"])) as observer:
        yield observer


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDBObserver]:
    """What MariaDB says of its clients."""
    yield from _observe(MariaDBObserver, "TEST_MARIADB_URL", "MariaDB")


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisObserver]:
    """What Redis says of its clients."""
    yield from _observe(RedisObserver, "TEST_REDIS_URL", "Redis")


@pytest.fixture(scope="session")
def memcached() -> Iterator[MemcachedObserver]:
    """What memcached says of its clients."""
    yield from _observe(MemcachedObserver, "TEST_MEMCACHED_ADDRESS", "memcached")


@pytest.fixture(params=ALIASES)
def cache_server(request: pytest.FixtureRequest) -> Iterator[CacheServer]:
    """Each server of cache clients in turn. The test's own client is connected before and after."""
    alias: str = request.param
    observer = request.getfixturevalue("memcached" if alias == "memcached" else "redis")
    server = CacheServer(alias, observer)
    yield server
    left = server.left()
    close_own(alias)
    assert not left


@pytest.fixture(autouse=True)
def nothing_is_left(postgres: PostgresObserver) -> Iterator[None]:
    """Empty the tables before each test; after it, the servers have no client of this process left.

    The suite's own `assert_no_open_connections` (pyproject.toml) says which thread left it.
    """
    from django.db import connections

    from tests.projects.testapp.models import Entry

    for alias in connections:
        Entry.objects.using(alias).all().delete()
    connections.close_all()
    # The server has noticed, so that a test may count from zero.
    assert not postgres.left("app")
    yield
    connections.close_all()
    assert not postgres.left("app")
    assert not postgres.left("other")


@pytest.fixture(autouse=True)
def collector_off() -> Iterator[None]:
    """Disable the cyclic garbage collector: what is let go is let go by us."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(autouse=True)
def closed_generators() -> Iterator[None]:
    """Close here what a task has suspended: Django's Atomic then opens a connection of this thread."""
    from django.db import connection

    from tests.support.endings import suspended

    yield
    if suspended:
        while suspended:
            suspended.pop().close()
        connection.close()


@pytest.fixture(autouse=True)
def resets_are_on() -> Iterator[None]:
    """No test turns resets off for the next one."""
    from django_executors.connections import sessions

    yield
    given_up = set(sessions._not_reset)
    sessions._not_reset.clear()
    sessions._other_zone.clear()
    assert not given_up


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=["default", "mariadb"])
def alias(request: pytest.FixtureRequest) -> str:
    """The alias of one on PostgreSQL, and of one on MariaDB."""
    if request.param == "mariadb":
        request.getfixturevalue("mariadb")
    found: str = request.param
    return found


@pytest.fixture
def dask_sockets() -> Iterator[None]:
    """Collect the sockets that Dask leaves to the collector, of schedulers that were lost for one."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def leaked_before(postgres: PostgresObserver) -> Iterator[None]:
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
    from django_executors.connections import ledger, thread_end

    monkeypatch.setattr(ledger, "on_open", thread_end.arm)


@pytest.fixture
def lent() -> Iterator[Any]:
    """This thread's connection, as a live-server test lends it to the server's threads."""
    from django.db import connections

    wrapper: Any = connections["default"]
    wrapper.inc_thread_sharing()
    yield wrapper
    wrapper.dec_thread_sharing()


@pytest.fixture
def no_test_database_before(postgres: PostgresObserver) -> Iterator[None]:
    """A test that leaves one fails alone."""
    yield
    for (name,) in postgres.execute(TEST_DATABASES):
        postgres.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def gate() -> Iterator[Gate]:
    """It is open at the latest when the test has ended."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def holding() -> Iterator[Gate]:
    """Its tasks hold a connection of the alias `default` until it is opened."""
    from tests.support.ceilings import QueriesThenWaits

    gate = QueriesThenWaits()
    yield gate
    gate.open()


@pytest.fixture
def idle_before_and_after() -> Iterator[None]:
    """What the tests before this one left does not count, and this one leaves nothing to do."""
    from django_executors.testing import drain

    drain()
    yield
    drain()
