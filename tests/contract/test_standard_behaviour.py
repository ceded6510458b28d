"""In all else it is the standard pool."""

from __future__ import annotations

import concurrent.futures
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest

from django_executors import ThreadPoolExecutor, all_connections
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python

Standard = concurrent.futures.ThreadPoolExecutor
BOTH = pytest.mark.parametrize("cls", [Standard, ThreadPoolExecutor], ids=["standard", "ours"])


def double(number: int) -> int:
    return 2 * number + Entry.objects.count()


def test_is_the_standard_class() -> None:
    """`isinstance` and `issubclass` take it for the standard class; its futures are standard ones."""
    assert issubclass(ThreadPoolExecutor, Standard)
    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool, concurrent.futures.Executor)
        assert isinstance(pool.submit(int), concurrent.futures.Future)


def test_signatures() -> None:
    """Every parameter of the standard class stands where it stands there."""
    for name in ("__init__", "submit", "map", "shutdown"):
        standard = inspect.signature(getattr(Standard, name)).parameters
        ours = inspect.signature(getattr(ThreadPoolExecutor, name)).parameters
        for (kind, parameter), (our_kind, our_parameter) in zip(
            standard.items(), ours.items(), strict=False
        ):
            if our_parameter.kind is inspect.Parameter.VAR_KEYWORD:
                break
            assert (our_kind, our_parameter.kind) == (kind, parameter.kind)


def test_wait_and_as_completed() -> None:
    """`wait` and `as_completed` see the futures resolve."""
    go_on = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        late, early = pool.submit(go_on.wait, 10), pool.submit(double, 1)
        done, not_done = concurrent.futures.wait(
            [late, early], 10, return_when=concurrent.futures.FIRST_COMPLETED
        )
        assert (done, not_done) == ({early}, {late})
        completed = concurrent.futures.as_completed([late, early], 10)
        assert next(completed) is early
        go_on.set()
        assert next(completed) is late
        assert concurrent.futures.wait([late, early], 10) == ({late, early}, set())


def test_map() -> None:
    """`map` gives results in the order of the arguments, also of several iterables."""
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(double, range(50), timeout=30)) == [2 * n for n in range(50)]
        assert list(pool.map(pow, [2, 3, 4], [5, 2, 3])) == [32, 9, 64]
        assert list(pool.map(double, range(5), chunksize=2)) == [0, 2, 4, 6, 8]


def test_map_raises_where_the_task_did(postgres: PostgresObserver) -> None:
    """`map` raises a task's exception in its place, and nothing is left of the tasks."""

    def task(number: int) -> float:
        Entry.objects.count()
        return 1 / number

    with ThreadPoolExecutor(2) as pool:
        results = pool.map(task, [1, 2, 0, 4])
        assert [next(results), next(results)] == [1.0, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(results)
    assert all_connections() == ()
    assert not postgres.left()


def test_map_timeout() -> None:
    """`map` raises TimeoutError when a result does not come in time."""
    go_on = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda wait: go_on.wait(10) if wait else False, [False, True], timeout=0.2)
        assert next(results) is False
        with pytest.raises(TimeoutError):
            next(results)
        go_on.set()


def test_with_waits(postgres: PostgresObserver) -> None:
    """The end of a `with` block waits for every task, and leaves no worker."""
    with ThreadPoolExecutor(2, "of the block") as pool:
        futures = [pool.submit(double, n) for n in range(20)]
    assert all(future.done() for future in futures)
    assert not [t for t in threading.enumerate() if t.name.startswith("of the block")]
    assert not postgres.left()


def test_shutdown_cancels_futures(postgres: PostgresObserver) -> None:
    """`shutdown(cancel_futures=True)` cancels what has not begun and lets what runs end."""
    started, go_on = threading.Event(), threading.Event()

    def task() -> int:
        count = Entry.objects.count()
        started.set()
        assert go_on.wait(10)
        return count

    pool = ThreadPoolExecutor(1)
    running, *queued = [pool.submit(task), *(pool.submit(double, n) for n in range(3))]
    assert started.wait(10)
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    go_on.set()
    assert running.result(10) == 0
    assert not postgres.left()


def of(call: Callable[[type[Standard]], object], cls: type[Standard]) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:
        call(cls)
    return caught.type, str(caught.value)


def submit_after_shutdown(cls: type[Standard]) -> None:
    pool = cls(1)
    pool.shutdown()
    pool.submit(int)


def broken(cls: type[Standard]) -> None:
    pool = cls(1, initializer=lambda: 1 / 0)
    pool.submit(int).result(10)


def unfit_initargs(cls: type[Standard]) -> None:
    pool = cls(1, initializer=print, initargs=5)  # type: ignore[call-overload]
    pool.submit(int).result(10)


MISTAKES: dict[str, Callable[[type[Any]], object]] = {
    "no workers": lambda cls: cls(0),
    "workers below zero": lambda cls: cls(-1),
    "initializer is no function": lambda cls: cls(initializer=5),
    "initializer is false": lambda cls: cls(initializer=0),
    "initargs is no sequence": unfit_initargs,
    "submit after shutdown": submit_after_shutdown,
    "initializer raises": broken,
    "map without arguments": lambda cls: list(cls(1).map()),
    "map of a number": lambda cls: list(cls(1).map(int, 5)),
    "task is no function": lambda cls: cls(1).submit(5).result(10),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    """A mistake raises what the standard class raises, in the same words."""
    assert of(MISTAKES[mistake], ThreadPoolExecutor) == of(MISTAKES[mistake], Standard)


@pytest.mark.parametrize("arguments", [{}, {"fn": int}], ids=["nothing", "fn by name"])
def test_submit_without_a_function(arguments: dict[str, Any]) -> None:
    """`submit` needs its function by position: a TypeError says so."""
    for cls in (Standard, ThreadPoolExecutor):
        kind, message = of(lambda cls: cls(1).submit(**arguments), cls)
        assert kind is TypeError
        assert message.endswith("submit() missing 1 required positional argument: 'fn'")


def test_unknown_parameter() -> None:
    """The constructor refuses what it does not know, by name."""
    for cls in (Standard, ThreadPoolExecutor):
        kind, message = of(lambda cls: cls(1, workers=3), cls)
        assert kind is TypeError
        assert message.endswith("got an unexpected keyword argument 'workers'")


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
        assert pool.submit(double, 4).result(10) == 8
        assert list(pool.map(double, [1, 2])) == [2, 4]
    assert seen == ["traced_0"] * 3


def test_import_and_use_without_settings() -> None:
    """It can be imported, and run tasks that use no database, without any settings."""
    finished = run_python(
        """
        from django_executors import ThreadPoolExecutor, all_connections, connection_scope
        from django.conf import settings
        assert not settings.configured
        with ThreadPoolExecutor(2) as pool, connection_scope():
            print(list(pool.map(abs, [-1, -2])), all_connections())
        assert not settings.configured
        """,
        settings=None,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "[1, 2] ()\n", "")


def test_opens_nothing_of_its_own(postgres: PostgresObserver) -> None:
    """A pool, its tasks and their ends open no connection and run no query of their own."""
    finished = run_python(
        """
        from django.db import connection
        from django.db.backends.signals import connection_created
        from django_executors import ThreadPoolExecutor

        opened = []
        connection_created.connect(lambda connection, **_: opened.append(connection.alias), weak=False)

        def query():
            connection.force_debug_cursor = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            return connection.queries_log

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(abs, [-1, -2])) == [1, 2]
            assert opened == []
            log = pool.submit(query).result(10)
        assert opened == ["default"]
        print([entry["sql"] for entry in log])
        """,
        settings="tests.settings_with_app",
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == "['SELECT 1']\n"


def test_first_names_from_several_threads() -> None:
    """Threads that are the first to use the package may do so at once."""
    code = """
        import concurrent.futures, threading
        import django_executors

        both = threading.Barrier(4)

        def first(name):
            both.wait(20)
            return getattr(django_executors, name)

        names = ["connection_scope", "ThreadPoolExecutor", "executors", "all_connections"]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            print(len(set(pool.map(first, names))))
        """
    for _ in range(5):
        finished = run_python(code, settings="tests.settings")
        assert (finished.stdout, finished.stderr) == ("4\n", "")
