"""Whatever happens, in whatever order: nothing is lost, nothing happens twice, nothing is left.

    pytest tests/slow/test_chaos.py -rP                       20,000 tasks, and 2,000 under a ceiling
    CHAOS_TASKS=1000000 pytest tests/slow/test_chaos.py -rP   a million, and a hundred thousand

The tasks come in ten rounds. After each of them nothing is left, although no collector has run.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import operator
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import InterfaceError, OperationalError, connection, connections, transaction
from django.test import override_settings

from django_executors import ThreadPoolExecutor, all_connections, connection_scope, release_connections
from django_executors.connections import ceiling as limits
from django_executors.exceptions import ConnectionLimitTimeout
from tests.projects.testapp.models import Entry
from tests.support.forks import fork
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until

TASKS = int(os.environ.get("CHAOS_TASKS", "20_000"))
#: Another one is another sequence of random choices.
SEED = int(os.environ.get("CHAOS_SEED", "1"))
ROUNDS = 10
DRIVERS = POOLS = 3
#: The most tasks that have not ended: with more, shutdowns would cancel too many of them.
WINDOW = 300
#: The most seconds, which only a failure reaches.
LIMIT = 300 + TASKS // 100
#: The most megabytes by which a run of so many tasks grows after its first round.
GROWTH, LONG = 48, 200_000
PROC = Path("/proc/self")

PENDING, RETURNED, RAISED, KILLED, CANCELLED, REFUSED, WRONG, TWICE = range(8)
#: How a task may have ended, and how often it has run then.
RIGHT = {(RETURNED, 1), (RAISED, 1), (KILLED, 1), (CANCELLED, 0), (REFUSED, 0)}

#: What the tasks of a session meet that is killed.
KILLS = (OperationalError, InterfaceError)


class Refused(Exception):
    """The pool has just been shut down."""


class Books:
    """What became of each task, by its number."""

    def __init__(self, tasks: int) -> None:
        self.lock = threading.Lock()
        self.ran, self.ended = bytearray(tasks), bytearray(tasks)  # guarded by lock
        self.wrong: list[object] = []
        self.room = threading.BoundedSemaphore(WINDOW)

    def run(self, task: Callable[[int], int], number: int) -> int:
        with self.lock:
            self.ran[number] += 1
        return task(number)

    def resolved(self, task: Callable[[int], int], number: int, future: Future[int]) -> None:
        """A done-callback."""
        self.end(number, how := self.how(task, number, future))
        if how == WRONG:
            self.wrong.append((number, task, future))

    def how(self, task: Callable[[int], int], number: int, future: Future[int]) -> int:
        if future.cancelled():
            return CANCELLED
        if (error := future.exception()) is None:
            return RETURNED if future.result() == number and task not in RAISES else WRONG
        if type(error) is RAISES.get(task) and error.args == (number,):
            return RAISED
        is_killed = isinstance(error, KILLS) and not isinstance(error, ConnectionLimitTimeout)
        return KILLED if is_killed and task is not nothing else WRONG

    def end(self, number: int, how: int) -> None:
        with self.lock:
            self.ended[number] = how if self.ended[number] == PENDING else TWICE
        self.room.release()


class Pool(ThreadPoolExecutor):
    """Enters in the books what it does. `map` submits by `submit`, too."""

    def __init__(self, books: Books, choose: random.Random) -> None:
        super().__init__(
            choose.randint(1, 5),
            conn_max_idle=choose.choice([0.0, 0.02]),
            max_pending=choose.choice([None, 20]),
            inherit_context=choose.choice([False, True]),
        )
        self.books = books

    def submit(self, task: Any, /, number: Any) -> Future[Any]:
        assert self.books.room.acquire(timeout=60), "no task has ended for a minute"
        try:
            future = self.offer(self.books.run, task, number)
        except Refused:
            self.books.end(number, REFUSED)
            raise
        future.add_done_callback(partial(self.books.resolved, task, number))
        return future

    def offer(self, fn: Callable[..., int], *args: Any) -> Future[int]:
        """Submit what is in no books."""
        try:
            return super().submit(fn, *args)
        except RuntimeError as error:
            if str(error) != "cannot schedule new futures after shutdown":
                raise
            raise Refused from error


class Driver(threading.Thread):
    """Submits the tasks of these numbers, and does what else may happen meanwhile."""

    def __init__(
        self, numbers: range, books: Books, pools: list[Pool], postgres: PostgresObserver
    ) -> None:
        super().__init__(name=f"driver {numbers}", daemon=True)
        self.numbers = iter(numbers)
        self.choose = random.Random(f"{SEED} {numbers}")
        self.books, self.pools, self.postgres = books, pools, postgres
        self.latest: deque[Future[int]] = deque(maxlen=50)
        self.fork_every = max(2000, len(books.ran) // 50)

    def run(self) -> None:
        others = [self.cancel, self.ask, self.map, self.replace, self.kill]
        while operator.length_hint(self.numbers):
            action = self.submit
            if self.choose.random() < 0.03:
                [action] = self.choose.choices(others, weights=[5, 4, 3, 2, 1])
            with contextlib.suppress(*RAISES.values(), *KILLS, CancelledError, TimeoutError, Refused):
                action()
            connections.close_all()  # callbacks of what was cancelled here have run here

    def submit(self) -> None:
        if (number := next(self.numbers)) % self.fork_every == 1000:
            self.fork()
        future = self.choose.choice(self.pools).submit(self.choose.choice(ENDINGS), number)
        if self.choose.random() < 0.02:
            future.add_done_callback(self.callback)
        self.latest.append(future)

    def callback(self, future: Future[int]) -> None:
        with contextlib.suppress(*KILLS):
            if (answer := query(7)) != 7:
                self.books.wrong.append((self.callback, answer))

    def cancel(self) -> None:
        for future in self.choose.sample([*self.latest], len(self.latest) // 10):
            future.cancel()

    def ask(self) -> None:
        if self.latest:
            self.choose.choice(self.latest).result(self.choose.choice([0.0, 0.001, 20.0]))

    def map(self) -> None:
        # An error of Django's is in a circle, and this frame too: no variable in it refers to the pool.
        results = self.choose.choice(self.pools).map(
            self.choose.choice(ENDINGS),
            itertools.islice(self.numbers, self.choose.randint(1, 30)),
            timeout=self.choose.choice([0.0, 0.01, 20.0]),
            buffersize=self.choose.choice([None, 3]),
        )
        deque(results, maxlen=0)

    def kill(self) -> None:
        """Kill the sessions of all pools on one database."""
        self.postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            self.choose.choice(["app", "other"]),
        )

    def replace(self) -> None:
        """Shut a pool down in one way or another, or forget it."""
        place, some = self.choose.randrange(POOLS), self.choose.random() < 0.3
        old, self.pools[place] = self.pools[place], Pool(self.books, self.choose)
        way = self.choose.choice(["wait", "do not wait", "timeout", "forget"])
        if way == "timeout":
            old.shutdown(cancel_futures=some, timeout=self.choose.choice([0.0, 0.05, 20.0]))
        elif way != "forget":
            old.shutdown(wait=way == "wait", cancel_futures=some)

    def fork(self) -> None:
        if (found := fork(self.child)) != (0, ""):
            self.books.wrong.append(found)

    def child(self) -> None:
        """Use the parent's pools, and a new one; not the books, whose locks another thread may have."""
        for pool in [*self.pools, Pool(self.books, self.choose)]:
            with contextlib.suppress(Refused, *KILLS):
                assert pool.offer(query, 7).result(20) == 7
        assert wait_until(all_connections, lambda found: not found) == ()


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
        return int(Entry.objects.create(name=str(number)).name)


def raises(number: int) -> int:
    raise LookupError(query(number))


def exits(number: int) -> int:
    raise SystemExit(query(number))


def is_interrupted(number: int) -> int:
    raise KeyboardInterrupt(query(number))


def leaves_a_transaction(number: int) -> int:
    begin_by_hand = partial(connection.cursor().execute, "BEGIN")
    without_end = partial(transaction.set_autocommit, False)
    [begin_by_hand, without_end, transaction.atomic().__enter__][number % 3]()
    return query(number)


def leaves_an_iterator(number: int) -> int:
    found = Entry.objects.all()[:3].iterator(chunk_size=1)
    next(found, None)
    suspended[:] = [found]  # closes the one that another worker has left
    return query(number)


suspended: list[Iterator[Entry]] = []


def kills_itself(number: int) -> int:
    connection.cursor().execute("SELECT pg_terminate_backend(pg_backend_pid())")
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


# Those that cost a connection are rare.
RARE = [exits, is_interrupted, *3 * (leaves_a_transaction,), leaves_an_iterator, kills_itself]
RARE += [gives_back, scoped, closes]
ENDINGS = [*100 * (nothing,), *70 * (query,), *7 * (two_aliases, writes, raises), *RARE]
RAISES = {raises: LookupError, exits: SystemExit, is_interrupted: KeyboardInterrupt}


@pytest.fixture
def silent() -> Iterator[None]:
    """Log nothing: a fork may find a log stream's own lock held by a thread that is not in the child."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.skipif(not PROC.exists(), reason="counts file descriptors and memory by /proc")
@pytest.mark.parametrize(("most", "tasks"), [(None, TASKS), (2, TASKS // 10)], ids=["free", "ceiling"])
@pytest.mark.timeout(LIMIT + 60)
@pytest.mark.usefixtures("silent")
# A suspended iterator whose session was killed cannot close its cursor: psycopg says so when it goes.
@pytest.mark.filterwarnings(
    "ignore:.*(cursor_iter|ServerCursorMixin):pytest.PytestUnraisableExceptionWarning"
)
def test_chaos(most: int | None, tasks: int, postgres: PostgresObserver) -> None:
    """Each task runs once or is cancelled; no connection, thread, permit, file or memory is left."""
    limit = {} if most is None else {"default": most, "other": most}
    Entry.objects.bulk_create(Entry(name=str(number)) for number in range(3))
    connections.close_all()
    books, memory, began = Books(tasks), [], time.monotonic()
    for number in range(ROUNDS):
        with override_settings(EXECUTORS_MAX_CONNECTIONS=limit):
            one_round(range(tasks * number // ROUNDS, tasks * (number + 1) // ROUNDS), books, postgres)
        gc.collect()  # errors of Django's and psycopg's are in circles
        memory.append(int((PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20)
    told = Counter(books.ended)
    print(
        f"{tasks=} seconds={time.monotonic() - began:.0f} returned={told[RETURNED]} "
        f"raised={told[RAISED]} killed={told[KILLED]} cancelled={told[CANCELLED]} "
        f"refused={told[REFUSED]} megabytes={memory}"
    )
    assert told[RETURNED] > tasks // 2
    assert told[KILLED] < tasks // 20
    assert tasks < LONG or memory[-1] - memory[0] < GROWTH


def files_open() -> int:
    return len(os.listdir(PROC / "fd"))  # noqa: PTH208 - names only


def one_round(numbers: range, books: Books, postgres: PostgresObserver) -> None:
    """Have the tasks of these numbers done, and see that nothing is left."""
    threads, files = set(threading.enumerate()), files_open()
    pools = [Pool(books, random.Random(f"{SEED} {numbers} {place}")) for place in range(POOLS)]
    drivers = [Driver(numbers[each::DRIVERS], books, pools, postgres) for each in range(DRIVERS)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(LIMIT)
        assert not driver.is_alive()
    for pool in pools:
        pool.shutdown()
    # A worker runs the callbacks after the result is there.
    assert wait_until(lambda: set(threading.enumerate()) - threads, lambda left: not left) == set()
    suspended.clear()
    assert books.wrong == []
    found = Counter(zip(books.ended, books.ran, strict=True))
    del found[PENDING, 0]  # those of later rounds, or lost: then the sum is too small
    assert found.keys() <= RIGHT
    assert found.total() == numbers.stop
    assert all_connections() == ()
    assert not postgres.left("app")
    assert not postgres.left("other")
    assert [permit for ceiling in limits._ceilings.values() for permit in ceiling._given] == []
    assert wait_until(files_open, lambda count: count <= files) <= files
