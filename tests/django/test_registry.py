"""`executors`: one by each alias of `settings.EXECUTORS`, for all threads of a process."""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from django.db import connections
from django.test import override_settings

from django_executors import ThreadPoolExecutor, executors
from tests.projects.testapp.models import Entry
from tests.support import process_tasks as tasks
from tests.support.forks import fork
from tests.support.gates import Gate

SETTING: dict[str, dict[str, Any]] = {
    "default": {"OPTIONS": {"max_workers": 3}},
    "mails": {"OPTIONS": {"max_workers": 2, "max_pending": 5, "when_full": "raise"}},
    "broken": {"OPTIONS": {"max_workers": 1, "initializer": tasks.fail}},
    "reports": {"BACKEND": "django_executors.ProcessPoolExecutor", "OPTIONS": {"max_workers": 2}},
}


@pytest.fixture(autouse=True)
def made_anew() -> Iterator[None]:
    """Begin without executors, and leave none."""
    with override_settings(EXECUTORS=SETTING):
        yield
        executors.shutdown()


def test_made_once_by_alias() -> None:
    """Each alias has its own pool, with its own options, and keeps it."""
    default, mails = executors["default"], executors["mails"]
    assert isinstance(default, ThreadPoolExecutor)
    assert isinstance(mails, ThreadPoolExecutor)
    assert (default._max_workers, mails._max_workers) == (3, 2)
    with concurrent.futures.ThreadPoolExecutor(1) as others:
        assert others.submit(lambda: executors["default"]).result(20) is executors["default"] is default
    assert list(executors) == list(SETTING)
    assert mails.submit(threading.current_thread).result(20).name == "mails_0"


@pytest.mark.parametrize("setting", [{}, {"mails": {}}], ids=["empty", "another"])
def test_default_needs_no_setting(setting: dict[str, Any]) -> None:
    """Where the setting has none, "default" is the pool that `ThreadPoolExecutor()` makes."""
    with override_settings(EXECUTORS=setting):
        default = executors["default"]
        assert type(default) is ThreadPoolExecutor
        assert default._max_workers == ThreadPoolExecutor()._max_workers
        assert list(executors) == ["default", *setting]


def test_first_use_by_many_threads() -> None:
    """However many threads ask first, they get one."""
    all_of_them = threading.Barrier(8)

    def ask() -> object:
        all_of_them.wait(20)
        return executors["default"]

    with concurrent.futures.ThreadPoolExecutor(8) as others:
        for _ in range(20):
            with override_settings(EXECUTORS=SETTING):
                futures = [others.submit(ask) for _ in range(8)]
                assert len({future.result(20) for future in futures}) == 1


def test_changed_setting() -> None:
    """It is replaced when the setting changes, and again at the end; what it has taken still runs."""
    outer, gate = executors["default"], Gate()
    futures = [outer.submit(gate) for _ in range(5)]
    gate.wait_for(3)
    with override_settings(EXECUTORS={"default": {"OPTIONS": {"max_workers": 1}}}):
        inner = executors["default"]
        assert isinstance(inner, ThreadPoolExecutor)
        assert inner._max_workers == 1
        with override_settings(USE_TZ=False):
            assert executors["default"] is inner
    assert executors["default"] not in (inner, outer)
    left = weakref.ref(inner)
    del inner
    assert left() is None
    gate.open()
    assert [future.result(20) for future in futures] == [None] * 5
    thread = outer.submit(threading.current_thread).result(20)
    del outer
    thread.join(20)
    assert not thread.is_alive()


def test_fork() -> None:
    """A child has its own, without what the parent has queued; the parent's goes on."""
    gate = Gate()
    futures = [executors["default"].submit(gate) for _ in range(5)]
    gate.wait_for(3)

    def child() -> None:
        for alias in ("default", "mails"):
            assert executors[alias].submit(lambda: 1).result(20) == 1
            stats = executors[alias].stats()
            assert (stats.submitted, stats.pending) == (1, 0)
        executors.shutdown()

    assert fork(child) == (0, "")
    gate.open()
    assert [future.result(20) for future in futures] == [None] * 5
    assert executors["mails"].submit(lambda: 1).result(20) == 1


def test_shutdown() -> None:
    """Tasks have run when it returns, and each pool refuses more, one that is made later too."""
    with pytest.raises(concurrent.futures.BrokenExecutor):
        executors["broken"].submit(print).result(20)
    futures = [executors["default"].submit(Entry.objects.count) for _ in range(20)]
    executors.shutdown()
    assert all(future.done() for future in futures)
    for alias in executors:
        with pytest.raises(RuntimeError, match="after shutdown"):
            executors[alias].submit(print)
    executors.shutdown(timeout=0)  # once more is nothing


def test_shutdown_with_a_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """At the timeout what has not begun is cancelled in each, and said."""
    gate = Gate()
    begun = [
        executors[alias].submit(gate) for alias in ("default", "default", "default", "mails", "mails")
    ]
    waiting = [executors[alias].submit(gate) for alias in ("default", "mails")]
    gate.wait_for(5)
    executors.shutdown(timeout=0)
    assert all(future.cancelled() for future in waiting)
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2
    gate.open()
    assert [future.result(20) for future in begun] == [None] * 5


class Recording(ThreadPoolExecutor):
    """A pool that notes the timeouts of its shutdowns."""

    asked: ClassVar[list[float]] = []

    def shutdown(self, *args: Any, timeout: float | None = None, **kwargs: Any) -> None:
        if timeout is not None:
            self.asked.append(timeout)
        super().shutdown(*args, timeout=timeout, **kwargs)


def test_one_timeout_for_all() -> None:
    """The second pool has as long as the first has left."""
    Recording.asked.clear()
    backend = {"BACKEND": f"{__name__}.Recording"}
    with override_settings(EXECUTORS={"first": backend, "second": backend}):
        for alias in executors:
            assert executors[alias].submit(int).result(20) == 0
        executors.shutdown(timeout=1000)
    first, second, *_ = Recording.asked
    assert 1000 >= first > second > 0


def test_shutdown_in_a_task() -> None:
    """It is told that it would wait for itself; all pools refuse tasks all the same."""
    first, second = executors["default"], executors["mails"]
    future = first.submit(lambda: executors.shutdown(timeout=5))
    assert isinstance(future.exception(20), RuntimeError)
    for executor in (first, second):
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(print)


def test_a_broken_pool(caplog: pytest.LogCaptureFixture) -> None:
    """All threads that ask next get the same new pool, of which the log tells once."""
    broken = executors["broken"]
    with pytest.raises(concurrent.futures.BrokenExecutor):
        broken.submit(print).result(20)
    all_of_them = threading.Barrier(8)

    def ask(_: int) -> object:
        all_of_them.wait(20)
        return executors["broken"]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        (new,) = set(threads.map(ask, range(8)))
    assert new is executors["broken"] is not broken
    (told,) = [record for record in caplog.records if record.name == "django_executors.registry"]
    assert told.levelname == "WARNING"
    assert told.getMessage().startswith("executor=broken")
    with pytest.raises(concurrent.futures.BrokenExecutor):
        broken.submit(print)


@pytest.mark.servers
@pytest.mark.usefixtures("idle_before_and_after")
def test_a_dead_process(caplog: pytest.LogCaptureFixture) -> None:
    """The next one who asks gets a new pool."""
    broken = executors["reports"]
    with pytest.raises(concurrent.futures.BrokenExecutor):
        broken.submit(tasks.killed).result(60)
    assert executors["reports"].submit(tasks.database).result(60) == tasks.database()
    assert executors["reports"] is not broken
    assert "A child process terminated abruptly" in caplog.text


@pytest.mark.servers
@pytest.mark.usefixtures("idle_before_and_after")
def test_other_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    """When DATABASES changes there is a new pool; what was submitted before runs on those of then."""
    first = executors["reports"]
    before = first.submit(tasks.database)
    default, other = (connections.settings[alias]["NAME"] for alias in ("default", "other"))
    monkeypatch.setitem(connections.settings["default"], "NAME", other)
    assert executors["reports"].submit(tasks.database).result(60) == other
    assert before.result(60) == default
    first.shutdown()
