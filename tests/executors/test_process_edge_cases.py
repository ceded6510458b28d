"""Worker processes when something is wrong: what cannot be pickled, settings, the end of the pool."""

from __future__ import annotations

import contextlib
import contextvars
import multiprocessing
import os
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings

from django_executors import ProcessPoolExecutor
from tests.support import process_tasks as tasks
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.usefixtures("idle_before_and_after"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


def test_initializer_that_is_not_picklable() -> None:
    """`submit` says so, and there is no task."""
    for initializer in ((lambda: None, ()), (tasks.warm_up, (lambda: None,))):
        pool = ProcessPoolExecutor(1, None, *initializer)
        with pytest.raises(pickle.PicklingError, match=r"^initializer or initargs cannot be pickled: "):
            pool.submit(tasks.names)
        assert pool.stats().submitted == 0
        pool.shutdown()


def test_variables() -> None:
    """A task has none of its submitter's, of another task's, nor of where its process started."""

    def submitted() -> Any:
        tasks.request_id.set(17)
        return pool.submit(tasks.variable)

    with ProcessPoolExecutor(1, "fork") as pool:
        futures = [contextvars.copy_context().run(submitted)]
        pool.submit(tasks.change_surroundings).result(60)
        futures.append(pool.submit(tasks.variable))
        assert [future.result(60) for future in futures] == ["unset", "unset"]


def test_sqlite_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, since a worker process would see another, empty one."""
    for name in (":memory:", "file:memorydb_default?mode=memory&cache=shared"):
        monkeypatch.setitem(connections.settings["sqlite"], "NAME", name)
        pool = ProcessPoolExecutor(1)
        with pytest.raises(ImproperlyConfigured, match=r"'sqlite'.*in memory"):
            pool.submit(tasks.names)
        assert pool.stats().submitted == 0


@pytest.mark.parametrize("conn_max_idle", [0, 5])
def test_other_databases(
    conn_max_idle: float, monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """Each task runs on those that its submitter has, whatever the worker keeps of others."""
    with ProcessPoolExecutor(1, conn_max_idle=conn_max_idle) as pool:
        for _ in range(2):
            assert pool.submit(tasks.database).result(60) == "app"
            with monkeypatch.context() as context:
                context.setitem(connections.settings["default"], "NAME", "other")
                assert pool.submit(tasks.database).result(60) == "other"
        assert pool.submit(tasks.database).result(60) == "app"
        assert not postgres.left("other")


def test_other_databases_with_a_pool_of_django(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool of the old ones is closed, and nothing of it is used."""
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(tasks.database_of_alias, "pooled").result(60) == "pooled"
        monkeypatch.setitem(connections.settings["pooled"], "NAME", "other")
        assert pool.submit(tasks.database_of_alias, "pooled").result(60) == "other"


def test_an_initializer_that_forks() -> None:
    """The child is none of the pool's workers."""
    with ProcessPoolExecutor(1, initializer=os.fork) as pool:
        futures = [pool.submit(abs, -number) for number in range(8)]
        assert [future.result(60) for future in futures] == list(range(8))


def test_databases_that_are_of_no_use_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is started meanwhile, in the place of another one, is as that was."""
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as pool:
        futures = [pool.submit(tasks.process_id) for _ in range(3)]
        monkeypatch.setitem(connections.settings["sqlite"], "NAME", ":memory:")
        assert len({future.result(60) for future in futures}) == 3


def test_chunks_can_be_given_up() -> None:
    """As without chunks."""
    with (
        ProcessPoolExecutor(1) as pool,
        contextlib.closing(pool.map(abs, [-1] * 9, chunksize=2)) as found,
    ):
        assert next(found) == 1
    for wrong in (2.5, None):
        with pytest.raises(TypeError, match=f"chunksize must be an int.*, not {wrong}"):
            pool.map(abs, [1], chunksize=wrong)  # type: ignore[arg-type]


def test_a_pool_that_nobody_refers_to() -> None:
    """All of its tasks run, also when its processes are replaced; then it ends, with its processes."""

    def submit() -> tuple[Any, list[Any]]:
        pool = ProcessPoolExecutor(1, max_tasks_per_child=2)
        return weakref.ref(pool), [pool.submit(tasks.process_id) for _ in range(5)]

    before = set(multiprocessing.active_children())
    pool, futures = submit()
    assert len({future.result(60) for future in futures}) == 3
    assert wait_until(
        lambda: pool() is None and set(multiprocessing.active_children()) <= before, within=30
    )


def test_in_a_daemonic_process() -> None:
    """The error names what to do; nothing was submitted. The same of a cluster."""
    code = """
    import multiprocessing
    from django_executors import ProcessPoolExecutor
    from django_executors.dask import DaskExecutor

    def work():
        for executor in (ProcessPoolExecutor(), DaskExecutor()):
            try:
                executor.submit(print)
            except RuntimeError as error:
                print(error, executor.stats().pending)

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    process.join()
    """
    said = run_python(code, settings="tests.settings", warnings="ignore").stdout
    assert said.count("this process is daemonic") == 2
    assert said.count("run_inline, or --parallel=1; elsewhere a ThreadPoolExecutor 0\n") == 2


def test_overridden_settings() -> None:
    """They are this process's; a worker process has those of the module."""
    with override_settings(USE_TZ=False), ProcessPoolExecutor(1) as pool:
        assert pool.submit(tasks.settings_module).result(60) == "tests.settings tests.settings"


SETTINGS = """
from django.conf import settings
settings.configure(DATABASES={})
import django
django.setup()
from django_executors import ProcessPoolExecutor
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import ROOT
for method in ("spawn", "forkserver", "fork"):
    with ProcessPoolExecutor(1, method) as pool:
        try:
            print(pool.submit(divmod, 7, 2).result(30))
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
"""


def test_settings_of_no_module() -> None:
    """A worker process cannot have them, but by a fork, and each task says so."""
    ended = run_python(SETTINGS, settings=None, warnings="ignore")
    refused = "ImproperlyConfigured: a worker process needs the settings, and its parent's are from"
    assert ended.stdout.splitlines()[2] == "(3, 1)", ended.stderr
    assert all(said.startswith(refused) for said in ended.stdout.splitlines()[:2]), ended.stdout


def test_settings_that_nobody_has_read() -> None:
    """They are set up in the worker, if the environment names them."""
    code = """
    from django_executors import ProcessPoolExecutor
    with ProcessPoolExecutor(1) as pool:
        print(pool.submit(eval, "__import__('django.apps').apps.apps.ready").result(30))
    """
    ended = run_python(code, settings=None, warnings="ignore", DJANGO_SETTINGS_MODULE="tests.settings")
    assert ended.stdout == "True\n", ended.stderr


@pytest.mark.parametrize("max_tasks_per_child", [None, 1])
def test_pools_of_worker_processes(max_tasks_per_child: int | None, tmp_path: Path) -> None:
    """What a task submits to an executor of its process runs before that ends, and it does end."""
    with ProcessPoolExecutor(1, max_tasks_per_child=max_tasks_per_child) as pool:
        for _ in range(2):
            pool.submit(tasks.submit_to_a_pool_of_its_own, str(tmp_path / "calls")).result(60)
    assert (tmp_path / "calls").read_text() == "called\n" * 2


def test_without_django() -> None:
    """Without settings it is the standard pool."""
    code = """
    from django_executors import ProcessPoolExecutor
    for method in ("fork", "forkserver", "spawn"):
        with ProcessPoolExecutor(1, method) as pool:
            print(pool.submit(divmod, 7, 2).result(30))
    """
    ended = run_python(code, settings=None, warnings="ignore")
    assert (ended.stdout, ended.stderr) == ("(3, 1)\n" * 3, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mp_context": "thread"}, "^mp_context must be a context, or one of .*spawn.*not 'thread'"),
        ({"max_workers": 0}, "max_workers"),
        ({"max_workers": "4"}, "^max_workers must be an int or None, not '4'"),
        ({"initializer": 5}, "initializer must be a callable"),
        ({"max_tasks_per_child": 1, "mp_context": "fork"}, "max_tasks_per_child"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    """They are refused by name."""
    with pytest.raises((TypeError, ValueError), match=message):
        ProcessPoolExecutor(**arguments)
