"""A task sees the world of the code that submitted it, and leaves nothing behind."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
from django.test import override_settings
from django.urls import get_urlconf, set_urlconf
from django.utils import timezone, translation

from django_executors import ImmediateExecutor, ThreadPoolExecutor
from django_executors.execution import thread
from django_executors.lifecycle import variables
from django_executors.testing import run_inline

from .gates import Gate
from .worlds import DEFAULT, FRENCH, GERMAN, World, leave, world


@pytest.fixture(autouse=True)
def left() -> Iterator[None]:
    """Each test begins and ends in the default world."""
    yield
    leave()


def start_as_python_3_14_does(self: threading.Thread) -> None:
    self.run = functools.partial(contextvars.copy_context().run, self.run)  # type: ignore[method-assign]
    _start(self)


_start = threading.Thread.start
NAMES = ["caches", "language", "time_zone", "urlconf", "script_prefix", "async_executor"]


@pytest.fixture(autouse=True, params=["", "private names moved", "threads inherit"])
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


def test_inherited() -> None:
    """A task sees its submitter's variables, language, time zone, URLconf and script prefix."""
    GERMAN.enter()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(world).result(10) == GERMAN


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


def test_back_to_the_default() -> None:
    """The next task on the same worker, submitted from the default world, is in the default world."""
    with ThreadPoolExecutor(1) as pool:
        GERMAN.enter()
        first = pool.submit(lambda: (threading.get_ident(), world()))
        leave()
        second = pool.submit(lambda: (threading.get_ident(), world()))
        worker = first.result(10)[0]
        assert (first.result(10), second.result(10)) == ((worker, GERMAN), (worker, DEFAULT))


def test_nothing_gets_out(pool: ThreadPoolExecutor) -> None:
    """What a task sets reaches neither its submitter nor the next task."""
    pool.submit(FRENCH.enter).result(10)
    assert pool.submit(world).result(10) == DEFAULT
    assert world() == DEFAULT


def test_nothing_gets_out_into_an_active_world() -> None:
    """Nor where the submitter has set everything itself."""
    GERMAN.enter()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(FRENCH.enter).result(10)
        assert pool.submit(world).result(10) == GERMAN
    assert world() == GERMAN


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


def test_deactivate_all() -> None:
    """`deactivate_all` is inherited too, and ends with the task."""
    with ThreadPoolExecutor(1) as pool:
        translation.deactivate_all()
        assert pool.submit(translation.get_language).result(10) is None
        translation.deactivate()
        assert pool.submit(translation.get_language).result(10) == DEFAULT.language


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


def test_map() -> None:
    """`map` runs each call in the world in which `map` was called."""
    GERMAN.enter()
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(world, range(8))
        leave()
        assert list(results) == [GERMAN] * 8


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


def test_initializer_where_tasks_inherit() -> None:
    """With inherit_context=True the submitter's world holds, not what the initializer has set."""
    with ThreadPoolExecutor(1, initializer=GERMAN.enter) as pool:
        assert pool.submit(world).result(10) == DEFAULT
        FRENCH.enter()
        assert pool.submit(world).result(10) == FRENCH


def test_not_inherited() -> None:
    """With inherit_context=False and no initializer a task starts in the default world."""
    GERMAN.enter()
    with ThreadPoolExecutor(1, inherit_context=False) as pool:
        assert pool.submit(world).result(10) == DEFAULT
        assert list(pool.map(world, range(2))) == [DEFAULT] * 2


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


def test_in_the_callers_thread(in_callers_thread: Executor) -> None:
    """Where a task runs in its caller's thread, it sees the caller's world, and does not change it."""
    GERMAN.enter()
    in_callers_thread.submit(FRENCH.enter).result(0)
    assert world() == GERMAN
    assert in_callers_thread.submit(world).result(0) == GERMAN
    assert list(in_callers_thread.map(world, range(2))) == [GERMAN] * 2


def test_not_inherited_in_the_callers_thread() -> None:
    """A pool that does not inherit does not do so under `run_inline` either."""
    GERMAN.enter()
    with run_inline(), ThreadPoolExecutor(1, inherit_context=False) as pool:
        assert pool.submit(world).result(0) == DEFAULT
        pool.submit(FRENCH.enter).result(0)
    assert world() == GERMAN


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
