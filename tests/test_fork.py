"""After a fork the child's guard and ledger leave the parent's sockets alone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, connections

from django_executors import ThreadPoolExecutor, all_connections, connection_scope

from .forking import fork, server_pid
from .observers import PostgresObserver
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off", "watch_every_thread")

ALIASES = ["default", "mariadb"]


@pytest.fixture(params=ALIASES)
def alias(request: pytest.FixtureRequest) -> str:
    if request.param == "mariadb":
        request.getfixturevalue("mariadb")
    name: str = request.param
    return name


def child_that_ends_threads() -> None:
    """What the guard and the ledger do in a child: end threads, close scopes, count."""
    assert all_connections() == ()
    thread = threading.Thread(target=Entry.objects.none)
    thread.start()
    thread.join(10)
    with connection_scope():
        pass
    assert ThreadPoolExecutor(1).submit(int).result(10) == 0
    assert all_connections() == ()


def child_that_drops_its_locals() -> None:
    """What the end of the forking thread does in a child: drop this thread's guard."""
    from django_executors.lifecycle import guard

    vars(guard._local).clear()
    assert all_connections() == ()


CHILDREN = [child_that_ends_threads, child_that_drops_its_locals]


@pytest.mark.parametrize("child", CHILDREN)
def test_from_the_main_thread(child: Callable[[], None], alias: str) -> None:
    """The connection of the main thread that forks goes on as it was."""
    before = server_pid(alias)
    assert fork(child) == (0, "")
    assert server_pid(alias) == before
    (info,) = all_connections()
    assert info.backend_pid == before


def test_own_connection_is_left_to_django(alias: str) -> None:
    """The forking thread's connection, which no task has opened, is what it was in the child too."""
    before = server_pid(alias)

    def child() -> None:
        assert server_pid(alias) == before

    assert fork(child) == (0, "")
    assert server_pid(alias) == before


@pytest.mark.parametrize("child", CHILDREN)
def test_from_a_task(child: Callable[[], None], alias: str, postgres: PostgresObserver) -> None:
    """A task that forks keeps its connection until its own end."""

    def task() -> tuple[int, tuple[int, str], int]:
        return server_pid(alias), fork(child), server_pid(alias)

    before, forked, after = ThreadPoolExecutor(1).submit(task).result(30)
    assert forked == (0, "")
    assert before == after
    assert all_connections() == ()
    assert not postgres.left()


@pytest.mark.parametrize("child", CHILDREN)
def test_beside_a_thread_that_holds_one(child: Callable[[], None], alias: str) -> None:
    """A connection that another thread holds while the main thread forks goes on as it was."""
    check_beside_a_thread(child, alias)


def test_child_that_collects(alias: str) -> None:
    """The same when the child collects garbage, the other thread's wrapper among it."""
    check_beside_a_thread(gc.collect, alias)


def check_beside_a_thread(child: Callable[[], object], alias: str) -> None:
    connected, forked = threading.Event(), threading.Event()
    pids: list[int] = []

    def hold() -> None:
        pids.append(server_pid(alias))
        connected.set()
        assert forked.wait(30)
        pids.append(server_pid(alias))

    thread = threading.Thread(target=hold)
    thread.start()
    assert connected.wait(10)
    try:
        assert fork(child) == (0, "")
    finally:
        forked.set()
        thread.join(10)
    assert len(pids) == 2
    assert len(set(pids)) == 1
    assert wait_until(all_connections, lambda found: not found) == ()


def test_child_works_with_a_connection_of_its_own(postgres: PostgresObserver) -> None:
    """A child that drops the parent's wrapper connects anew, is counted, and closes only its own."""
    before = server_pid("default")
    inherited: list[Any] = []

    def child() -> None:
        inherited.append(connections["default"].connection)  # kept: its end would be the driver's
        connections["default"].connection = None
        del connections["default"]
        Entry.objects.create(name="of the child")
        (info,) = all_connections()
        assert info.backend_pid == server_pid("default") != before
        ThreadPoolExecutor(1).submit(Entry.objects.count).result(10)
        connection.close()
        assert all_connections() == ()

    assert fork(child) == (0, "")
    assert server_pid("default") == before
    assert Entry.objects.count() == 1
    assert wait_until(postgres.backends, lambda pids: pids == {before}) == {before}
