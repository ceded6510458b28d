"""Where a task's context ends, what it leans on, and cache clients where no worker is."""

from __future__ import annotations

import concurrent.futures
import contextvars
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.test import override_settings

from django_executors import (
    ImmediateExecutor,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    context,
)
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support.cache_clients import CacheServer, connection_of, use
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

VARIABLE: contextvars.ContextVar[object] = contextvars.ContextVar("variable")
Futures = list[Any]


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
    return wait_until(lambda: thing() is None, within=15)  # shorter than a Gate waits


def fail() -> None:
    VARIABLE.get()
    raise LookupError("of the task")


@pytest.mark.parametrize("task", [VARIABLE.get, fail], ids=["succeeds", "fails"])
@pytest.mark.parametrize("inherit_context", [True, False])
def test_submitters_context_is_let_go(task: Callable[[], object], inherit_context: bool) -> None:
    """It does not outlive its task: neither worker, pool, nor a failed task's future keeps it."""
    futures: Futures = []
    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        thing = submit_with_a_thing(lambda: futures.append(pool.submit(task)))
        pool.submit(int).result(20)
        if task is not fail:
            futures.clear()  # which has a result of that context
        assert is_gone(thing)


def cancelled(futures: Futures, gate: Gate) -> weakref.ref[Thing]:
    pool = ThreadPoolExecutor(1)
    pool.submit(gate)
    thing = submit_with_a_thing(lambda: futures.append(pool.submit(int)))
    assert futures[0].cancel()
    gate.open()  # it leaves the queue
    return thing


def at_a_deadline(futures: Futures, gate: Gate) -> weakref.ref[Thing]:
    pool = ThreadPoolExecutor(1)
    pool.submit(gate)
    gate.wait_for()
    thing = submit_with_a_thing(lambda: futures.append(pool.submit(int)))
    pool.shutdown(timeout=0)
    return thing


def in_a_broken_pool(futures: Futures, gate: Gate) -> weakref.ref[Thing]:
    def initialize() -> None:
        gate()
        raise ZeroDivisionError

    pool = ThreadPoolExecutor(1, initializer=initialize)
    thing = submit_with_a_thing(lambda: futures.append(pool.submit(int)))
    gate.open()
    assert futures[0].exception(20) is not None
    return thing


@pytest.mark.usefixtures("caplog")
@pytest.mark.parametrize("end", [cancelled, at_a_deadline, in_a_broken_pool])
def test_context_of_a_task_that_never_runs(end: Callable[..., weakref.ref[Thing]], gate: Gate) -> None:
    """It is let go too, while the task's future is kept."""
    futures: Futures = []
    assert is_gone(end(futures, gate))
    assert futures[0].done()


@pytest.mark.parametrize("task", [VARIABLE.get, fail], ids=["succeeds", "fails"])
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
            executor.submit(sets).exception(20)
        with run_inline():
            pool.submit(sets).exception(20)
        assert [is_gone(thing) for thing in things] == [True] * 4


def test_variables_are_found() -> None:
    """What Django and asgiref activate is found in variables: else each submit is slower."""
    variables = context._Variables()
    found = {*variables.activated, variables.caches, variables.async_executor}
    assert len(found) == 6
    assert {variable.name for variable in found} == {"asgiref.local"}
    assert [route.name for route in context._ROUTES] == [
        "thread_sensitive_context",
        "deadlock_context",
        "async_single_thread_context",
    ]
    assert isinstance(SyncToAsync.single_thread_executor, context._ProcessWideThread)


def test_asgirefs_executor_can_be_shut_down() -> None:
    """Whoever ends the executor that asgiref has for the process, as a server may, still can."""
    asgirefs = concurrent.futures.ThreadPoolExecutor(1)
    context._ProcessWideThread(asgirefs).shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        asgirefs.submit(int)


def test_no_bool() -> None:
    """`inherit_context` is True or False; anything else is refused by name."""
    with pytest.raises(TypeError, match=r"^inherit_context must be True or False, not None$"):
        ThreadPoolExecutor(1, inherit_context=None)  # type: ignore[arg-type]


WITHOUT_SETTINGS = """
import contextvars
from django.urls import get_script_prefix, set_script_prefix
from django.utils import timezone
from django_executors import ImmediateExecutor, ThreadPoolExecutor

variable = contextvars.ContextVar("variable", default="nothing")
for executor in (ThreadPoolExecutor(1), ImmediateExecutor()):
    executor.submit(variable.set, "of a task").result(20)
    assert executor.submit(variable.get).result(20) == "nothing"
variable.set("of the submitter")
set_script_prefix("/shop/")
timezone.activate("Europe/Berlin")
for executor in (ThreadPoolExecutor(1), ImmediateExecutor()):
    seen = executor.submit(lambda: (variable.get(), get_script_prefix())).result(20)
    assert seen == ("of the submitter", "/shop/"), seen
pool = ThreadPoolExecutor(1, initializer=variable.set, initargs=("of the pool",), inherit_context=False)
assert pool.submit(variable.get).result(20) == "of the pool"
"""


@pytest.mark.slow
def test_without_settings() -> None:
    """A program that has not configured Django's settings may use executors, and they inherit."""
    ended = run_python(WITHOUT_SETTINGS, settings=None)
    assert (ended.returncode, ended.stderr) == (0, "")


# Cache clients where no worker is: in scopes, in threads that end, in the caller's.


def in_a_thread(target: Callable[[], object]) -> None:
    """Run it in a plain thread, to its end; raise what it raises."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            target()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="ends")
    thread.start()
    thread.join(60)
    if errors:
        raise errors[0]


def test_scopes_in_a_thread(cache_server: CacheServer) -> None:
    """A scope in a plain thread closes what was made inside, and leaves older clients alone."""

    def target() -> None:
        with connection_scope():
            outer = connection_of(cache_server.alias)
            with connection_scope():
                assert connection_of(cache_server.alias) == outer
            assert connection_of(cache_server.alias) == outer
        assert not cache_server.left()
        with connection_scope():
            with connection_scope():
                use(cache_server.alias)
            assert not cache_server.left()

    in_a_thread(target)
    with connection_scope():
        assert use(cache_server.alias)[1] is cache_server.object
    cache_server.assert_own_is_untouched()


@pytest.mark.usefixtures("watch_every_thread")
def test_the_end_of_a_thread(cache_server: CacheServer) -> None:
    """With the app, what a plain thread made is closed when it ends."""

    def target() -> None:
        use(cache_server.alias)
        assert len(cache_server.clients()) == 1

    for _ in range(2):
        in_a_thread(target)
        assert not cache_server.left()
    cache_server.assert_own_is_untouched()


@pytest.mark.usefixtures("watch_every_thread")
def test_one_context_after_another() -> None:
    """With the app, a thread that makes a client in each request's context keeps none of them alive."""

    def target() -> None:
        for _ in range(3):
            made = contextvars.Context().run(lambda: weakref.ref(caches["default"]))
            assert made() is None

    in_a_thread(target)


def test_the_callers_client(cache_server: CacheServer) -> None:
    """A task in its caller's thread uses the caller's client, which stays open."""
    with ThreadPoolExecutor(1) as pool, run_inline():
        for executor in (pool, ImmediateExecutor()):
            assert executor.submit(connection_of, cache_server.alias).result(0) == cache_server.own
    cache_server.assert_own_is_untouched()
    assert not cache_server.clients()


def test_a_client_made_in_the_callers_thread(cache_server: CacheServer) -> None:
    """What such a task makes is closed at its end, or at its exception; a worker's client goes on."""

    def fails() -> None:
        use(cache_server.alias)
        assert cache_server.clients()
        raise LookupError

    def target() -> None:
        with ThreadPoolExecutor(1) as pool, run_inline():
            for executor in (pool, ImmediateExecutor()):
                assert isinstance(executor.submit(fails).exception(0), LookupError)
                assert not cache_server.left()

    def task() -> bool:
        first = connection_of(cache_server.alias)
        inside = ImmediateExecutor().submit(connection_of, cache_server.alias).result(0)
        return first == inside == connection_of(cache_server.alias)

    in_a_thread(target)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(task).result(20)
        assert not cache_server.left()
    cache_server.assert_own_is_untouched()


# When closing a client fails, the rest is let go.


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return which of two caches were closed; closing the first one fails."""
    names: list[str] = []

    def close(self: Any, **kwargs: Any) -> None:
        names.append(self.key_prefix)
        if self.key_prefix == "broken":
            raise OSError("of the closing")

    monkeypatch.setattr(LocMemCache, "close", close)
    local = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    entries = {alias: local | {"KEY_PREFIX": alias} for alias in ("broken", "default")}
    with override_settings(CACHES=entries):
        yield names


def use_all() -> str:
    caches["broken"].set("number", 1)
    caches["default"].set("number", 1)
    Entry.objects.count()
    return "the result"


def fail_then() -> None:
    use_all()
    raise LookupError("of the task")


def assert_logged(caplog: pytest.LogCaptureFixture, said: str) -> None:
    (record,) = [each for each in caplog.records if each.name.startswith("django_executors")]
    assert record.levelno == logging.WARNING
    assert "alias=broken (a cache)" in record.getMessage()
    assert said in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "of the closing"


@pytest.mark.parametrize("task", [use_all, fail_then])
def test_closing_fails(
    task: Callable[[], str],
    closed: list[str],
    caplog: pytest.LogCaptureFixture,
    postgres: PostgresObserver,
) -> None:
    """Other caches and the databases are let go, result or exception arrives, one warning says it."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(task)
        assert str(future.exception(20) or future.result()) in ("the result", "of the task")
        assert closed == ["broken", "default"]
        assert all_connections() == ()
        assert not postgres.left()
    assert_logged(caplog, task.__name__)


@pytest.mark.usefixtures("watch_every_thread")
def test_closing_fails_at_a_threads_end(
    closed: list[str], caplog: pytest.LogCaptureFixture, postgres: PostgresObserver
) -> None:
    """At a thread's end too the rest is let go, and a living thread logs it."""
    in_a_thread(use_all)
    assert closed == ["broken", "default"]
    assert all_connections() == ()
    assert not postgres.left()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result(20)
    assert_logged(caplog, "thread=ends")
