"""Django's own psycopg pool: every slot comes back clean, and the pool itself is never closed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import psycopg_pool
import pytest
from django.db import connections, transaction
from psycopg.pq import PipelineStatus, TransactionStatus

from django_executors import ThreadPoolExecutor, all_connections, connection_scope

from .observers import PostgresObserver
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")

SLOTS = 4
WORKERS = 8
TASKS = 1000

Pool = psycopg_pool.ConnectionPool[Any]


@pytest.fixture(params=[False, True], ids=["plain", "close_returns"])
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A new pool of Django's for the alias `pooled`, with psycopg's `close_returns` off and on."""
    connections["pooled"].close_pool()
    options = {"pool": {"max_size": SLOTS, "close_returns": request.param, "timeout": 20.0}}
    monkeypatch.setitem(connections.settings["pooled"], "OPTIONS", options)
    pool = connections["pooled"].pool
    pool.open()
    yield pool
    connections["pooled"].close_pool()


def take_every_slot(pool: Pool) -> set[int]:
    """Take all slots at once, each in its ordinary state, and return their backends."""
    pids = set()
    with contextlib.ExitStack() as taken:
        for _ in range(SLOTS):
            slot = pool.getconn(10)
            taken.callback(pool.putconn, slot)
            assert slot.info.transaction_status == TransactionStatus.IDLE
            assert slot.info.pipeline_status == PipelineStatus.OFF
            pids.add(slot.info.backend_pid)
    assert len(pids) == SLOTS
    return pids


def assert_whole(pool: Pool, postgres: PostgresObserver) -> None:
    """Nobody holds a slot, all are there at once and clean, and the pool is the same and open."""
    assert all_connections() == ()
    slots = take_every_slot(pool)
    assert wait_until(lambda: postgres.backends("pooled"), lambda pids: pids == slots) == slots
    assert connections["pooled"].pool is pool
    assert not pool.closed


def clean() -> None:
    Entry.objects.using("pooled").create(name="kept")


def raises() -> None:
    with transaction.atomic(using="pooled"):
        Entry.objects.using("pooled").create(name="lost")
        raise LookupError


def raw_begin() -> None:
    with connections["pooled"].cursor() as cursor:
        cursor.execute("BEGIN")
    Entry.objects.using("pooled").create(name="lost")


def autocommit_off() -> None:
    transaction.set_autocommit(False, using="pooled")
    Entry.objects.using("pooled").create(name="lost")


def open_pipeline() -> Any:
    connections["pooled"].ensure_connection()
    pipeline = connections["pooled"].connection.pipeline()
    pipeline.__enter__()
    return pipeline


suspended: list[Generator[None, None, None]] = []


def half_an_atomic() -> Generator[None, None, None]:
    with transaction.atomic(using="pooled"):
        Entry.objects.using("pooled").create(name="lost")
        yield


def unbalanced_atomic() -> None:
    generator = half_an_atomic()
    next(generator)
    suspended.append(generator)


@pytest.fixture(autouse=True)
def closed_generators() -> Iterator[None]:
    """Close what a task has suspended here, where Django's Atomic then opens a connection."""
    yield
    while suspended:
        suspended.pop().close()
    connections["pooled"].close()


# Half of them clean, then one of each other kind.
MIXTURE: list[Callable[[], object]] = [clean] * 5 + [
    raises,
    raw_begin,
    autocommit_off,
    open_pipeline,
    unbalanced_atomic,
]


def test_a_thousand_tasks(pool: Pool, postgres: PostgresObserver) -> None:
    """After 1,000 tasks on pools forgotten or shut down, all slots are back and clean."""
    outcomes: dict[str, int] = {"fine": 0, "LookupError": 0}
    for first in range(0, TASKS, 100):
        executor = ThreadPoolExecutor(WORKERS)
        tasks = [MIXTURE[number % len(MIXTURE)] for number in range(first, first + 100)]
        for future in [executor.submit(task) for task in tasks]:
            error = future.exception(60)
            outcomes["fine" if error is None else type(error).__name__] += 1
        assert all_connections() == ()
        if first % 200:
            executor.shutdown()
        del executor
    assert outcomes == {"fine": TASKS * 9 // 10, "LookupError": TASKS // 10}
    assert_whole(pool, postgres)
    assert Entry.objects.using("pooled").filter(name="kept").count() == TASKS // 2
    assert not Entry.objects.using("pooled").exclude(name="kept").exists()


@pytest.mark.parametrize("ending", sorted(set(MIXTURE), key=lambda ending: ending.__name__))
def test_one_ending_in_every_slot(
    ending: Callable[[], object],
    pool: Pool,
    postgres: PostgresObserver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However often a task ends so, every slot serves on, and the pool has nothing to roll back."""
    executor = ThreadPoolExecutor(1)
    for _ in range(2 * SLOTS):
        executor.submit(ending).exception(20)
    for _ in range(2 * SLOTS):
        executor.submit(clean).result(20)
    assert "rolling back" not in caplog.text
    assert_whole(pool, postgres)


def test_a_clean_slot_goes_back_open(pool: Pool) -> None:
    """A clean connection is given back, not closed: the pool's backends are the same ones afterwards."""
    before = take_every_slot(pool)
    executor = ThreadPoolExecutor(SLOTS)
    for future in [executor.submit(clean) for _ in range(50)]:
        future.result(20)
    assert take_every_slot(pool) == before


def test_a_role_is_not_dirty(pool: Pool, postgres: PostgresObserver) -> None:
    """What Django's pool carries over by itself (here a role) is no reason to close a connection."""
    before = take_every_slot(pool)

    def task() -> None:
        with connections["pooled"].cursor() as cursor:
            cursor.execute("SET ROLE pg_monitor")

    ThreadPoolExecutor(1).submit(task).result(20)
    assert take_every_slot(pool) == before
    assert_whole(pool, postgres)


@pytest.mark.usefixtures("watch_every_thread")
@pytest.mark.parametrize("ending", [clean, raw_begin, unbalanced_atomic])
def test_raw_threads(ending: Callable[[], object], pool: Pool, postgres: PostgresObserver) -> None:
    """With the app installed, a plain thread gives its slot back as it ends, clean."""
    for _ in range(3 * SLOTS):
        thread = threading.Thread(target=ending)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert all_connections() == ()
    assert_whole(pool, postgres)


def test_scopes(pool: Pool, postgres: PostgresObserver) -> None:
    """Without the app, `connection_scope` gives a plain thread's slot back."""
    for _ in range(3 * SLOTS):
        thread = threading.Thread(target=connection_scope(clean))
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    assert_whole(pool, postgres)


def test_an_error_on_closing_loses_no_slot(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """The pool has its slot back although the wrapper's closing has raised before it gave it back."""

    def fail(self: object) -> None:
        raise OSError("of the closing")

    executor = ThreadPoolExecutor(1)
    with monkeypatch.context() as patch:
        patch.setattr(type(connections["pooled"]), "_close", fail)
        executor.submit(clean).result(20)
    assert_whole(pool, postgres)


def test_closed_inside_atomic(pool: Pool, postgres: PostgresObserver) -> None:
    """A worker serves the next task after one that closed its connection inside a suspended `atomic`."""

    def task() -> None:
        unbalanced_atomic()
        connections["pooled"].close()

    executor = ThreadPoolExecutor(1)
    executor.submit(task).result(20)
    executor.submit(clean).result(20)
    assert_whole(pool, postgres)
