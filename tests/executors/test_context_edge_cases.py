"""Where a task's context ends, what it leans on, and who else relies on it."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.core.cache import caches
from django.db import OperationalError
from django.test import override_settings
from django.urls import get_script_prefix, set_script_prefix
from django.utils.translation import trans_real
from pymemcache.exceptions import MemcacheError

from django_executors import ImmediateExecutor, ThreadPoolExecutor, all_connections, connection_scope
from django_executors.execution import thread
from django_executors.lifecycle import context, variables
from django_executors.lifecycle.holder import current_holder
from django_executors.testing import run_inline
from private_servers import Memcached, Redis, start_memcached, start_redis
from private_servers.processes import free_port
from tests.connections.test_fork import fork
from tests.connections.test_thread_end import run
from tests.executors.test_context import start_as_python_3_14_does
from tests.projects.testapp.models import Entry
from tests.support.cache_clients import CacheServer, close_own, connection_of, use
from tests.support.gates import Gate
from tests.support.kept import queued, results
from tests.support.observers import MemcachedObserver, PostgresObserver, RedisObserver
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

VARIABLE: contextvars.ContextVar[object] = contextvars.ContextVar("variable")


class Thing:
    """What a request keeps in a ContextVar."""


def submit_with_a_thing(submit: Callable[[], object]) -> weakref.ref[Thing]:
    """Submit from a context that holds a thing, and return a reference that does not keep it."""

    def set_and_submit() -> weakref.ref[Thing]:
        thing = Thing()
        VARIABLE.set(thing)
        submit()
        return weakref.ref(thing)

    return contextvars.Context().run(set_and_submit)


def is_gone(thing: weakref.ref[Thing]) -> bool:
    return wait_until(lambda: thing() is None, within=10)


def fail() -> None:
    VARIABLE.get()
    raise LookupError("of the task")


@pytest.fixture(params=[False, True], ids=["", "threads inherit"])
def threads_inherit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test as things are, and where a thread starts in the context of the one that starts it."""
    if request.param:
        monkeypatch.setattr(thread, "_THREADS_INHERIT", True)
        monkeypatch.setattr(threading.Thread, "start", start_as_python_3_14_does)


@pytest.mark.usefixtures("threads_inherit")
@pytest.mark.parametrize("task", [VARIABLE.get, fail])
@pytest.mark.parametrize("inherit_context", [True, False])
def test_submitters_context_is_let_go(task: Callable[[], object], inherit_context: bool) -> None:
    """A submitter's context does not outlive its task: neither its worker nor the pool keeps it."""
    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        thing = submit_with_a_thing(lambda: pool.submit(task))
        pool.submit(int).result(10)
        assert is_gone(thing)


@pytest.mark.usefixtures("threads_inherit")
def test_context_of_a_cancelled_task_is_let_go(gate: Gate) -> None:
    """Nor does it outlive a task that was cancelled before it began."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        thing = submit_with_a_thing(lambda: pool.submit(int).cancel())
        gate.open()
        assert is_gone(thing)


@pytest.mark.parametrize("task", [VARIABLE.get, fail])
def test_what_a_task_sets_is_let_go(task: Callable[[], object]) -> None:
    """What a task has set of its context goes when it ends, wherever it runs."""
    things: list[weakref.ref[Thing]] = []

    def sets() -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        VARIABLE.set(thing)
        task()

    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1, inherit_context=False) as other:
        for executor in (pool, other, ImmediateExecutor()):
            executor.submit(sets).exception(10)
        with run_inline():
            pool.submit(sets).exception(10)
        assert [is_gone(thing) for thing in things] == [True] * 4


@pytest.mark.parametrize("name", ["time_zone", "urlconf", "script_prefix", "async_executor"])
def test_where_django_keeps_it(name: str) -> None:
    """The private names of Django and asgiref are where they were: else each submit is slower."""
    assert isinstance(getattr(variables, name), contextvars.ContextVar)


@pytest.mark.parametrize(("owner", "name"), [(trans_real, "_active"), (caches, "_connections")])
def test_where_django_keeps_what_settings_replace(owner: object, name: str) -> None:
    """So are those that are looked up at each submit, since `override_settings` replaces them."""
    assert isinstance(variables.variable_of(getattr(owner, name)), contextvars.ContextVar)


def test_routes_of_asgiref() -> None:
    """What is left out of a task's context, and what is put in its place, is where it was."""
    assert [route.name for route in context._routes] == [
        "thread_sensitive_context",
        "deadlock_context",
        "async_single_thread_context",
    ]
    assert isinstance(SyncToAsync.single_thread_executor, context._ProcessWideThread)


@pytest.mark.parametrize("value", [None, 0, 1, "yes"])
def test_no_bool(value: Any) -> None:
    """`inherit_context` is True or False; anything else is refused by name."""
    with pytest.raises(TypeError, match=f"^inherit_context must be True or False, not {value!r}$"):
        ThreadPoolExecutor(1, inherit_context=value)


def test_script_prefix_in_a_thread_with_a_copied_context() -> None:
    """A script prefix holds where it is seen, though not in a thread that runs in a copied context."""

    def prefix_in_a_task() -> str:
        return pool.submit(get_script_prefix).result(10)

    def both() -> None:
        set_script_prefix("/shop/")
        copied = contextvars.copy_context()
        other = threading.Thread(
            target=copied.run, args=(lambda: there.extend([get_script_prefix(), prefix_in_a_task()]),)
        )
        other.start()
        other.join(10)
        here.extend([get_script_prefix(), prefix_in_a_task()])

    here: list[str] = []
    there: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        contextvars.Context().run(both)
    assert here == ["/shop/"] * 2
    assert there[1] == there[0]  # whichever asgiref says


WITHOUT_SETTINGS = """
import contextvars
from django.urls import get_script_prefix, set_script_prefix
from django.utils import timezone
from django_executors import ImmediateExecutor, ThreadPoolExecutor

variable = contextvars.ContextVar("variable", default="nothing")
for executor in (ThreadPoolExecutor(1), ImmediateExecutor()):
    assert executor.submit(variable.get).result(10) == "nothing"
    executor.submit(variable.set, "of a task").result(10)
    assert executor.submit(variable.get).result(10) == "nothing"
variable.set("of the submitter")
set_script_prefix("/shop/")
for executor in (ThreadPoolExecutor(1), ImmediateExecutor()):
    seen = executor.submit(lambda: (variable.get(), get_script_prefix())).result(10)
    assert seen == ("of the submitter", "/shop/"), seen
pool = ThreadPoolExecutor(1, initializer=variable.set, initargs=("of the pool",), inherit_context=False)
assert pool.submit(variable.get).result(10) == "of the pool"
timezone.activate("Europe/Berlin")
assert ThreadPoolExecutor(1).submit(variable.get).result(10) == "of the submitter"
"""


def test_without_settings() -> None:
    """A program that has not configured Django's settings may use executors, and they inherit."""
    ended = run_python(WITHOUT_SETTINGS, settings=None)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_open_telemetry() -> None:
    """A span opened in a task belongs to its submitter's trace, under the span that it was in."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")

    def task(_: object = None) -> None:
        with tracer.start_as_current_span("task"):
            pass

    with ThreadPoolExecutor(1) as pool:
        with tracer.start_as_current_span("request") as span:
            request = span.get_span_context()
            pool.submit(task).result(10)
            list(pool.map(task, range(2)))
            ImmediateExecutor().submit(task).result(0)
        pool.submit(task).result(10)
    *tasks, _, outside = exporter.get_finished_spans()
    assert len(tasks) == 4
    for each in tasks:
        assert (each.context.trace_id, each.parent.span_id) == (request.trace_id, request.span_id)
    assert outside.context.trace_id != request.trace_id
    assert outside.parent is None


# Cache clients where no worker is: in scopes, in threads that end, in the caller's, in a fork.


with_app = pytest.mark.usefixtures("watch_every_thread")
#: django-redis has one pool for all threads but workers, and no thread may close it.
WITH_SOCKETS_OF_THEIR_OWN = ["redis", "memcached"]
of_each_thread = pytest.mark.parametrize("cache_server", WITH_SOCKETS_OF_THEIR_OWN, indirect=True)


@of_each_thread
@pytest.mark.parametrize("app", [True, False])
def test_a_scope_in_a_thread(
    app: bool, cache_server: CacheServer, request: pytest.FixtureRequest
) -> None:
    """A scope in a plain thread closes what was made inside, and leaves older clients alone."""
    if app:
        request.getfixturevalue("watch_every_thread")
    found: list[object] = []

    def target() -> None:
        with connection_scope():
            outer = connection_of(cache_server.alias)
            with connection_scope():
                found.append(connection_of(cache_server.alias) == outer)
            found.append(connection_of(cache_server.alias) == outer)
        found.append(cache_server.left())
        with connection_scope():
            with connection_scope():
                use(cache_server.alias)
            found.append(cache_server.left())
            use(cache_server.alias)
        found.append(cache_server.left())

    run(target)
    assert found == [True, True, set(), set(), set()]
    cache_server.assert_own_is_untouched()


@of_each_thread
def test_a_scope_where_a_client_is_open(cache_server: CacheServer) -> None:
    """A scope uses the client that its thread had, and does not close it."""
    with connection_scope():
        assert use(cache_server.alias)[1] is cache_server.object
    cache_server.assert_own_is_untouched()


@with_app
@of_each_thread
def test_the_end_of_a_thread(cache_server: CacheServer) -> None:
    """With the app, what a plain thread made is closed when it ends."""
    held: list[int] = []

    def target() -> None:
        use(cache_server.alias)
        held.append(len(cache_server.clients()))

    for _ in range(10):
        run(target)
        assert not cache_server.left()
    assert held == [1] * 10
    cache_server.assert_own_is_untouched()


@with_app
@of_each_thread
def test_one_context_after_another(cache_server: CacheServer) -> None:
    """A thread that makes a client in each request's context keeps none of another request's alive."""
    kept: list[int] = []

    def target() -> None:
        for _ in range(20):
            contextvars.Context().run(lambda: caches[cache_server.alias])  # makes no connection
        kept.append(len(current_holder().caches))
        use(cache_server.alias)

    run(target)
    assert kept[0] <= 1
    assert not cache_server.left()


def test_the_end_of_a_worker(cache_server: CacheServer, gate: Gate) -> None:
    """What a callback makes when its pool is gone is closed when its worker has ended."""
    done = threading.Event()

    def callback(_: object) -> None:
        use(cache_server.alias)
        done.set()

    pool = ThreadPoolExecutor(1, conn_max_idle=30)
    future = pool.submit(gate)
    gate.wait_for()
    future.add_done_callback(callback)
    pool.shutdown(wait=False)
    gate.open()
    assert done.wait(10)
    assert not cache_server.left()


@pytest.mark.parametrize("end", ["shutdown", "shutdown without waiting", "forgotten"])
def test_the_pools_end(end: str, cache_server: CacheServer) -> None:
    """A pool that is shut down or forgotten lets go of what an idle worker keeps."""
    pool: ThreadPoolExecutor | None = ThreadPoolExecutor(1, conn_max_idle=30)
    assert pool is not None
    pool.submit(use, cache_server.alias).result(10)
    assert cache_server.clients()
    if end != "forgotten":
        pool.shutdown(wait=end == "shutdown")
    pool = None
    assert not cache_server.left()


def in_an_immediate_executor(fn: Callable[..., Any], *args: Any) -> Any:
    return ImmediateExecutor().submit(fn, *args).result(0)


def in_a_pool_that_is_inline(fn: Callable[..., Any], *args: Any) -> Any:
    with run_inline(), ThreadPoolExecutor(1) as pool:
        return pool.submit(fn, *args).result(0)


INLINE = pytest.mark.parametrize("call", [in_an_immediate_executor, in_a_pool_that_is_inline])


@INLINE
@pytest.mark.parametrize("app", [True, False])
def test_the_callers_client(
    call: Callable[..., Any], app: bool, cache_server: CacheServer, request: pytest.FixtureRequest
) -> None:
    """A task in its caller's thread uses the caller's client, which stays open."""
    if app:
        request.getfixturevalue("watch_every_thread")
    assert call(connection_of, cache_server.alias) == cache_server.own
    cache_server.assert_own_is_untouched()
    assert not cache_server.clients()


@INLINE
@of_each_thread
def test_a_client_made_in_the_callers_thread(
    call: Callable[..., Any], cache_server: CacheServer
) -> None:
    """What such a task makes is closed at its end, or at its exception."""

    def fails() -> None:
        use(cache_server.alias)
        assert cache_server.clients()
        raise LookupError

    def target() -> None:
        call(use, cache_server.alias)
        assert not cache_server.left()
        with pytest.raises(LookupError):
            call(fails)
        ended.append(len(cache_server.left()))

    ended: list[int] = []
    run(target)
    assert ended == [0]
    cache_server.assert_own_is_untouched()


@INLINE
@with_app
@of_each_thread
def test_another_context_in_the_callers_thread(
    call: Callable[..., Any], cache_server: CacheServer
) -> None:
    """A second client, made by a task in a context of its own, leaves the thread's first one alone."""
    found: list[object] = []

    def target() -> None:
        first = connection_of(cache_server.alias)
        call(contextvars.Context().run, use, cache_server.alias)
        found.append(len(wait_until(cache_server.clients, lambda ids: len(ids) == 1)))
        found.append(connection_of(cache_server.alias) == first)

    run(target)
    assert found == [1, True]
    assert not cache_server.left()


def test_in_a_workers_thread(cache_server: CacheServer) -> None:
    """A task that a worker runs at once uses the worker's client."""

    def task() -> bool:
        first = connection_of(cache_server.alias)
        same: bool = in_an_immediate_executor(connection_of, cache_server.alias) == first
        return same and connection_of(cache_server.alias) == first

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(task).result(10)
        assert not cache_server.left()


@with_app
def test_a_fork(cache_server: CacheServer, gate: Gate) -> None:
    """A forked child leaves the sockets of its parent's threads and workers alone."""

    def child() -> None:
        run(lambda: use("default"))
        close_all_that_is_ours()
        with ThreadPoolExecutor(1) as own:
            own.submit(use, cache_server.alias).result(10)

    def task() -> bool:
        first = connection_of(cache_server.alias)
        forked.append(fork(child))
        return connection_of(cache_server.alias) == first

    forked: list[tuple[int, str]] = []
    with ThreadPoolExecutor(1, conn_max_idle=30) as pool:
        first = pool.submit(connection_of, cache_server.alias).result(10)
        forked.append(fork(child))
        assert pool.submit(connection_of, cache_server.alias).result(10) == first
        assert pool.submit(task).result(20)
    assert forked == [(0, "")] * 2
    assert not cache_server.left()
    cache_server.assert_own_is_untouched()


def close_all_that_is_ours() -> None:
    from django_executors.lifecycle.release import release

    release(current_holder())


@of_each_thread
def test_without_the_library(cache_server: CacheServer) -> None:
    """Without the app a plain thread is Django's: nothing of it is known here."""
    known: list[object] = []

    def target() -> None:
        use(cache_server.alias)
        known.append(current_holder().caches)
        close_own(cache_server.alias)

    run(target)
    assert known == [[]]


# When a cache server, or closing a client, fails: the error is the library's, the rest is let go.


class OfTheClosing(Exception):
    """What closing raises here."""


@pytest.fixture
def broken(cache_server: CacheServer) -> Iterator[CacheServer]:
    """Closing a client of this server fails, while the server is well."""

    def close(self: Any, **kwargs: Any) -> None:
        raise OfTheClosing

    if cache_server.alias == "memcached":  # whose sockets no one else closes
        own = type(cache_server.object).close

        def close(self: Any, **kwargs: Any) -> None:
            own(self)
            raise OfTheClosing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(cache_server.object), "close", close)
        yield cache_server


@pytest.mark.parametrize("error", [None, LookupError("of the task")])
def test_closing_fails(
    error: Exception | None,
    broken: CacheServer,
    caplog: pytest.LogCaptureFixture,
    postgres: PostgresObserver,
) -> None:
    """Other caches and the databases are let go, result or exception arrives, one warning says it."""
    closed: list[str] = []
    other = type(caches["default"])

    class Other(other):  # type: ignore[misc, valid-type]
        def close(self, **kwargs: Any) -> None:
            closed.append("default")

    def task() -> str:
        use(broken.alias)
        caches["default"].__class__ = Other
        Entry.objects.count()
        if error is not None:
            raise error
        return "the result"

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(task)
        assert future.exception(10) is error
        assert error is not None or future.result() == "the result"
        assert closed == ["default"]
        assert all_connections() == ()
        assert not postgres.left()
        assert not broken.left()
        (record,) = [each for each in caplog.records if each.name.startswith("django_executors")]
        assert record.levelno == logging.WARNING
        assert "test_closing_fails" in record.getMessage()
        assert f"alias={broken.alias} (a cache)" in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[0] is OfTheClosing


@pytest.mark.usefixtures("watch_every_thread")
def test_closing_fails_at_a_threads_end(
    broken: CacheServer, caplog: pytest.LogCaptureFixture, postgres: PostgresObserver
) -> None:
    """At a thread's end too the databases are let go, and a living thread logs it."""

    def target() -> None:
        use(broken.alias)
        Entry.objects.count()

    thread = threading.Thread(target=target, name="ends")
    thread.start()
    thread.join(10)
    assert all_connections() == ()
    assert not postgres.left()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result(10)
    (record,) = [each for each in caplog.records if each.name.startswith("django_executors")]
    assert f"thread=ends alias={broken.alias} (a cache)" in record.getMessage()


@contextlib.contextmanager
def only(alias: str, entry: dict[str, Any]) -> Iterator[None]:
    """Have this cache beside "default", and no client of it afterwards."""
    with override_settings(CACHES={"default": caches.settings["default"], alias: entry}):
        yield


REDIS = {
    "redis": "django.core.cache.backends.redis.RedisCache",
    "django-redis": "django_redis.cache.RedisCache",
}
PYMEMCACHE = "django.core.cache.backends.memcached.PyMemcacheCache"


@pytest.fixture
def second_memcached(memcached: MemcachedObserver) -> Iterator[Memcached]:
    with start_memcached() as server:
        yield server


@pytest.fixture
def second_redis(redis: RedisObserver) -> Iterator[Redis]:
    with start_redis() as server:
        yield server


# pymemcache replaces the client of a node that comes back without closing it: reference counting does.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_node_that_comes_and_goes(second_memcached: Memcached, memcached: MemcachedObserver) -> None:
    """32 workers with a node that is restarted under them: no KeyError, no hang, nothing is left."""
    stop = threading.Event()
    seen: Counter[type[BaseException] | None] = Counter()
    before = memcached.clients()
    first = caches.settings["memcached"]["LOCATION"]
    options = {"retry_attempts": 1, "retry_timeout": 0.01, "dead_timeout": 0.05, "timeout": 5}
    entry = {
        "BACKEND": PYMEMCACHE,
        "LOCATION": [first, second_memcached.address],
        "OPTIONS": options,
    }

    def task(number: int) -> None:
        for key in range(20):
            caches["nodes"].set(f"{number}-{key}", key)
            found = caches["nodes"].get(f"{number}-{key}")
            assert found is None or found == key

    with only("nodes", entry), ThreadPoolExecutor(32) as pool:

        def load() -> None:
            number = 0
            while not stop.is_set():
                futures = [pool.submit(task, number + each) for each in range(64)]
                seen.update(type(future.exception(60)) for future in futures)
                number += 64

        thread = threading.Thread(target=load)
        thread.start()
        for _ in range(3):
            second_memcached.restart()
            wait_until(lambda: False, within=0.3)
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        assert not memcached.left(before)
    assert seen.pop(type(None), 0) > 64
    assert all(issubclass(each, (OSError, MemcacheError)) for each in seen if each), seen


@pytest.mark.parametrize("alias", ["redis", "django-redis", "memcached"])
def test_the_caches_server_is_down(alias: str, postgres: PostgresObserver) -> None:
    """A task's error is the cache library's own, and its connection to the database is let go."""
    import redis.exceptions

    def task() -> None:
        Entry.objects.count()
        caches[alias].set("number", 1)

    address = f"127.0.0.1:{free_port()}"
    entry = {"BACKEND": PYMEMCACHE, "LOCATION": address}
    if alias in REDIS:
        entry = {"BACKEND": REDIS[alias], "LOCATION": f"redis://{address}"}
    with only(alias, entry), ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            error = pool.submit(task).exception(20)
            assert isinstance(error, (redis.exceptions.ConnectionError, ConnectionRefusedError))
            assert all_connections() == ()
            assert not postgres.left()


def test_the_database_is_down(cache_server: CacheServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's error is the database driver's, and its cache client is let go."""
    from django.db import connections

    def task() -> None:
        use(cache_server.alias)
        Entry.objects.count()

    monkeypatch.setitem(connections.settings["default"], "PORT", str(free_port()))
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            assert isinstance(pool.submit(task).exception(20), OperationalError)
            assert not cache_server.left()
    cache_server.assert_own_is_untouched()


@pytest.mark.parametrize("alias", REDIS)
def test_a_server_that_restarts(alias: str, second_redis: Redis) -> None:
    """A client that a worker kept while its server restarted is used again, or fails as itself once."""
    import redis.exceptions

    with (
        only(alias, {"BACKEND": REDIS[alias], "LOCATION": second_redis.url}),
        ThreadPoolExecutor(1, conn_max_idle=30) as pool,
    ):
        pool.submit(use, alias).result(10)
        second_redis.restart()
        error = pool.submit(use, alias).exception(10)
        assert error is None or isinstance(error, redis.exceptions.ConnectionError)
        assert results(queued(pool, lambda: use(alias)[0]))
