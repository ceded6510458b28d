"""Worker processes when something is wrong: what cannot be pickled, settings, the end of the pool."""

from __future__ import annotations

import contextvars
import multiprocessing
import pickle
import threading
import weakref
from decimal import Decimal, localcontext
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings

from django_executors import DeadlockError, ExecutorError, ProcessPoolExecutor
from tests.support import process_tasks
from tests.support.forks import fork
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("idle_before_and_after")


@pytest.mark.parametrize(
    "initializer",
    [(lambda: None, ()), (process_tasks.warm_up, (lambda: None,))],
    ids=["initializer", "initargs"],
)
def test_initializer_that_is_not_picklable(initializer: tuple[Any, Any]) -> None:
    pool = ProcessPoolExecutor(1, None, *initializer)
    with pytest.raises(pickle.PicklingError, match=r"^initializer or initargs cannot be pickled: "):
        pool.submit(process_tasks.names)
    assert (pool.stats().cancelled, pool.stats().pending) == (1, 0)
    pool.shutdown()


def test_what_a_process_has_of_the_context() -> None:
    """What can be pickled; what cannot stays behind, and no task has what another one set."""

    def submitted() -> Any:
        return pool.submit(process_tasks.context)

    def with_values() -> list[Any]:
        process_tasks.request_id.set(17)
        with localcontext(prec=5):
            found = [submitted()]
        process_tasks.request_id.set(threading.Lock())
        return [*found, submitted()]

    third = Decimal(1) / Decimal(3)
    with ProcessPoolExecutor(1, None, process_tasks.warm_up, ("once",)) as pool:
        futures = [submitted(), *contextvars.copy_context().run(with_values)]
        pool.submit(process_tasks.set_context).result(30)
        futures.append(submitted())
        warm = "once, 0 entries"
        assert [future.result(30) for future in futures] == [
            ("unset", warm, third),
            (17, warm, Decimal("0.33333")),
            ("unset", warm, third),
            ("unset", warm, third),
        ]


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_the_context_in_which_a_process_starts(method: str) -> None:
    """It is the one task's: no other has anything of it."""

    def as_somebody() -> Any:
        process_tasks.change_surroundings()
        return pool.submit(process_tasks.surroundings).result(30)

    mine = process_tasks.surroundings()
    with ProcessPoolExecutor(1, method) as pool:
        somebodys = contextvars.copy_context().run(as_somebody)
        assert somebodys == ("fr", "America/Lima", "of a task")
        assert pool.submit(process_tasks.surroundings).result(30) == mine != somebodys


@pytest.mark.parametrize(
    "name", [":memory:", "file::memory:?cache=shared", "file:memorydb_default?mode=memory&cache=shared"]
)
def test_sqlite_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, since a worker process would see another, empty one."""
    monkeypatch.setitem(connections.settings["sqlite"], "NAME", name)
    with (
        ProcessPoolExecutor(1) as pool,
        pytest.raises(ImproperlyConfigured, match=r"'sqlite'.*in memory"),
    ):
        pool.submit(process_tasks.names)
    assert pool.stats().submitted == 0


def test_other_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task runs on those that its submitter has, or is refused."""
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(process_tasks.database).result(30) == process_tasks.database()
        with monkeypatch.context() as changed:
            changed.setitem(connections.settings["default"], "NAME", "another")
            with pytest.raises(ImproperlyConfigured, match=r"other databases .* \['default'\]. Make"):
                pool.submit(process_tasks.database)
        with monkeypatch.context() as changed:
            changed.setitem(connections.settings["default"]["OPTIONS"], "application_name", "another")
            with pytest.raises(ImproperlyConfigured, match="other databases"):
                pool.submit(process_tasks.database)
        assert pool.submit(process_tasks.database).result(30) == process_tasks.database()
        assert pool.stats().submitted == 2


def test_a_pool_that_nobody_refers_to() -> None:
    """All of its tasks run, also when its processes are replaced; then it ends, with its processes."""

    def submit() -> tuple[Any, list[Any]]:
        pool = ProcessPoolExecutor(1, max_tasks_per_child=2)
        return weakref.ref(pool), [pool.submit(process_tasks.process_id) for _ in range(5)]

    pool, futures = submit()
    assert len({future.result(30) for future in futures}) == 3
    assert wait_until(lambda: pool() is None and not multiprocessing.active_children())


@pytest.mark.parametrize("executor", ["ProcessPoolExecutor()", "DaskExecutor()"])
def test_in_a_daemonic_process(executor: str) -> None:
    """The error names what to do; nothing was submitted."""
    code = f"""
    import multiprocessing
    from django_executors import ProcessPoolExecutor
    from django_executors.dask import DaskExecutor

    def work():
        executor = {executor}
        try:
            executor.submit(print)
        except RuntimeError as error:
            print(error, executor.stats().pending)

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    process.join()
    """
    said = run_python(code, settings="tests.settings", warnings="ignore").stdout
    assert "this process is daemonic" in said
    assert said.endswith("run_inline, or --parallel=1; elsewhere a ThreadPoolExecutor 0\n")


def test_overridden_settings() -> None:
    """They are this process's; a worker process has those of the module."""
    with override_settings(USE_TZ=False), ProcessPoolExecutor(1) as pool:
        assert pool.submit(process_tasks.settings_module).result(30) == "tests.settings tests.settings"


SETTINGS = """
from django.conf import settings
settings.configure(DATABASES={{}})
import django
django.setup()
from django_executors import ProcessPoolExecutor
from tests.support.subprocesses import ROOT
with ProcessPoolExecutor(1, {method!r}) as pool:
    try:
        print(pool.submit(divmod, 7, 2).result(30))
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("method", "printed"),
    [("spawn", "BrokenProcessPool"), ("forkserver", "BrokenProcessPool"), ("fork", "(3, 1)")],
)
def test_settings_of_no_module(method: str, printed: str) -> None:
    """A worker process cannot have them, but by a fork, and says so."""
    ended = run_python(SETTINGS.format(method=method), settings=None, warnings="ignore")
    assert ended.stdout == f"{printed}\n", ended.stderr
    assert ("settings.configure()" in ended.stderr) is (method != "fork")


def test_without_django() -> None:
    """Without settings it is the standard pool."""
    code = """
    from django_executors import ProcessPoolExecutor
    with ProcessPoolExecutor(1) as pool:
        print(pool.submit(divmod, 7, 2).result(30))
    """
    ended = run_python(code, settings=None)
    assert (ended.stdout, ended.stderr) == ("(3, 1)\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mp_context": "thread"}, "^mp_context must be a context, or one of .*spawn.*not 'thread'"),
        ({"max_workers": 0}, "max_workers"),
        ({"max_workers": "4"}, "^max_workers must be an int or None, not '4'"),
        ({"max_tasks_per_child": 0}, "max_tasks_per_child"),
        ({"max_tasks_per_child": 1, "mp_context": "fork"}, "max_tasks_per_child"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ProcessPoolExecutor(**arguments)


def test_a_callback_that_waits() -> None:
    """It would wait for its own thread: that is an error, with the task's name."""
    errors: list[BaseException] = []

    def wait(_: object) -> None:
        try:
            pool.submit(process_tasks.names).result()
        except DeadlockError as error:
            errors.append(error)

    with ProcessPoolExecutor(1) as pool:
        held = pool.submit(process_tasks.names)
        held.add_done_callback(wait)
        held.result(30)
    if errors:  # or the task had ended before the callback was added, which then ran in this thread
        assert "task=tests.support.process_tasks.names" in str(errors[0])


def test_deadline(postgres: PostgresObserver, caplog: pytest.LogCaptureFixture) -> None:
    """At the end of `shutdown(timeout=...)` what waits is cancelled, and all that is left is named."""
    postgres.execute("SELECT pg_advisory_lock(9)")
    try:
        pool = ProcessPoolExecutor(1)
        futures = [pool.submit(process_tasks.wait_for_unlock, 9) for _ in range(6)]
        pool.shutdown(timeout=0)
        cancelled = [future for future in futures if future.cancelled()]
        assert len(cancelled) >= 3
        (said,) = [record.getMessage() for record in caplog.records]
        assert f"not_run={len(cancelled)} (tests.support.process_tasks.wait_for_unlock" in said
        assert f"running={6 - len(cancelled)} (tests.support.process_tasks.wait_for_unlock" in said
    finally:
        postgres.execute("SELECT pg_advisory_unlock(9)")
    for future in futures:
        assert future.cancelled() or future.result(30) is True


def test_after_a_fork(postgres: PostgresObserver) -> None:
    """A pool that was used before a fork is the child's own there; a task of the parent's is not."""
    pool = ProcessPoolExecutor(1)
    postgres.execute("SELECT pg_advisory_lock(10)")
    held = pool.submit(process_tasks.wait_for_unlock, 10)

    def child() -> None:
        with pytest.raises(ExecutorError, match="belongs to the parent"):
            held.result(30)
        assert pool.submit(divmod, 7, 2).result(30) == (3, 1)
        assert pool.stats().submitted == 1
        pool.shutdown()

    assert fork(child) == (0, "")
    postgres.execute("SELECT pg_advisory_unlock(10)")
    assert held.result(30) is True
    assert pool.submit(divmod, 7, 2).result(30) == (3, 1)
    pool.shutdown()
