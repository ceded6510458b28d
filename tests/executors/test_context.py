"""A task sees the world of the code that submitted it, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ALL_COMPLETED, Executor, wait
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.cache import caches
from django.test import override_settings
from django.urls import get_urlconf, set_urlconf
from django.utils import timezone, translation

from django_executors import ImmediateExecutor, ThreadPoolExecutor, connection_scope, release_connections
from django_executors.execution import thread
from django_executors.lifecycle import variables
from django_executors.testing import run_inline
from tests.support.cache_clients import CacheServer, connection_of, use
from tests.support.gates import Gate
from tests.support.kept import held_up, queued, results
from tests.support.observers import RedisObserver
from tests.support.waiting import wait_until
from tests.support.worlds import DEFAULT, FRENCH, GERMAN, World, leave, world


@pytest.fixture
def left() -> Iterator[None]:
    """Each test begins and ends in the default world."""
    yield
    leave()


def start_as_python_3_14_does(self: threading.Thread) -> None:
    self.run = functools.partial(contextvars.copy_context().run, self.run)  # type: ignore[method-assign]
    _start(self)


_start = threading.Thread.start
NAMES = ["caches", "language", "time_zone", "urlconf", "script_prefix", "async_executor"]


@pytest.fixture(params=["", "private names moved", "threads inherit"])
def circumstances(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test as things are, where Django moved its variables, and where threads inherit."""
    if request.param == "private names moved":
        for name in NAMES:
            monkeypatch.setattr(variables, name, variables.Unknown())
    elif request.param == "threads inherit":
        monkeypatch.setattr(thread, "_THREADS_INHERIT", True)
        monkeypatch.setattr(threading.Thread, "start", start_as_python_3_14_does)


@pytest.fixture(params=[True, False], ids=["inherits", "does not inherit"])
def pool(request: pytest.FixtureRequest) -> Iterator[ThreadPoolExecutor]:
    """A pool of one worker."""
    with ThreadPoolExecutor(1, inherit_context=request.param) as pool:
        yield pool


@pytest.fixture(params=["a pool under run_inline", "ImmediateExecutor"])
def in_callers_thread(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """An executor that runs tasks where they are submitted."""
    if request.param == "ImmediateExecutor":
        yield ImmediateExecutor()
        return
    with run_inline(), ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.mark.usefixtures("left", "circumstances")
def test_inherited() -> None:
    """A task sees its submitter's variables, language, time zone, URLconf and script prefix."""
    GERMAN.enter()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(world).result(10) == GERMAN


@pytest.mark.usefixtures("left", "circumstances")
def test_as_they_were_at_submit(gate: Gate) -> None:
    """It sees them as they were when it was submitted, not as they are when it runs."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        GERMAN.enter()
        first = pool.submit(world)
        FRENCH.enter()
        second = pool.submit(world)
        leave()
        third = pool.submit(world)
        gate.open()
        assert [each.result(10) for each in (first, second, third)] == [GERMAN, FRENCH, DEFAULT]


@pytest.mark.usefixtures("left", "circumstances")
def test_back_to_the_default() -> None:
    """The next task on the same worker, submitted from the default world, is in the default world."""
    with ThreadPoolExecutor(1) as pool:
        GERMAN.enter()
        first = pool.submit(lambda: (threading.get_ident(), world()))
        leave()
        second = pool.submit(lambda: (threading.get_ident(), world()))
        worker = first.result(10)[0]
        assert (first.result(10), second.result(10)) == ((worker, GERMAN), (worker, DEFAULT))


@pytest.mark.usefixtures("left", "circumstances")
def test_nothing_gets_out(pool: ThreadPoolExecutor) -> None:
    """What a task sets reaches neither its submitter nor the next task."""
    pool.submit(FRENCH.enter).result(10)
    assert pool.submit(world).result(10) == DEFAULT
    assert world() == DEFAULT


@pytest.mark.usefixtures("left", "circumstances")
def test_nothing_gets_out_into_an_active_world() -> None:
    """Nor where the submitter has set everything itself."""
    GERMAN.enter()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(FRENCH.enter).result(10)
        assert pool.submit(world).result(10) == GERMAN
    assert world() == GERMAN


@pytest.mark.usefixtures("left", "circumstances")
def test_override(gate: Gate) -> None:
    """Inside `override` a task gets what holds there, also when it runs after the end of the block."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        with translation.override("de"), timezone.override("Europe/Berlin"):
            inside = pool.submit(lambda: (translation.gettext("Monday"), world().time_zone))
            with translation.override(None):
                none = pool.submit(translation.get_language)
        outside = pool.submit(lambda: (translation.gettext("Monday"), world().time_zone))
        gate.open()
        assert inside.result(10) == ("Montag", "Europe/Berlin")
        assert none.result(10) is None
        assert outside.result(10) == ("Monday", DEFAULT.time_zone)


@pytest.mark.usefixtures("left", "circumstances")
def test_deactivate_all() -> None:
    """`deactivate_all` is inherited too, and ends with the task."""
    with ThreadPoolExecutor(1) as pool:
        translation.deactivate_all()
        assert pool.submit(translation.get_language).result(10) is None
        translation.deactivate()
        assert pool.submit(translation.get_language).result(10) == DEFAULT.language


@pytest.mark.usefixtures("left", "circumstances")
def test_nested() -> None:
    """A task that a task submits inherits from that task, as it is then."""

    def task(inner: ThreadPoolExecutor) -> list[World]:
        worlds = [inner.submit(world).result(10)]
        FRENCH.enter()
        worlds.append(inner.submit(world).result(10))
        leave()
        return [*worlds, inner.submit(world).result(10)]

    GERMAN.enter()
    with ThreadPoolExecutor(1) as outer, ThreadPoolExecutor(1) as inner:
        assert outer.submit(task, inner).result(10) == [GERMAN, FRENCH, DEFAULT]


@pytest.mark.usefixtures("left", "circumstances")
def test_nested_after_the_only_change_is_undone() -> None:
    """Nor does a nested task get what its submitter once inherited and has undone since."""

    def task(inner: ThreadPoolExecutor) -> str | None:
        set_urlconf(None)
        return inner.submit(get_urlconf).result(10)

    def submits() -> str | None:
        set_urlconf("urls.of.germans")
        return outer.submit(task, inner).result(10)

    with ThreadPoolExecutor(1) as outer, ThreadPoolExecutor(1) as inner:
        # In a context in which nothing else was ever set.
        assert contextvars.Context().run(submits) is None


@pytest.mark.usefixtures("left", "circumstances")
def test_map() -> None:
    """`map` runs each call in the world in which `map` was called."""
    GERMAN.enter()
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(world, range(8))
        leave()
        assert list(results) == [GERMAN] * 8


@pytest.mark.usefixtures("left", "circumstances")
def test_initializer() -> None:
    """With inherit_context=False each task, in each worker, starts as the initializer left it."""
    all_in = threading.Barrier(3)

    def task() -> World:
        all_in.wait(10)
        found = world()
        FRENCH.enter()
        return found

    FRENCH.enter()
    with ThreadPoolExecutor(3, initializer=GERMAN.enter, inherit_context=False) as pool:
        for _ in range(2):
            futures = [pool.submit(task) for _ in range(3)]
            assert [future.result(10) for future in futures] == [GERMAN] * 3
        assert list(pool.map(world, range(4))) == [GERMAN] * 4


@pytest.mark.usefixtures("left", "circumstances")
def test_initializer_where_tasks_inherit() -> None:
    """With inherit_context=True the submitter's world holds, not what the initializer has set."""
    with ThreadPoolExecutor(1, initializer=GERMAN.enter) as pool:
        assert pool.submit(world).result(10) == DEFAULT
        FRENCH.enter()
        assert pool.submit(world).result(10) == FRENCH


@pytest.mark.usefixtures("left", "circumstances")
def test_not_inherited() -> None:
    """With inherit_context=False and no initializer a task starts in the default world."""
    GERMAN.enter()
    with ThreadPoolExecutor(1, inherit_context=False) as pool:
        assert pool.submit(world).result(10) == DEFAULT
        assert list(pool.map(world, range(2))) == [DEFAULT] * 2


@pytest.mark.usefixtures("left", "circumstances")
def test_done_callback(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """A done-callback is in the worker's own world, and what it sets does not reach the next task."""
    GERMAN.enter()
    future = pool.submit(gate)
    seen: list[World] = []
    future.add_done_callback(lambda _: seen.append(world()))
    future.add_done_callback(FRENCH.enter)
    leave()
    after = pool.submit(world)
    gate.open()
    assert after.result(10) == DEFAULT
    assert seen == [DEFAULT]


@pytest.mark.usefixtures("left", "circumstances")
def test_in_the_callers_thread(in_callers_thread: Executor) -> None:
    """Where a task runs in its caller's thread, it sees the caller's world, and does not change it."""
    GERMAN.enter()
    in_callers_thread.submit(FRENCH.enter).result(0)
    assert world() == GERMAN
    assert in_callers_thread.submit(world).result(0) == GERMAN
    assert list(in_callers_thread.map(world, range(2))) == [GERMAN] * 2


@pytest.mark.usefixtures("left", "circumstances")
def test_not_inherited_in_the_callers_thread() -> None:
    """A pool that does not inherit does not do so under `run_inline` either."""
    GERMAN.enter()
    with run_inline(), ThreadPoolExecutor(1, inherit_context=False) as pool:
        assert pool.submit(world).result(0) == DEFAULT
        pool.submit(FRENCH.enter).result(0)
    assert world() == GERMAN


@pytest.mark.usefixtures("left", "circumstances")
def test_overridden_settings() -> None:
    """Settings overridden between two submits are respected, and so is what is activated after that."""

    def submits() -> list[World]:
        worlds = [pool.submit(world).result(10)]
        with override_settings(LANGUAGE_CODE="it", TIME_ZONE="Europe/Rome"):
            worlds.append(pool.submit(world).result(10))
            FRENCH.enter()
            worlds.append(pool.submit(world).result(10))
        GERMAN.enter()
        return [*worlds, pool.submit(world).result(10)]

    with ThreadPoolExecutor(1) as pool:
        # In a context in which nothing was ever set.
        found = contextvars.Context().run(submits)
    italian = DEFAULT._replace(language="it", time_zone="Europe/Rome")
    assert found == [DEFAULT, italian, FRENCH, GERMAN]


# The context of tasks that run in their callers' threads.


@pytest.mark.usefixtures("run_inline")
def test_each_task_starts_as_the_initializer_left_it() -> None:
    """With inherit_context=False as in a worker; the initializer runs once in this thread."""
    ran: list[str] = []

    def initialize() -> None:
        ran.append("initializer")
        translation.activate("de")

    def task() -> str | None:
        before = translation.get_language()
        translation.activate("fr")
        return before

    with ThreadPoolExecutor(1, initializer=initialize, inherit_context=False) as pool:
        assert [pool.submit(task).result() for _ in range(3)] == ["de"] * 3
    assert ran == ["initializer"]
    assert translation.get_language() == "en-us"


@pytest.mark.usefixtures("run_inline")
def test_the_initializer_changes_nothing_for_tasks_that_inherit() -> None:
    """As in a worker: they have their submitter's context."""
    with ThreadPoolExecutor(1, initializer=translation.activate, initargs=("de",)) as pool:
        assert [pool.submit(translation.get_language).result() for _ in range(2)] == ["en-us"] * 2


@pytest.mark.usefixtures("run_inline")
def test_an_initializer_may_submit_to_its_own_pool() -> None:
    """It runs once all the same."""
    ran: list[str] = []

    def initialize() -> None:
        ran.append("initializer")
        pool.submit(ran.append, "its task").result()

    with ThreadPoolExecutor(1, initializer=initialize) as pool:
        pool.submit(ran.append, "the task").result()
    assert ran == ["initializer", "its task", "the task"]


# What the copy of a context has in common with its submitter's, and must not.


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(1), ImmediateExecutor])
def test_decimal_precision(make: Callable[[], ThreadPoolExecutor | ImmediateExecutor]) -> None:
    """A task has its submitter's precision; what it sets reaches neither it nor the next task."""

    def spoil() -> int:
        before = decimal.getcontext().prec
        decimal.getcontext().prec = 5
        return before

    with decimal.localcontext(prec=40), make() as pool:
        assert [pool.submit(spoil).result() for _ in range(2)] == [40, 40]
        assert decimal.getcontext().prec == 40


def test_decimal_precision_where_nothing_is_inherited() -> None:
    """There it is what the initializer left, for each task."""

    def spoil() -> int:
        before = decimal.getcontext().prec
        decimal.getcontext().prec = 5
        return before

    def initialize() -> None:
        decimal.getcontext().prec = 33

    with ThreadPoolExecutor(1, initializer=initialize, inherit_context=False) as pool:
        assert [pool.submit(spoil).result() for _ in range(2)] == [33, 33]


class Request:
    """Something large."""


def test_a_failed_future_keeps_no_context_alive() -> None:
    """Its error has a traceback, and that the frames of the worker."""
    variable: contextvars.ContextVar[Request] = contextvars.ContextVar("variable")

    def submit() -> weakref.ref[Request]:
        request = Request()
        variable.set(request)
        futures.append(pool.submit(int, "no number"))
        return weakref.ref(request)

    futures: list[object] = []
    with ThreadPoolExecutor(1) as pool:
        request = contextvars.Context().run(submit)
    assert futures
    assert request() is None


def test_a_cache_first_used_in_async_code(redis: RedisObserver) -> None:
    """It is made in asgiref's thread for the loop, goes on to be the task's, and is closed with it."""

    async def use() -> None:
        caches["redis"].get("key")

    def task() -> None:
        async_to_sync(use)()
        caches["redis"].get("key")

    before = redis.clients()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            pool.submit(task).result(10)
            assert wait_until(redis.clients, lambda clients: clients == before) == before


# A worker has one set of cache clients for its tasks, lets go of it, and never has its submitter's.


WORKERS = 4
IDLE = 0.3


@pytest.mark.usefixtures("watch_every_thread")
def test_a_thousand_tasks(cache_server: CacheServer) -> None:
    """Four workers have at most four clients, one each while they are busy, and none at the end."""
    made = cache_server.observer.made()
    pool = ThreadPoolExecutor(WORKERS)
    with held_up(pool, WORKERS):
        futures = [pool.submit(use, cache_server.alias, number) for number in range(1000)]
    most = 0
    while wait(futures, 0.01, ALL_COMPLETED).not_done:
        most = max(most, len(cache_server.clients()))
    assert not cache_server.left()
    assert 1 <= most <= WORKERS
    # The last of a queue are let go of, and may be needed once more.
    assert cache_server.observer.made() - made <= 3 * WORKERS
    used = {(thread, id(client)) for thread, client in results(futures)}
    assert len(used) <= 3 * WORKERS
    assert id(cache_server.object) not in {client for _, client in used}
    cache_server.assert_own_is_untouched()
    pool.shutdown()


def test_one_after_another(cache_server: CacheServer) -> None:
    """Tasks that come one by one leave no client when their futures are done."""
    with ThreadPoolExecutor(WORKERS) as pool:
        for number in range(20):
            pool.submit(use, cache_server.alias, number).result(10)
            assert not cache_server.left()
    cache_server.assert_own_is_untouched()


def test_one_client_for_queued_tasks(cache_server: CacheServer) -> None:
    """Tasks that wait for one worker share its client and its connection, never the submitter's."""
    with ThreadPoolExecutor(1) as pool:
        tasks = [lambda: (connection_of(cache_server.alias), caches[cache_server.alias])] * 10
        found = results(queued(pool, *tasks))
        assert not cache_server.left()
    connections = {connection for connection, _ in found[:-1]}
    assert len(connections) == 1
    assert cache_server.own not in connections
    assert len({id(client) for _, client in found[:-1]}) == 1
    cache_server.assert_own_is_untouched()


@pytest.mark.parametrize("inherit_context", [True, False])
def test_without_a_context(inherit_context: bool, cache_server: CacheServer) -> None:
    """It is the same whether tasks inherit their submitter's context or not."""
    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        tasks = [lambda: connection_of(cache_server.alias)] * 4
        found = results(queued(pool, *tasks))
        assert len(set(found[:-1])) == 1
        assert cache_server.own not in found
        assert not cache_server.left()
    cache_server.assert_own_is_untouched()


def test_a_task_that_raises(cache_server: CacheServer) -> None:
    """A task's exception arrives when its client is closed."""

    def task() -> None:
        use(cache_server.alias)
        raise LookupError("of the task")

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(LookupError, match="of the task"):
            pool.submit(task).result(10)
        assert not cache_server.left()


class Interrupts:
    """Ends the task that reads it from a cache, with the rest of the answer still under way."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return interrupt, ()


def interrupt() -> None:
    raise SystemExit


def test_an_interrupted_task(cache_server: CacheServer) -> None:
    """The next task does not get the rest of the answer that an interrupted one was reading."""
    caches[cache_server.alias].set("stops", Interrupts())
    caches[cache_server.alias].set("long", "x" * 500_000)
    caches[cache_server.alias].set("number", 7)
    with ThreadPoolExecutor(1) as pool:
        tasks = [
            lambda: caches[cache_server.alias].get_many(["stops", "long"]),
            lambda: caches[cache_server.alias].get("number"),
        ]
        first, second = queued(pool, *tasks)
        assert isinstance(first.exception(10), SystemExit)
        assert second.result(10) == 7
        assert not cache_server.left()


def test_conn_max_idle(cache_server: CacheServer) -> None:
    """An idle worker keeps its client for that time, for its next task, and lets go without a task."""
    with ThreadPoolExecutor(1, conn_max_idle=IDLE) as pool:
        first = pool.submit(connection_of, cache_server.alias).result(10)
        assert len(cache_server.clients()) == 1
        for _ in range(4):  # each use begins that time anew
            wait_until(lambda: False, within=IDLE / 2)
            assert pool.submit(connection_of, cache_server.alias).result(10) == first
        assert len(cache_server.clients()) == 1
        assert not cache_server.left()


def test_tasks_that_use_no_cache(cache_server: CacheServer) -> None:
    """Tasks that use no cache do not prolong that time."""
    with ThreadPoolExecutor(1, conn_max_idle=IDLE) as pool:
        pool.submit(use, cache_server.alias).result(10)
        assert cache_server.clients()

        def clients_after_a_task() -> set[int]:
            pool.submit(int).result(10)
            return cache_server.clients()

        assert not wait_until(clients_after_a_task, lambda ids: not ids)


def test_release_connections(cache_server: CacheServer) -> None:
    """It closes a task's client; what is used after it, even by a name from before, is closed too."""
    held: list[int] = []

    def task() -> None:
        for client in (caches[cache_server.alias], caches[cache_server.alias]):
            client.set("number", 1)
            held.append(len(cache_server.clients()))
            release_connections()
            held.append(len(cache_server.left()))
            client.set("number", 2)
            held.append(len(cache_server.clients()))
        use(cache_server.alias)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(task).result(10)
        assert not cache_server.left()
    assert held == [1, 0, 1] * 2


def test_release_connections_and_a_callback(cache_server: CacheServer, gate: Gate) -> None:
    """A callback that used the client before does not use, after it, one that nobody closes."""
    with ThreadPoolExecutor(1) as pool:
        used: list[object] = []

        def callback(_: object) -> None:
            used.append(use(cache_server.alias))

        first = pool.submit(gate)
        gate.wait_for()
        first.add_done_callback(callback)

        def release() -> None:
            use(cache_server.alias)
            release_connections()

        second = pool.submit(release)
        second.add_done_callback(callback)
        third = pool.submit(int)
        gate.open()
        results([first, second, third])
        assert len(used) == 2
        assert not cache_server.left()


def test_an_initializer_and_a_callback(cache_server: CacheServer, gate: Gate) -> None:
    """What an initializer or a callback made is let go before the worker waits."""
    done = threading.Event()

    def callback(_: object) -> None:
        use(cache_server.alias)
        done.set()

    pool = ThreadPoolExecutor(1, initializer=use, initargs=(cache_server.alias,))
    assert pool.submit(int).result(10) == 0
    assert not cache_server.left()
    future = pool.submit(gate)
    gate.wait_for()
    future.add_done_callback(callback)
    gate.open()
    assert done.wait(10)
    assert not cache_server.left()
    pool.shutdown()
    cache_server.assert_own_is_untouched()


def test_async_code_in_a_task(cache_server: CacheServer) -> None:
    """What async code in a task does with a cache, in the worker or in its helper, is let go too."""
    found: list[object] = []

    async def use_it() -> None:
        await caches[cache_server.alias].aset("number", 7)
        found.append(await caches[cache_server.alias].aget("number"))
        found.append(await sync_to_async(connection_of)(cache_server.alias) == cache_server.own)

    with ThreadPoolExecutor(1) as pool:
        for call in (lambda: asyncio.run(use_it()), async_to_sync(use_it)):
            pool.submit(call).result(10)
            assert not cache_server.left()
    assert found == [7, False] * 2
    cache_server.assert_own_is_untouched()


def test_async_code_that_asks_first(cache_server: CacheServer) -> None:
    """A client that only the helper thread of async code in a task has made is let go with the task."""

    async def use_it() -> None:
        await sync_to_async(use)(cache_server.alias)

    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            pool.submit(lambda: asyncio.run(use_it())).result(10)
            assert not cache_server.left()
    cache_server.assert_own_is_untouched()


def test_scopes_in_a_task(cache_server: CacheServer) -> None:
    """A scope in a task closes what was made in it; an older client of the task's goes on."""
    inside: list[object] = []

    def task(before: bool) -> None:
        first = connection_of(cache_server.alias) if before else None
        with connection_scope():
            inside.append(connection_of(cache_server.alias) == first)
        inside.append(len(cache_server.clients() if before else cache_server.left()))
        use(cache_server.alias)

    with ThreadPoolExecutor(1) as pool:
        for before in (True, False):
            pool.submit(task, before).result(10)
            assert not cache_server.left()
    assert inside == [True, 1, False, 0]


@pytest.mark.parametrize("conn_max_idle", [0, 30])
def test_other_settings(conn_max_idle: float, cache_server: CacheServer) -> None:
    """A worker's next task follows settings that have changed, and no client of the old ones is left."""
    settings = caches.settings
    changed = {**settings, cache_server.alias: settings[cache_server.alias] | {"KEY_PREFIX": "changed"}}

    def prefix() -> object:
        use(cache_server.alias)
        return caches[cache_server.alias].key_prefix

    with ThreadPoolExecutor(1, conn_max_idle=conn_max_idle) as pool:
        assert pool.submit(prefix).result(10) == ""
        with override_settings(CACHES=changed):
            assert pool.submit(prefix).result(10) == "changed"
        with override_settings(CACHES={"default": settings["default"]}):
            assert pool.submit(use, "default").result(10)
        assert pool.submit(prefix).result(10) == ""
        if not conn_max_idle:
            assert not cache_server.left()
    assert not cache_server.left()
