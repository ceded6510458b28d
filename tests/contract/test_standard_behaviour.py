"""Otherwise it behaves exactly like the standard pool."""

from __future__ import annotations

import concurrent.futures
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.db.backends.signals import connection_created

from django_executors import ThreadPoolExecutor
from tests.projects.testapp.models import Entry
from tests.support.subprocesses import run_python

Standard = concurrent.futures.ThreadPoolExecutor


def double(number: int) -> int:
    return 2 * number + Entry.objects.count()


def test_is_the_standard_class() -> None:
    """A subclass, with standard futures, and each parameter where the standard class has it."""
    assert issubclass(ThreadPoolExecutor, Standard)
    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(int), concurrent.futures.Future)
    for name in ("__init__", "submit", "map", "shutdown"):
        standard = inspect.signature(getattr(Standard, name)).parameters.values()
        ours = inspect.signature(getattr(ThreadPoolExecutor, name)).parameters.values()
        for theirs, our in zip(standard, ours, strict=False):
            if our.kind is inspect.Parameter.VAR_KEYWORD:
                break
            assert (our.name, our.kind) == (theirs.name, theirs.kind)


def of(call: Callable[[type[Any]], object], cls: type[Standard]) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:
        call(cls)
    return caught.type, str(caught.value)


def submit_after_shutdown(cls: type[Standard]) -> None:
    pool = cls(1)
    pool.shutdown()
    pool.submit(int)


def begins_with(initializer: Any, initargs: Any) -> Callable[[type[Standard]], None]:
    def submit(cls: type[Standard]) -> None:
        pool = cls(1, "", initializer, initargs)  # referred to until the task has ended
        pool.submit(int).result(20)

    return submit


MISTAKES: dict[str, Callable[[type[Any]], object]] = {
    "no workers": lambda cls: cls(0),
    "initializer is no function": lambda cls: cls(initializer=5),
    "initializer raises": begins_with(lambda: 1 / 0, ()),
    "initargs is no sequence": begins_with(print, 5),
    "submit after shutdown": submit_after_shutdown,
    "map of a number": lambda cls: list(cls(1).map(int, 5)),
    "task is no function": lambda cls: cls(1).submit(5).result(20),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    """A mistake raises what the standard class raises, in the same words."""
    assert of(MISTAKES[mistake], ThreadPoolExecutor) == of(MISTAKES[mistake], Standard)


def test_arguments_that_do_not_fit() -> None:
    """A TypeError says so, as the standard class's does but for the name of the method."""
    for call, message in (
        (lambda cls: cls(1).submit(), "submit() missing 1 required positional argument: 'fn'"),
        (lambda cls: cls(1).submit(fn=int), "submit() missing 1 required positional argument: 'fn'"),
        (lambda cls: cls(1, workers=3), "got an unexpected keyword argument 'workers'"),
    ):
        for cls in (Standard, ThreadPoolExecutor):
            kind, said = of(call, cls)
            assert kind is TypeError
            assert said.endswith(message)


def test_patched_submit_sees_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Sentry and OpenTelemetry patch, the standard class's `submit`, sees and wraps every task."""
    original = Standard.submit
    seen: list[str] = []

    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        def traced(*args: Any, **kwargs: Any) -> Any:
            seen.append(threading.current_thread().name)
            return fn(*args, **kwargs)

        return original(self, traced, *args, **kwargs)

    monkeypatch.setattr(Standard, "submit", submit)
    with ThreadPoolExecutor(1, "traced") as pool:
        assert pool.submit(double, 4).result(20) == 8
        assert list(pool.map(double, [1, 2])) == [2, 4]
    assert seen == ["traced_0"] * 3


def test_opens_nothing_of_its_own() -> None:
    """A pool, its tasks and their ends open no connection and run no query of their own."""
    opened: list[str] = []

    def note(connection: Any, **kwargs: Any) -> None:
        opened.append(connection.alias)

    def query() -> list[Any]:
        connection.force_debug_cursor = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return [entry["sql"] for entry in connection.queries_log]

    connection_created.connect(note)
    try:
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(abs, [-1, -2])) == [1, 2]
            assert opened == []
            assert pool.submit(query).result(20) == ["SELECT 1"]
    finally:
        connection_created.disconnect(note)
    assert opened == ["default"]


def test_without_settings() -> None:
    """Several threads may be the first to import it, at once, and run tasks without any settings."""
    finished = run_python(
        """
        import concurrent.futures, threading
        import django_executors
        from django.conf import settings

        all_four = threading.Barrier(4)

        def first(name):
            all_four.wait(20)
            return getattr(django_executors, name)

        names = ["connection_scope", "ThreadPoolExecutor", "executors", "all_connections"]
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            scope, Pool, _, all_connections = threads.map(first, names)
        with Pool(2) as pool, scope():
            print(list(pool.map(abs, [-1, -2])), all_connections(), settings.configured)
        """,
        settings=None,
    )
    assert (finished.stdout, finished.stderr) == ("[1, 2] () False\n", "")
