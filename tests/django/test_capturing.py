"""`capture_queries` and `assert_num_queries`: what a block and its tasks ask the databases."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from django_executors import ImmediateExecutor, ThreadPoolExecutor, release_connections
from django_executors.connections import ledger
from django_executors.connections.ledger import current_holder
from django_executors.immediate import is_inline
from django_executors.testing import assert_num_queries, capture_queries, run_inline
from tests.projects.testapp.models import Entry
from tests.support.gates import Gate
from tests.support.running_cases import passes
from tests.support.worlds import VARIABLE

pytestmark = pytest.mark.usefixtures("idle_before_and_after")


@pytest.fixture(params=["workers", "inline", "immediate", "own context"])
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "immediate":
        with ImmediateExecutor() as executor:
            yield executor
    elif request.param == "inline":
        with run_inline(), ThreadPoolExecutor(2) as executor:
            yield executor
    else:
        with ThreadPoolExecutor(2, inherit_context=request.param == "workers") as executor:
            yield executor


def count(alias: str = "default") -> int:
    return Entry.objects.using(alias).count()


def create_in_atomic() -> None:
    with transaction.atomic():
        Entry.objects.create(name="new")


def names(queries: Any) -> list[str | None]:
    return [each["task"] and each["task"].rpartition(".")[2] for each in queries]


@pytest.mark.parametrize("alias", ["default", "other", "pooled", "sqlite"])
def test_tasks(alias: str, executor: Any) -> None:
    """Each query of the block and of its tasks is there, with its task's name, and none of others."""
    count(alias)
    with capture_queries() as queries:
        count(alias)
        assert executor.submit(count, alias).result(20) == 0
        assert [*executor.map(count, [alias] * 3)] == [0, 0, 0]
    count(alias)
    executor.submit(count, alias).result(20)
    assert names(queries) == [None, "count", "count", "count", "count"]
    assert {each["alias"] for each in queries} == {alias}
    assert all("COUNT(*)" in each["sql"] and float(each["time"]) >= 0 for each in queries)
    assert queries[0]["task"] is None
    assert len(queries[1:]) == 4


def test_as_django_shows_them(executor: Any) -> None:
    """What is logged in a task is what Django's own context logs in the block."""
    with CaptureQueriesContext(connection) as right:
        create_in_atomic()
    with capture_queries() as queries:
        executor.submit(create_in_atomic).result(20)
    shown = [each["sql"].replace("COMMIT", "END") for each in queries]
    assert shown == [each["sql"].replace("COMMIT", "END") for each in right.captured_queries]
    assert len(shown) == 3
    assert {*queries[0]} == {*right.captured_queries[0], "alias", "task"}


def test_in_a_test_case() -> None:
    """In a TestCase, inline tasks make savepoints where a worker's would make a transaction."""

    class Case(TestCase):
        @run_inline
        def test(self) -> None:
            with ThreadPoolExecutor(1) as pool:
                with assert_num_queries(3):
                    pool.submit(create_in_atomic).result()
                with self.assertNumQueries(3):
                    pool.submit(create_in_atomic).result()

    passes(Case)


def test_tasks_of_tasks(executor: Any) -> None:
    """The queries of what tasks submit are there too, in whichever worker."""

    def outer() -> int:
        with ThreadPoolExecutor(1) as inner:
            return inner.submit(count).result(20) + count()

    with capture_queries() as queries:
        executor.submit(outer).result(20)
    assert names(queries) == ["count", "outer"]


def test_a_task_that_lets_go(executor: Any) -> None:
    """A wrapper that the task has made meanwhile is seen, as is that of its coroutines' thread."""

    def task() -> None:
        count()
        release_connections()
        if not isinstance(executor, ImmediateExecutor):
            connection.close()
        connections["other"].close()
        del connections["other"]
        count("other")
        connections["other"].close()

    def coroutine() -> int:
        return asyncio.run(Entry.objects.acount())

    connections["other"].close()
    with capture_queries() as queries:
        executor.submit(task).result(20)
    assert names(queries) == ["task", "task"]
    if isinstance(executor, ThreadPoolExecutor) and not is_inline():
        with assert_num_queries(1):
            executor.submit(coroutine).result(20)


def test_loaded(executor: Any) -> None:
    if hasattr(executor, "load"):
        with assert_num_queries(1):
            assert not len(executor.load(Entry.objects.all()))


def test_nested(executor: Any) -> None:
    """Each has its own; Django's own sees what it saw; and nothing stays behind."""
    count()
    with capture_queries() as outer, CaptureQueriesContext(connection) as djangos:
        executor.submit(count).result(20)
        with capture_queries() as inner:
            count()
            executor.submit(count).result(20)
        count()
    assert (len(outer), len(inner)) == (4, 2)
    assert len(djangos) >= 2
    assert not connection.force_debug_cursor
    assert type(connection.queries_log).__name__ == "deque"
    with CaptureQueriesContext(connection) as djangos:
        count()
    assert len(djangos) == 1


def test_a_worker_afterwards() -> None:
    """A worker that is kept busy logs nothing for the tasks of others."""
    logged: list[bool] = []

    def task() -> None:
        count()
        logged.append(connection.queries_logged)

    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            with capture_queries() as queries:
                seen = pool.submit(task)
                seen.result(20)
            unseen = [pool.submit(task) for _ in range(3)]
            [each.result(20) for each in unseen]
            assert len(queries) == 1
    assert logged == [True, False, False, False] * 3


def test_assert_num_queries(executor: Any) -> None:
    """The error lists the queries and their tasks; an error of the block's own goes first."""
    with pytest.raises(AssertionError, match="1 queries executed, 2") as raised, assert_num_queries(2):
        executor.submit(count).result(20)
    assert 'COUNT(*) AS "__count" FROM "testapp_entry"  (' in str(raised.value)
    assert str(raised.value).endswith("test_capturing.count)")
    with pytest.raises(LookupError, match="own"), assert_num_queries(2):
        raise LookupError("own")


def test_context_of_the_block(executor: Any) -> None:
    """The block's contextvars are as they were."""
    token = VARIABLE.set("before")
    with capture_queries():
        assert VARIABLE.get() == "before"
    VARIABLE.reset(token)


def test_on_mariadb(mariadb: object, executor: Any) -> None:
    """What connecting asks itself is not counted."""
    connections["mariadb"].close()
    with assert_num_queries(2):
        executor.submit(count, "mariadb").result(20)
        executor.submit(count, "mariadb").result(20)


def test_fixtures(
    capture_queries: Callable[[], Any], assert_num_queries: Callable[[int], Any], executor: Any
) -> None:
    with assert_num_queries(1), capture_queries() as queries:
        executor.submit(count).result(20)
    assert len(queries) == 1


def test_in_a_coroutine() -> None:
    """It is refused, as by Django's own: the coroutine's queries run in another thread."""

    async def main() -> None:
        with pytest.raises(SynchronousOnlyOperation, match="cannot be captured"), capture_queries():
            pass

    asyncio.run(main())


def test_a_task_that_outlives_the_block() -> None:
    """What it submits after the block is logged nowhere."""
    gate = Gate()
    logged: list[bool] = []

    def logs() -> None:
        count()
        logged.append(connection.queries_logged)

    with ThreadPoolExecutor(2) as pool:

        def task() -> None:
            gate()
            pool.submit(logs).result(20)

        with capture_queries() as queries:
            future = pool.submit(task)
            gate.wait_for()
        gate.open()
        future.result(20)
        assert (logged, len(queries)) == ([False], 0)
        reference = weakref.ref(queries)
        del queries
        assert reference() is None, "a future that is kept keeps no queries"


def test_receivers_of_connection_created() -> None:
    """What they ask is not counted, on a connection that is reset for the next task neither."""

    def ask(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    gate = Gate()
    connection_created.connect(ask)
    try:
        with ThreadPoolExecutor(1) as pool, assert_num_queries(4):
            pool.submit(gate)
            futures = [pool.submit(count) for _ in range(4)]
            gate.open()
            [each.result(20) for each in futures]
            assert pool.stats().connections_reset == 3
    finally:
        connection_created.disconnect(ask)


def test_a_connection_of_before() -> None:
    """One of which this library knows nothing, as of before its import, is counted too."""
    count()
    wrapper: Any = connections["default"]
    for name in ("connect", "close", "chunked_cursor"):
        del vars(wrapper)[name]
    current_holder().entries.clear()
    ledger._open.pop(id(wrapper))
    with assert_num_queries(1):
        count()


def test_a_driver_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias that is never used costs nothing."""
    entry = connections.settings["sqlite"] | {"ENGINE": "no_such_backend"}
    monkeypatch.setitem(connections.settings, "missing", entry)
    with assert_num_queries(1), ThreadPoolExecutor(1) as pool:
        pool.submit(count).result(20)


def test_overlapping_with_djangos_own() -> None:
    """Nobody goes on logging."""
    djangos, ours = CaptureQueriesContext(connection), capture_queries()
    djangos.__enter__()
    ours.__enter__()
    djangos.__exit__(None, None, None)
    ours.__exit__(None, None, None)
    assert not connection.force_debug_cursor
