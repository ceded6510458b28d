"""`executors`: one by each alias of `settings.EXECUTORS`, for all threads of a process."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings

from django_executors import ImmediateExecutor, ThreadPoolExecutor, all_connections, executors
from tests.projects.testapp.models import Entry
from tests.support import process_tasks as tasks
from tests.support.forks import fork
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python

TWO: dict[str, dict[str, Any]] = {
    "default": {"OPTIONS": {"max_workers": 3}},
    "mails": {"OPTIONS": {"max_workers": 2, "max_pending": 5, "when_full": "raise"}},
}


#: Of each shutdown: the alias, and what it was called with.
asked: list[tuple[str | None, bool, float | None]] = []


class Recording(ThreadPoolExecutor):
    """A pool that notes how it was shut down."""

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        asked.append((self._thread_name_prefix, wait, timeout))
        super().shutdown(wait, cancel_futures=cancel_futures, timeout=timeout)


class Interrupted(Recording):
    """A pool whose waiting is interrupted."""

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        if wait:
            raise KeyboardInterrupt


def in_order(*backends: type[Recording]) -> dict[str, dict[str, str]]:
    """Return a setting with an alias for each, and forget what was asked before."""
    asked.clear()
    return {each.__name__: {"BACKEND": f"{__name__}.{each.__name__}"} for each in backends}


@pytest.fixture
def made_anew() -> Iterator[None]:
    """Begin without executors, and leave none."""
    with override_settings(EXECUTORS=TWO):
        yield
        executors.shutdown()


@pytest.mark.usefixtures("made_anew")
def test_made_once_by_alias() -> None:
    """Each alias has its own pool, with its own options, and keeps it."""
    default, mails = executors["default"], executors["mails"]
    assert isinstance(default, ThreadPoolExecutor)
    assert isinstance(mails, ThreadPoolExecutor)
    assert default is not mails
    assert (default._max_workers, mails._max_workers) == (3, 2)
    assert executors["default"] is default
    with concurrent.futures.ThreadPoolExecutor(1) as others:
        assert others.submit(lambda: executors["default"]).result(10) is default
    assert list(executors) == ["default", "mails"]


@pytest.mark.usefixtures("made_anew")
def test_tasks_let_go(postgres: PostgresObserver) -> None:
    """A task of it has its connection closed when it ends."""
    assert executors["default"].submit(Entry.objects.count).result(10) == 0
    assert all_connections() == ()
    assert not postgres.left()


@pytest.mark.usefixtures("made_anew")
def test_threads_have_its_name() -> None:
    """Threads are called by the alias, or as the setting says."""

    def name() -> str:
        return threading.current_thread().name

    assert executors["mails"].submit(name).result(10) == "mails_0"
    with override_settings(EXECUTORS={"mails": {"OPTIONS": {"thread_name_prefix": "post"}}}):
        assert executors["mails"].submit(name).result(10) == "post_0"


@pytest.mark.parametrize("setting", [{}, {"mails": {}}])
@pytest.mark.usefixtures("made_anew")
def test_default_needs_no_setting(setting: dict[str, Any]) -> None:
    """Where the setting has none, "default" is the pool that `ThreadPoolExecutor()` makes."""
    with override_settings(EXECUTORS=setting):
        assert type(executors["default"]) is ThreadPoolExecutor
        assert executors["default"]._max_workers == ThreadPoolExecutor()._max_workers
        assert list(executors) == ["default", *setting]


@pytest.mark.usefixtures("made_anew")
def test_first_use_by_many_threads() -> None:
    """However many threads ask first, they get one."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(16) as others:
            barrier = threading.Barrier(16)

            def ask() -> object:
                barrier.wait(10)
                return executors["default"]

            for _ in range(200):
                with override_settings(EXECUTORS=TWO):
                    futures = [others.submit(ask) for _ in range(16)]
                    assert len({future.result(10) for future in futures}) == 1
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.usefixtures("made_anew")
def test_changed_setting() -> None:
    """It is made anew when the setting changes, and again when the change ends."""
    outer = executors["default"]
    with override_settings(EXECUTORS={"default": {"OPTIONS": {"max_workers": 1}}}):
        inner = executors["default"]
        assert inner is not outer
        assert isinstance(inner, ThreadPoolExecutor)
        assert inner._max_workers == 1
        with override_settings(USE_TZ=False):
            assert executors["default"] is inner
    assert executors["default"] not in (inner, outer)
    left = weakref.ref(inner)
    del inner
    assert left() is None
    assert outer.submit(lambda: "goes on").result(10) == "goes on"
    thread = outer.submit(threading.current_thread).result(10)
    del outer
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.usefixtures("made_anew")
def test_changed_while_it_works() -> None:
    """A pool that is forgotten does what it has taken."""
    gate = Gate()
    with override_settings(EXECUTORS=TWO):
        futures = [executors["default"].submit(gate) for _ in range(5)]
        gate.wait_for(3)
    gate.open()
    assert [future.result(10) for future in futures] == [None] * 5


@pytest.mark.usefixtures("made_anew")
def test_fork() -> None:
    """A child has its own, without what the parent has queued; the parent's goes on."""
    gate = Gate()
    futures = [executors["default"].submit(gate) for _ in range(5)]
    gate.wait_for(3)

    def child() -> None:
        assert executors["default"].submit(lambda: 1).result(10) == 1
        stats = executors["default"].stats()
        assert (stats.submitted, stats.pending) == (1, 0)
        executors.shutdown()

    assert fork(child) == (0, "")
    gate.open()
    assert [future.result(10) for future in futures] == [None] * 5


@pytest.mark.usefixtures("made_anew")
def test_made_in_the_child_first() -> None:
    """What a child makes is no business of its parent's."""

    def child() -> None:
        assert executors["mails"].submit(lambda: 1).result(10) == 1
        executors.shutdown()

    assert fork(child) == (0, "")
    assert executors["mails"].submit(lambda: 1).result(10) == 1


@pytest.mark.usefixtures("made_anew")
def test_shutdown() -> None:
    """Tasks have run when it returns, and each pool refuses more, one that is made later too."""
    futures = [executors["default"].submit(Entry.objects.count) for _ in range(20)]
    executors.shutdown()
    assert all(future.done() for future in futures)
    for alias in executors:
        with pytest.raises(RuntimeError, match="after shutdown"):
            executors[alias].submit(print)
    executors.shutdown(timeout=0)  # once more is nothing


@pytest.mark.usefixtures("made_anew")
def test_shutdown_with_a_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """At the timeout what has not begun is cancelled in each, and said."""
    gate = Gate()
    begun = [
        executors[alias].submit(gate) for alias in ("default", "default", "default", "mails", "mails")
    ]
    waiting = [executors[alias].submit(gate) for alias in executors]
    gate.wait_for(5)
    executors.shutdown(timeout=0)
    assert all(future.cancelled() for future in waiting)
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2
    gate.open()
    assert [future.result(10) for future in begun] == [None] * 5


class Second(Recording):
    """Another alias."""


@pytest.mark.usefixtures("made_anew")
def test_one_timeout_for_all() -> None:
    """The second pool has as long as the first has left."""
    with override_settings(EXECUTORS=in_order(Recording, Second)):
        for alias in ("Second", "Recording"):
            assert executors[alias].submit(int).result(10) == 0
        executors.shutdown(timeout=1000)
    (first, _, of_first), (second, _, of_second) = asked
    assert (first, second) == ("Second", "Recording")
    assert of_first is not None
    assert of_second is not None
    assert 1000 >= of_first > of_second > 0


@pytest.mark.usefixtures("made_anew")
def test_interrupted_shutdown() -> None:
    """When the waiting is interrupted, those that were not waited for refuse tasks all the same."""
    with override_settings(EXECUTORS=in_order(Interrupted, Recording)):
        for alias in ("Interrupted", "Recording"):
            assert executors[alias].submit(int).result(10) == 0
        with pytest.raises(KeyboardInterrupt):
            executors.shutdown()
        assert asked[-1] == ("Recording", False, None)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executors["Recording"].submit(print)


@pytest.mark.usefixtures("made_anew")
def test_shutdown_in_a_task() -> None:
    """It is told that it would wait for itself; all pools refuse tasks all the same."""
    first, second = executors["default"], executors["mails"]
    future = first.submit(lambda: executors.shutdown(timeout=5))
    assert isinstance(future.exception(10), RuntimeError)
    for executor in (first, second):
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(print)


@pytest.mark.parametrize("arguments", [{"timeout": -1}, {"timeout": "5"}, {"timeout": 5, "wait": False}])
@pytest.mark.usefixtures("made_anew")
def test_bad_timeout(arguments: dict[str, Any]) -> None:
    """It is refused before anything is shut down."""
    with pytest.raises((TypeError, ValueError), match="timeout"):
        executors.shutdown(**arguments)
    assert executors["default"].submit(lambda: 1).result(10) == 1


@pytest.mark.usefixtures("made_anew")
def test_exit(postgres: PostgresObserver) -> None:
    """A process that ends waits for what its executors have taken, and leaves no connection."""
    done = run_python(
        """
        import gc, sys
        gc.disable()
        from django_executors import executors
        from tests.projects.testapp.models import Entry
        for number in range(50):
            executors["default"].submit(lambda: sys.stdout.write(f"{Entry.objects.count()}\\n"))
        """,
        settings="tests.settings",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "0\n" * 50
    assert not postgres.left()


@pytest.mark.usefixtures("made_anew")
def test_immediate() -> None:
    """A setting for tests, or for a single core: the same alias runs in the caller's thread."""
    with override_settings(EXECUTORS={"default": {"BACKEND": "django_executors.ImmediateExecutor"}}):
        assert type(executors["default"]) is ImmediateExecutor
        assert executors["default"].submit(threading.get_ident).result() == threading.get_ident()


@pytest.mark.usefixtures("made_anew")
def test_no_such_alias() -> None:
    """It says which there are."""
    with pytest.raises(ImproperlyConfigured) as raised:
        executors["nowhere"]
    assert str(raised.value) == "EXECUTORS has no alias 'nowhere': it has 'default', 'mails'"


# `executors`: one that is of no use any more is replaced when it is next asked for.


OPTIONS: dict[str, Any] = {"max_workers": 2}
PROCESSES = {"BACKEND": "django_executors.ProcessPoolExecutor", "OPTIONS": OPTIONS}
THREADS = {"OPTIONS": OPTIONS | {"initializer": tasks.fail}}


@pytest.fixture
def made_anew_named_anew() -> Iterator[None]:
    with override_settings(EXECUTORS={"reports": PROCESSES, "mails": THREADS}):
        yield
        executors.shutdown()


@pytest.mark.usefixtures("made_anew_named_anew", "idle_before_and_after")
def test_a_dead_process(caplog: pytest.LogCaptureFixture, postgres: PostgresObserver) -> None:
    """All threads that ask then get the same new pool, of which the log tells once."""
    broken = executors["reports"]
    with pytest.raises(concurrent.futures.BrokenExecutor):
        broken.submit(tasks.killed).result(30)
    barrier = threading.Barrier(8)

    def ask(_: int) -> object:
        barrier.wait(10)
        return executors["reports"]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        (new,) = set(threads.map(ask, range(8)))
    assert new is executors["reports"] is not broken
    assert executors["reports"].submit(tasks.database).result(30) == tasks.database()
    told = [record.getMessage() for record in caplog.records if "made anew" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("executor=reports is made anew: A child process terminated abruptly")
    with pytest.raises(concurrent.futures.BrokenExecutor):
        broken.submit(tasks.database)


@pytest.mark.usefixtures("made_anew_named_anew", "idle_before_and_after")
def test_an_initializer_that_failed() -> None:
    broken = executors["mails"]
    with pytest.raises(concurrent.futures.BrokenExecutor):
        broken.submit(print).result(10)
    assert executors["mails"] is not broken


@pytest.mark.usefixtures("made_anew_named_anew", "idle_before_and_after")
def test_other_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who asked before get an error, and what they had submitted runs on the databases of then."""
    first = executors["reports"]
    before = first.submit(tasks.database)
    default, other = (connections.settings[alias]["NAME"] for alias in ("default", "other"))
    monkeypatch.setitem(connections.settings["default"], "NAME", other)
    assert executors["reports"].submit(tasks.database).result(30) == other
    assert before.result(30) == default
    first.shutdown()


@pytest.mark.usefixtures("made_anew_named_anew", "idle_before_and_after")
def test_those_of_a_shut_down_registry() -> None:
    """What is made anew refuses tasks too."""
    with pytest.raises(concurrent.futures.BrokenExecutor):
        executors["reports"].submit(tasks.killed).result(30)
    executors.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executors["reports"].submit(print)
