"""A connect that fails half way: its socket is closed at once, and no query runs as the login role."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import DataError, connection, connections, transaction
from django.db.backends.signals import connection_created

from django_executors import ThreadPoolExecutor, all_connections
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver

ROLE = "of_the_tests"


def in_this_thread(fn: Callable[[], Any]) -> Any:
    return fn()


def in_a_thread(fn: Callable[[], Any]) -> Any:
    """Run in a plain thread, without the guard."""
    outcome: list[Any] = []

    def target() -> None:
        try:
            outcome.append((fn(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(20)
    ((result, error),) = outcome
    if error is not None:
        raise error
    return result


def in_a_worker(fn: Callable[[], Any]) -> Any:
    return ThreadPoolExecutor(1).submit(fn).result(20)


everywhere = pytest.mark.parametrize(
    "run", [in_this_thread, in_a_thread, in_a_worker], ids=lambda run: run.__name__
)


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


def fail_and_look(postgres: PostgresObserver, error: type[Exception]) -> list[object]:
    """Fail to connect, three times, and say what is seen in the same thread each time."""
    seen: list[object] = []
    for _ in range(3):
        with pytest.raises(error):
            current_user()
        seen.append((connection.connection, all_connections(), postgres.left()))
    return seen


@everywhere
@pytest.mark.usefixtures("no_such_role")
def test_role(run: Callable[..., Any], postgres: PostgresObserver) -> None:
    """A failing `assume_role` raises Django's own error each time, and leaves no socket behind."""
    assert run(lambda: fail_and_look(postgres, DataError)) == [(None, (), set())] * 3


@everywhere
@pytest.mark.usefixtures("no_such_role")
def test_role_made_good(run: Callable[..., Any], postgres: PostgresObserver) -> None:
    """When the role is there at last, the same thread's next query runs as it."""

    def task() -> str:
        with pytest.raises(DataError, match=ROLE):
            current_user()
        postgres.execute(f"CREATE ROLE {ROLE}")
        try:
            return current_user()
        finally:
            connection.close()

    assert run(task) == ROLE


@everywhere
@pytest.mark.usefixtures("no_such_role")
def test_role_in_atomic(run: Callable[..., Any], postgres: PostgresObserver) -> None:
    """`atomic` on a connect that fails half way raises Django's own error and leaves nothing."""

    def task() -> object:
        with pytest.raises(DataError, match=ROLE), transaction.atomic():
            Entry.objects.count()
        return connection.connection, connection.in_atomic_block, postgres.left()

    assert run(task) == (None, False, set())


class OfTheReceiver(Exception):
    """What a project's own `connection_created` receiver raises."""


@pytest.fixture
def raising_receiver() -> Iterator[list[str]]:
    """A `connection_created` receiver that raises for the aliases in this list."""
    aliases = ["default", "pooled", "sqlite", "mariadb"]

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias in aliases:
            raise OfTheReceiver

    connections.close_all()
    connection_created.connect(receive)
    yield aliases
    connection_created.disconnect(receive)


@everywhere
@pytest.mark.usefixtures("raising_receiver")
def test_receiver(run: Callable[..., Any], postgres: PostgresObserver) -> None:
    """A raising receiver's own exception arrives each time, and its socket is closed at once."""
    assert run(lambda: fail_and_look(postgres, OfTheReceiver)) == [(None, (), set())] * 3


@everywhere
def test_receiver_made_good(
    run: Callable[..., Any], raising_receiver: list[str], postgres: PostgresObserver
) -> None:
    """When the receiver no longer raises, the same thread connects and works."""

    def task() -> int:
        with pytest.raises(OfTheReceiver):
            Entry.objects.count()
        raising_receiver.clear()
        try:
            return Entry.objects.count()
        finally:
            connection.close()

    assert run(task) == 0
    assert not postgres.left()


@pytest.mark.parametrize("alias", ["sqlite", "mariadb"])
def test_other_vendors(alias: str, raising_receiver: list[str], request: pytest.FixtureRequest) -> None:
    """A raising receiver leaves nothing open on MariaDB and SQLite either."""
    server = request.getfixturevalue("mariadb") if alias == "mariadb" else None

    def task() -> object:
        with pytest.raises(OfTheReceiver):
            Entry.objects.using(alias).count()
        return connections[alias].connection, server.left() if server is not None else set()

    assert in_a_worker(task) == (None, set())
    raising_receiver.clear()
    assert in_a_worker(Entry.objects.using(alias).count) == 0


@everywhere
def test_django_pool_and_receiver(run: Callable[..., Any], raising_receiver: list[str]) -> None:
    """With Django's pool, connects that fail half way lose no slot and are not lent again half made."""
    pool = connections["pooled"].pool

    def task() -> set[int]:
        pids = set()
        for _ in range(3 * pool.max_size):
            with pytest.raises(OfTheReceiver):
                Entry.objects.using("pooled").count()
            assert connections["pooled"].connection is None
        raising_receiver.clear()
        Entry.objects.using("pooled").count()
        pids.add(connections["pooled"].connection.info.backend_pid)
        connections["pooled"].close()
        return pids

    assert len(run(task)) == 1
    slots = [pool.getconn(10) for _ in range(pool.max_size)]
    for slot in slots:
        assert slot.info.transaction_status.name == "IDLE"
        pool.putconn(slot)
    assert not pool.closed


def test_failed_connect_keeps_the_open_one(postgres: PostgresObserver) -> None:
    """A `connect` called by hand on an open wrapper that fails before it has a socket closes nothing."""
    connection.ensure_connection()
    mine = connection.connection
    wrapper = connections["default"]
    options, wrapper.settings_dict["PORT"] = wrapper.settings_dict["PORT"], "1"
    try:
        with pytest.raises(Exception, match="refused"):
            connection.connect()
    finally:
        wrapper.settings_dict["PORT"] = options
    assert connection.connection is mine
    assert current_user() == "app"
    connection.close()
    assert not postgres.left()


def test_error_on_closing_replaces_nothing(
    raising_receiver: list[str], monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """If closing the half-made connection fails as well, the first error is the one that arrives."""

    def _close(self: object) -> None:
        raise OSError("of the closing")

    monkeypatch.setattr(type(connections["default"]), "_close", _close)
    assert in_a_worker(lambda: fail_and_look(postgres, OfTheReceiver)) == [(None, (), set())] * 3
