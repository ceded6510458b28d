"""What `assert_no_open_connections` says: every connection once, its age, its task, its origin."""

from __future__ import annotations

import re
import threading
import tracemalloc
import weakref
from collections.abc import Iterator

import pytest
from django.db import connections

from django_executors import ThreadPoolExecutor
from django_executors.lifecycle.leaks import Watch

from .leaking import WORKERS, collect, count, leaks, message_of, run
from .observers import PostgresObserver
from .testapp.models import Entry


@leaks
def test_task_that_still_runs() -> None:
    """Where it is a worker of this library's, executor and task are named."""
    here, go_on = threading.Event(), threading.Event()

    def write_report() -> None:
        count()
        here.set()
        go_on.wait(30)

    def body() -> None:
        pool.submit(write_report)
        assert here.wait(10)

    with ThreadPoolExecutor(1, "reports") as pool:
        said = message_of(body)
        go_on.set()
    assert "thread=reports_0 alias=default " in said
    assert f" executor=reports task={__name__}." in said
    assert "write_report age=" in said


@leaks
def test_all_are_named() -> None:
    """The message has a line for each connection."""

    def target() -> None:
        for alias in ("default", "other", "sqlite"):
            Entry.objects.using(alias).count()

    def body() -> None:
        run(target, "first")
        collect()
        run(target, "second")

    first, *lines = message_of(body).splitlines()
    assert first == "6 database connection(s) left open by other threads:"
    assert {tuple(line.split()[:2]) for line in lines} == {
        (f"thread={name}", f"alias={alias}")
        for name in ("first", "second")
        for alias in ("default", "other", "sqlite")
    }


@leaks
def test_age() -> None:
    """The age is that of the connection, in seconds, when the block gave up waiting."""
    found = re.search(r" age=([\d.]+)s", message_of(lambda: run(count), timeout=0.3))
    assert found is not None
    assert 0.3 <= float(found[1]) < 10


@leaks
def test_found_in_the_middle_of_a_collection() -> None:
    """Whenever it looks, what a collection is just taking away is neither missed nor told twice."""
    seen: list[int] = []

    def look(_: object) -> None:
        seen.append(len(watch.leaks()))

    def target() -> None:
        count()
        references.append(weakref.ref(connections["default"], look))

    references: list[object] = []
    watch = Watch()
    for _ in range(WORKERS):
        run(target)
    assert len(watch.leaks()) == WORKERS
    collect()
    assert len(watch.leaks()) == WORKERS
    assert seen == [WORKERS] * WORKERS


@leaks
def test_watching_keeps_nothing_open(postgres: PostgresObserver) -> None:
    """A wrapper that a task threw away, and the collector took, has closed: no record holds it open."""

    def task() -> set[int]:
        count()
        del connections["default"]
        collect()
        return postgres.left()

    assert ThreadPoolExecutor(1).submit(task).result(30) == set()


# Where it was opened.


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start(25)
    yield
    tracemalloc.stop()


THE_LINE = (
    f'File "{count.__code__.co_filename}", line {count.__code__.co_firstlineno + 1}\n'
    "    Entry.objects.count()\n"
)


@leaks
@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize("collected", [False, True])
def test_the_line_that_opened_it(collected: bool) -> None:
    """While `tracemalloc` is tracing, the message has the line of the test that opened it."""

    def body() -> None:
        run(count)
        if collected:
            collect()

    said = message_of(body)
    assert "  opened at (most recent call last):\n" in said
    assert THE_LINE in said


@leaks
def test_without_tracing() -> None:
    """Without, it says nothing of that."""
    assert not tracemalloc.is_tracing()
    said = message_of(lambda: run(count))
    assert "opened at" not in said
    assert "File" not in said
