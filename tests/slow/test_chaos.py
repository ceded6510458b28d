"""Whatever happens, in whatever order: nothing is lost, nothing happens twice, nothing is left."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    InterfaceError,
    connection,
    connections,
    transaction,
)
from django.test import override_settings

from django_executors import (
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)
from django_executors.connections import ceiling as limits
from tests.projects.testapp.models import Entry
from tests.support.forks import fork
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until

#: CHAOS_SEEDS=20 tries more than one sequence of random choices.
SEEDS = range(1, 1 + int(os.environ.get("CHAOS_SEEDS", "1")))
DRIVERS = 3
ACTIONS = 120  # of each driver
SECONDS = 12.0  # after which a driver stops, however far it came

#: What a task may end with, apart from its own result: its own errors, and those of a killed session.
FORESEEN = (LookupError, DatabaseError, InterfaceError, CancelledError, SystemExit)


class Chaos:
    """Pools that come and go, tasks of all kinds, and what became of each."""

    def __init__(self, seed: int, postgres: PostgresObserver) -> None:
        self.seed = seed
        self.postgres = postgres
        self.pools = [self.new_pool(random.Random(seed)) for _ in range(3)]
        self.lock = threading.Lock()
        self.submitted: list[tuple[Future[Any], int]] = []  # guarded by lock
        self.resolved: Counter[int] = Counter()  # guarded by lock
        self.children: list[tuple[int, str]] = []  # guarded by lock

    def new_pool(self, choose: random.Random) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(
            choose.randint(1, 5),
            conn_max_idle=choose.choice([0.0, 0.02]),
            inherit_context=choose.random() < 0.5,
        )

    def drive(self, number: int) -> None:
        choose = random.Random(self.seed * 100 + number)
        until = time.monotonic() + SECONDS
        for _ in range(ACTIONS):
            if time.monotonic() > until:
                return
            action = choose.choices(
                [self.submit, self.cancel, self.kill, self.fork, self.replace], [80, 10, 4, 2, 4]
            )[0]
            action(choose)

    def submit(self, choose: random.Random) -> None:
        for _ in range(choose.randint(1, 12)):
            task, number = choose.choice(TASKS), choose.randrange(1_000_000)
            try:
                future = choose.choice(self.pools).submit(task, number)
            except RuntimeError:  # that pool has just been shut down
                continue
            with self.lock:
                self.submitted.append((future, number))
            future.add_done_callback(self.note)

    def note(self, future: Future[Any]) -> None:
        with self.lock:
            self.resolved[id(future)] += 1

    def cancel(self, choose: random.Random) -> None:
        with self.lock:
            futures = [future for future, _ in self.submitted[-50:]]
        for future in choose.sample(futures, min(5, len(futures))):
            future.cancel()

    def kill(self, choose: random.Random) -> None:
        self.postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            choose.choice(["app", "other"]),
        )

    def fork(self, choose: random.Random) -> None:
        found = fork(self.child)
        with self.lock:
            self.children.append(found)

    def child(self) -> None:
        """Use the parent's pools, and a new one, in a process of its own."""
        for pool in [*self.pools, ThreadPoolExecutor(2)]:
            try:
                future = pool.submit(query, 7)
            except RuntimeError:  # it was shut down in the parent
                continue
            with contextlib.suppress(DatabaseError, InterfaceError):  # killed from outside
                assert future.result(20) == 7
        assert wait_until(all_connections, lambda found: not found) == ()

    def replace(self, choose: random.Random) -> None:
        place = choose.randrange(len(self.pools))
        old, self.pools[place] = self.pools[place], self.new_pool(choose)
        cancel_futures = choose.random() < 0.5
        if choose.random() < 0.5:
            old.shutdown(wait=choose.random() < 0.5, cancel_futures=cancel_futures)
        else:
            old.shutdown(cancel_futures=cancel_futures, timeout=choose.choice([0.0, 0.05, 20.0]))


def nothing(number: int) -> int:
    return number


def query(number: int, alias: str = "default") -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT %s::int", [number])
        (answer,) = cursor.fetchone()
        return int(answer)


def two_aliases(number: int) -> int:
    return query(query(number), "other")


def writes(number: int) -> int:
    with transaction.atomic():
        Entry.objects.create(name=str(number))
        return number


def raises(number: int) -> int:
    raise LookupError(query(number))


def exits(number: int) -> int:
    raise SystemExit(query(number))


def leaves_a_transaction(number: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
    return query(number)


def leaves_atomic(number: int) -> int:
    transaction.atomic().__enter__()
    return query(number)


def kills_itself(number: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    return number


def gives_back(number: int) -> int:
    query(number)
    release_connections()
    return query(number, "other")


def scoped(number: int) -> int:
    with connection_scope():
        return query(number)


def closes(number: int) -> int:
    query(number)
    connection.close()
    return query(number)


def leaves_an_iterator(number: int) -> int:
    found = Entry.objects.iterator(chunk_size=1)
    next(found, None)
    suspended[:] = [found]  # closes the one that another worker has left
    return query(number)


suspended: list[Iterator[Entry]] = []

TASKS: list[Callable[[int], int]] = [
    *(nothing, query, query, query, two_aliases, two_aliases, writes, raises, exits),
    *(leaves_a_transaction, leaves_atomic, kills_itself, gives_back, scoped, closes),
    leaves_an_iterator,
]


def file_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only


@pytest.fixture(params=[None, 2], ids=["no ceiling", "ceiling of 2"])
def any_ceiling(request: pytest.FixtureRequest) -> Iterator[int | None]:
    most: int | None = request.param
    limit = {} if most is None else {"default": most, "other": most}
    with override_settings(EXECUTORS_MAX_CONNECTIONS=limit, EXECUTORS_CONNECTION_WAIT_TIMEOUT=1.0):
        yield most


@pytest.fixture
def silent() -> Iterator[None]:
    """Log nothing: a fork may find a log stream's own lock held by a thread that is not in the child."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def swept() -> Iterator[None]:
    """Collect what the failed tasks leave while the test's own filter of warnings holds."""
    yield
    gc.collect()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts file descriptors by /proc")  # noqa: PTH112
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.usefixtures("any_ceiling", "silent", "swept")
# A suspended iterator whose session was killed cannot close its cursor: psycopg says so when it goes.
@pytest.mark.filterwarnings(
    "ignore:.*(cursor_iter|ServerCursorMixin):pytest.PytestUnraisableExceptionWarning"
)
def test_chaos(seed: int, postgres: PostgresObserver) -> None:
    """No future is unresolved or resolved twice; no connection, thread, permit or file is left."""
    Entry.objects.bulk_create(Entry(name=str(number)) for number in range(3))
    connections.close_all()
    threads, files = set(threading.enumerate()), file_descriptors()
    chaos = Chaos(seed, postgres)
    drivers = [threading.Thread(target=chaos.drive, args=[number]) for number in range(DRIVERS)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
        assert not driver.is_alive()
    for pool in chaos.pools:
        pool.shutdown()
    suspended.clear()
    for future, number in chaos.submitted:
        with contextlib.suppress(FORESEEN):
            assert future.result(20) == number
    assert [child for child in chaos.children if child != (0, "")] == []
    # A worker runs the callbacks after the result is there.
    assert wait_until(lambda: set(threading.enumerate()) - threads, lambda left: not left) == set()
    assert set(chaos.resolved.values()) == {1}
    assert len(chaos.resolved) == len(chaos.submitted)
    assert all_connections() == ()
    assert not postgres.left("app")
    assert not postgres.left("other")
    assert [permit for ceiling in limits._ceilings.values() for permit in ceiling._given] == []
    assert wait_until(file_descriptors, lambda count: count <= files) <= files
