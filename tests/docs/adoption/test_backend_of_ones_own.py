"""A project with a database backend of its own, a subclass of Django's.

Nothing is known of what it keeps for a session, so at CONN_MAX_AGE = 0 each task connects anew. It says
by a strategy that Django's rules are right for it.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.lifecycle import sessions
from django_executors.lifecycle.postgresql import PostgreSQLSessions
from tests.support.observers import PostgresObserver

#: Databases in which sessions are left as they are.
legacy_databases: set[str] = set()


class ShopSessions(PostgreSQLSessions):
    """Sessions of the shop's own wrapper: those of Django's, but not in the old databases."""

    wrapper_classes = ("tests.projects.subclassed_backend.base.DatabaseWrapper",)

    def remember(self, wrapper: BaseDatabaseWrapper) -> Any | None:
        if wrapper.settings_dict["NAME"] in legacy_databases:
            return None  # closed after each task
        return super().remember(wrapper)


def in_ready() -> None:
    """Do what the project's `AppConfig.ready` does."""
    sessions.register(ShopSessions())


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the project use its backend; forget afterwards what it has registered."""
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "tests.projects.subclassed_backend")
    monkeypatch.setattr(sessions, "_strategies", dict(sessions._strategies))
    monkeypatch.setattr(sessions, "_given_up", set())


def backends_of_two_tasks() -> int:
    """Run two tasks, the second queued before the first ends, and count their backends."""
    queued = threading.Event()

    def set_tenant() -> int:
        assert queued.wait(10)
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('app.tenant', 'acme', false)")
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    def look() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid(), current_setting('app.tenant', true)")
            pid, tenant = cursor.fetchone()
        assert not tenant
        return int(pid)

    with ThreadPoolExecutor(1) as pool:
        futures = [pool.submit(set_tenant), pool.submit(look)]
        queued.set()
        return len({future.result(10) for future in futures})


def test_before(postgres: PostgresObserver) -> None:
    """Without a strategy, each task connects."""
    assert backends_of_two_tasks() == 2
    assert not postgres.left()


def test_strategy_of_the_docs(postgres: PostgresObserver) -> None:
    """With it, the tasks share a backend, the second one sees no tenant, and nothing is left."""
    in_ready()
    assert backends_of_two_tasks() == 1
    assert not postgres.left()
    assert all_connections() == ()
