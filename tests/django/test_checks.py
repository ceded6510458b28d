"""What `manage.py check` says of sizes that do not fit, and of patched processes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connections
from django.test import override_settings

from django_executors import checks
from django_executors.checks import check_greenlets, check_servers, check_settings, check_sizes
from tests.support.observers import MariaDBObserver, PostgresObserver
from tests.support.subprocesses import WITH_APP, run_python
from tests.support.waiting import wait_until


def of(**workers: int) -> dict[str, Any]:
    return {alias: {"OPTIONS": {"max_workers": number}} for alias, number in workers.items()}


@contextlib.contextmanager
def pool_of(alias: str, options: Any) -> Iterator[None]:
    """Have this database's connections come from such a pool of Django's."""
    settings: dict[str, Any] = connections[alias].settings_dict
    before = copy.copy(settings["OPTIONS"])
    settings["OPTIONS"]["pool"] = options
    try:
        yield
    finally:
        settings["OPTIONS"] = before


def ids() -> list[str]:
    return [str(warning.id) for warning in check_sizes()]


@pytest.mark.parametrize(("most", "warned"), [(6, True), (7, False)])
def test_above_the_ceiling(most: int, warned: bool) -> None:
    """All executors together have more workers than EXECUTORS_MAX_CONNECTIONS."""
    with override_settings(
        EXECUTORS=of(default=4, mails=3), EXECUTORS_MAX_CONNECTIONS={"default": most, "other": 50}
    ):
        found = check_sizes()
    assert [warning.id for warning in found] == ["django_executors.W001"] * warned
    if warned:
        assert found[0].msg == (
            "The executors of EXECUTORS have 7 workers together, and "
            "EXECUTORS_MAX_CONNECTIONS['default'] is 6."
        )


@pytest.mark.parametrize(
    ("pool", "most"),
    [({"max_size": 7}, 7), ({"min_size": 3}, 3), ({"min_size": 2, "max_size": None}, 2)],
)
def test_above_the_pool(pool: dict[str, Any], most: int) -> None:
    """One executor has more workers than the pool of a database gives out connections."""
    with pool_of("pooled", pool):
        with override_settings(EXECUTORS=of(default=most)):
            assert check_sizes() == []
        with override_settings(EXECUTORS=of(fits=most, default=most + 1)):
            (found,) = check_sizes()
    assert found.id == "django_executors.W002"
    assert found.msg == (
        f"EXECUTORS['default'] has max_workers={most + 1}, and the pool of "
        f"DATABASES['pooled'] gives out at most {most} connections."
    )


def test_the_pool_that_is_only_true() -> None:
    """`"pool": True` is psycopg's default of four, and that is what it gives out."""
    with pool_of("pooled", True):
        with override_settings(EXECUTORS=of(default=5)):
            assert ids() == ["django_executors.W002"]
        with override_settings(EXECUTORS=of(default=4)):
            assert ids() == []
        pool = connections["pooled"].pool  # type: ignore[attr-defined]
        assert (pool.max_size, pool.min_size) == (4, 4)


def test_a_pool_of_a_wrong_size() -> None:
    """What psycopg's pool itself will refuse is not for this check."""
    for wrong in ({"max_size": "4"}, 1, "yes", [("max_size", 5)]):
        with pool_of("pooled", wrong), override_settings(EXECUTORS=of(default=5)):
            assert ids() == []


def test_a_ceiling_keeps_workers_from_the_pool() -> None:
    """With EXECUTORS_MAX_CONNECTIONS no more than that ask the pool."""
    with (
        pool_of("pooled", {"max_size": 4}),
        override_settings(EXECUTORS=of(default=8), EXECUTORS_MAX_CONNECTIONS={"pooled": 4}),
    ):
        assert ids() == ["django_executors.W001"]


def test_executors_without_workers() -> None:
    """One that runs tasks in their submitters' threads has none."""
    immediate = {"BACKEND": "django_executors.ImmediateExecutor"}
    with override_settings(
        EXECUTORS={"a": immediate} | of(b=1), EXECUTORS_MAX_CONNECTIONS={"default": 1}
    ):
        assert check_sizes() == []


def test_processes() -> None:
    """A worker process has a ceiling and a pool of its own; servers have to do with all of them."""
    processes = {"BACKEND": "django_executors.ProcessPoolExecutor", "OPTIONS": {"max_workers": 60}}
    with (
        pool_of("pooled", {"max_size": 4}),
        override_settings(
            EXECUTORS={"a": processes} | of(b=2),
            EXECUTORS_MAX_CONNECTIONS={"default": 2, "other": 2, "pooled": 2},
        ),
    ):
        assert check_sizes() == []
        (said,) = check_servers(databases=["default", "other", "pooled"])
        for alias in ("default", "other"):
            connections[alias].close()
    assert (
        "may want 124 connections to the server of DATABASES['default'], DATABASES['other'] " in said.msg
    )
    assert said.hint is not None
    assert "Worker processes count one by one" in said.hint


def test_without_the_setting() -> None:
    """Without EXECUTORS nothing is said of its size, and no server is asked."""
    with override_settings(EXECUTORS_MAX_CONNECTIONS={"default": 1}):
        assert check_sizes() == []
        assert check_servers(databases=["default"]) == []
        assert connections["default"].connection is None


def said_of_servers(workers: int, *aliases: str) -> list[str]:
    with override_settings(EXECUTORS=of(default=workers)):
        found = check_servers(databases=aliases)
    for alias in aliases:
        connections[alias].close()
    assert {warning.id for warning in found} <= {"django_executors.W003"}
    return [warning.msg for warning in found]


def room_of_postgres(postgres: PostgresObserver) -> int:
    ((found,),) = postgres.execute(
        "SELECT current_setting('max_connections')::int"
        " - current_setting('superuser_reserved_connections')::int - count(*)"
        " FROM pg_stat_activity WHERE backend_type = 'client backend'"
    )
    return int(found)


def test_more_than_the_server_has_left(postgres: PostgresObserver) -> None:
    """As many as are left are right, one more is not; another client takes one."""

    def said(more: int) -> list[str]:
        return said_of_servers(room_of_postgres(postgres) + more, "default")

    # Read again: what vacuums by itself is counted with the others.
    assert wait_until(lambda: said(0), lambda found: not found) == []

    def expected_and_said() -> tuple[list[str], list[str]]:
        room = room_of_postgres(postgres)
        expected = (
            f"The executors of EXECUTORS may want {room + 1} connections to the server of "
            f"DATABASES['default'] in each process, and it has {room} left."
        )
        return [expected], said_of_servers(room + 1, "default")

    expected, found = wait_until(expected_and_said, lambda pair: pair[0] == pair[1])
    assert found == expected
    with connections["other"].cursor():
        assert wait_until(lambda: said(1))


def test_more_than_mariadb_has_left(mariadb: MariaDBObserver) -> None:
    """The same of another server, which is asked in its own way."""
    assert not mariadb.left()
    ((most,),) = mariadb.execute("SELECT @@max_connections")
    ((_, used),) = mariadb.execute("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
    room = int(most) - int(used)
    assert said_of_servers(room, "mariadb") == []
    assert not mariadb.left()
    (said,) = said_of_servers(room + 1, "mariadb")
    assert said.endswith(f"and it has {room} left.")


def test_aliases_of_one_server() -> None:
    """What two aliases of a server may want is wanted of the same server; a ceiling limits each."""
    assert said_of_servers(60, "default") == []
    (said,) = said_of_servers(60, "default", "other", "pooled")
    assert "may want 120 connections to the server of DATABASES['default'], DATABASES['other'] " in said
    with override_settings(EXECUTORS_MAX_CONNECTIONS={"default": 5, "other": 10}):
        assert said_of_servers(1000, "default", "other") == []


def test_its_own_connection_is_closed() -> None:
    """What it opened it closes, and what was open stays open."""
    with override_settings(EXECUTORS=of(default=1)):
        check_servers(databases=["default"])
        assert connections["default"].connection is None
        connections["default"].ensure_connection()
        check_servers(databases=["default"])
        assert connections["default"].connection is not None


def test_database_without_a_server() -> None:
    """A file has no connections to count."""
    assert said_of_servers(1000, "sqlite") == []


@pytest.mark.parametrize("query", ["SELECT nothing", ""])
def test_server_that_does_not_say(query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what only calls itself PostgreSQL nothing is said."""
    monkeypatch.setitem(checks._COUNTS, "postgresql", (query,) if query else ())
    assert said_of_servers(1000, "default") == []


def test_server_that_is_not_there() -> None:
    """A check does not fail where nobody answers: what needs the server says it better."""
    done = run_python(
        """
        from django.core.management import call_command
        from django.test import override_settings
        with override_settings(EXECUTORS={"default": {"OPTIONS": {"max_workers": 1000}}}):
            call_command("check", "--tag", "database", "--database", "default")
        """,
        settings=WITH_APP,
        TEST_POSTGRES_URL="postgresql://nobody@127.0.0.1:1/nothing",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_only_where_databases_are_checked() -> None:
    """A server is asked by `migrate` and `check --database`, not by `check`."""
    done = run_python(
        """
        from django.core.management import call_command
        from django.test import override_settings
        with override_settings(EXECUTORS={"default": {"OPTIONS": {"max_workers": 1000}}}):
            call_command("check", "--tag", "executors", "--tag", "models")
            call_command("check", "--tag", "database", "--database", "default")
        """,
        settings=WITH_APP,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("django_executors.W003") == 1


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ("from gevent import monkey; monkey.patch_all()", "gevent"),
        ("from gevent import monkey; monkey.patch_thread()", "gevent"),
        ("from gevent import monkey; monkey.patch_socket()", ""),
        ("import eventlet; eventlet.monkey_patch()", "eventlet"),
        ("import eventlet; eventlet.monkey_patch(socket=True)", ""),
        ("import gevent, eventlet", ""),
    ],
)
def test_patched_process(patch: str, said: str) -> None:
    """Threads that are greenlets are refused by `manage.py check`, whoever has patched them."""
    done = run_python(
        patch,
        """
        import django
        django.setup()
        from django.core.management import call_command
        call_command("check", "--tag", "executors")
        """,
        settings=None,
        warnings="ignore",
        DJANGO_SETTINGS_MODULE=WITH_APP,
    )
    if said:
        assert done.returncode == 1
        assert f"(django_executors.E002) {said} has patched the threads of this process" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_this_process_is_not_patched() -> None:
    """Nor is anything wrong with the suite's own settings."""
    assert check_greenlets() == []
    assert check_settings() == []
    assert not [each for each in run_checks(tags=["executors"]) if each.id is not None]
