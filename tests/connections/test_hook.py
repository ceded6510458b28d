"""A connect that fails half way is closed at once; a hook that a patch has taken away is put back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from django.db import DataError, connection, connections, transaction
from django.db.backends.signals import connection_created

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver

ROLE = "of_the_tests"
Run = Callable[[Callable[[], Any]], Any]


def in_this_thread(fn: Callable[[], Any]) -> Any:
    return fn()


def in_a_worker(fn: Callable[[], Any]) -> Any:
    return ThreadPoolExecutor(1).submit(fn).result(30)


everywhere = pytest.mark.parametrize("run", [in_this_thread, in_a_worker], ids=lambda run: run.__name__)


class OfTheReceiver(Exception):
    """What a project's own `connection_created` receiver raises."""


@pytest.fixture
def raising() -> Iterator[list[str]]:
    """A `connection_created` receiver that raises for the aliases in this list."""
    aliases = ["default", "pooled", "sqlite", "mariadb"]

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias in aliases:
            raise OfTheReceiver

    connections.close_all()
    connection_created.connect(receive)
    yield aliases
    connection_created.disconnect(receive)


@pytest.fixture
def no_such_role(monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver) -> Iterator[None]:
    """Connections of `default` assume a role that does not exist."""
    connection.close()
    options = connections.settings["default"]["OPTIONS"]
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", options | {"assume_role": ROLE})
    yield
    connection.close()
    postgres.execute(f"DROP ROLE IF EXISTS {ROLE}")


def current_user() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        user: str = cursor.fetchone()[0]
        return user


def fail(postgres: PostgresObserver, error: type[Exception]) -> None:
    """Fail to connect, with a query and in `atomic`, and see that nothing is left."""
    for _ in range(2):
        with pytest.raises(error):
            current_user()
        assert (connection.connection, all_connections(), postgres.left()) == (None, (), set())
        with pytest.raises(error), transaction.atomic():
            current_user()
        assert (connection.connection, connection.in_atomic_block) == (None, False)
        assert not postgres.left()


def fail_and_mend(postgres: PostgresObserver, error: type[Exception], mend: Callable[[], object]) -> str:
    """Fail so, mend it, and query in the same thread."""
    fail(postgres, error)
    mend()
    try:
        return current_user()
    finally:
        connection.close()


@everywhere
@pytest.mark.usefixtures("no_such_role")
def test_role(run: Run, postgres: PostgresObserver) -> None:
    """A failing `assume_role` raises Django's own error each time, until the role is there."""

    def mend() -> None:
        postgres.execute(f"CREATE ROLE {ROLE}")

    assert run(lambda: fail_and_mend(postgres, DataError, mend)) == ROLE


@everywhere
def test_receiver(run: Run, raising: list[str], postgres: PostgresObserver) -> None:
    """A raising receiver's own exception arrives each time, until it no longer raises."""
    assert run(lambda: fail_and_mend(postgres, OfTheReceiver, raising.clear)) == "app"


@pytest.mark.parametrize("alias", ["sqlite", "mariadb"])
def test_other_vendors(alias: str, raising: list[str], request: pytest.FixtureRequest) -> None:
    """A raising receiver leaves nothing open on MariaDB and SQLite either."""
    server = request.getfixturevalue("mariadb") if alias == "mariadb" else None

    def task() -> object:
        with pytest.raises(OfTheReceiver):
            Entry.objects.using(alias).count()
        return connections[alias].connection, server.left() if server is not None else set()

    assert in_a_worker(task) == (None, set())
    raising.clear()
    assert in_a_worker(Entry.objects.using(alias).count) == 0


@everywhere
def test_django_pool_and_receiver(run: Run, raising: list[str]) -> None:
    """With Django's pool, connects that fail half way lose no slot and are not lent again half made."""
    pool = connections["pooled"].pool

    def task() -> None:
        for _ in range(pool.max_size + 1):
            with pytest.raises(OfTheReceiver):
                Entry.objects.using("pooled").count()
            assert connections["pooled"].connection is None
        raising.clear()
        Entry.objects.using("pooled").count()
        connections["pooled"].close()

    run(task)
    slots = [pool.getconn(20) for _ in range(pool.max_size)]
    for slot in slots:
        assert slot.info.transaction_status.name == "IDLE"
        pool.putconn(slot)
    assert not pool.closed


def test_failed_connect_keeps_the_open_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `connect` called by hand on an open wrapper that fails before it has a socket closes nothing."""
    connection.ensure_connection()
    mine = connection.connection
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "PORT", "1")
        with pytest.raises(Exception, match="refused"):
            connection.connect()
    assert connection.connection is mine
    assert current_user() == "app"


@pytest.mark.usefixtures("raising")
def test_error_on_closing_replaces_nothing(
    monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """If closing the half-made connection fails as well, the first error is the one that arrives."""

    def _close(self: object) -> None:
        raise OSError("of the closing")

    monkeypatch.setattr(type(connections["default"]), "_close", _close)
    in_a_worker(lambda: fail(postgres, OfTheReceiver))


# The end of a patch of `connection.close` deletes the hook, which stood where the patch did.


@contextlib.contextmanager
def patched(*names: str) -> Iterator[None]:
    """As a project's test patches `django.db.connection`."""
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch(f"django.db.connection.{name}"))
        yield


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("names", [["close"], ["connect"], ["close", "connect"]], ids=" and ".join)
def test_a_patch_in_an_earlier_test(names: list[str], is_open: bool) -> None:
    """A later task in its caller's thread cannot end the caller's transaction, as before the patch."""
    if is_open:
        connection.ensure_connection()
    with patched(*names):
        connection.close()

    def close_and_connect() -> None:
        connection.close()
        connection.connect()
        connections.close_all()

    pool = ThreadPoolExecutor(1)
    with run_inline(), pytest.raises(LookupError), transaction.atomic():
        Entry.objects.create(name="of the caller")
        pool.submit(close_and_connect).result(0)
        assert Entry.objects.count() == 1
        raise LookupError
    assert Entry.objects.count() == 0
    assert [info.alias for info in all_connections()] == ["default"]
    connection.close()
    assert all_connections() == ()
