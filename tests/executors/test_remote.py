"""What travels to another process and back, and what cannot: on processes and on a cluster."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import textwrap
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from django_executors import ProcessPoolExecutor, all_connections
from django_executors.dask import DaskExecutor
from django_executors.lifecycle.naming import task_name
from tests.support import process_tasks as tasks
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import WITH_APP, run_python

pytestmark = pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")

HERE = "tests.support.process_tasks"
LOCK: Any = threading.Lock()


@pytest.fixture(scope="module", params=["process", "dask"])
def executor(request: pytest.FixtureRequest) -> Iterator[ProcessPoolExecutor | DaskExecutor]:
    found: Any
    if request.param == "process":
        found = ProcessPoolExecutor(1)
    else:
        found = DaskExecutor(n_workers=1, threads_per_worker=1)
    with found:
        yield found


CALLS: dict[tuple[Any, ...], str] = {
    (LOCK.acquire,): "PicklingError: the function of task=lock.acquire, a builtin_.* can.* at the top",
    (print, 1, LOCK): "PicklingError: argument 2 of task=builtins.print, a lock, cannot be p",
    (partial(dict, end=LOCK),): "PicklingError: the function of task=builtins.dict, a partial, can",
    (
        print,
        tasks.Required("x", 1),
    ): "UnpicklingError: the task has come .*TypeError: .*code",
    (tasks.a_lock,): f"PicklingError: the result, a lock, of task={HERE}.a_lock cannot be p",
    (tasks.give_what_stays,): f"UnpicklingError: the result of task={HERE}.give_what_stays has",
    (tasks.raise_unpicklable,): f"PicklingError: the error, a Unpicklable: , of task={HERE}.raise_unp",
    (tasks.raise_required,): f"PicklingError: the error, a Required: told 7, of task={HERE}.raise_req",
}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: task_name(call[0]))
def test_what_cannot_travel(call: tuple[Any, ...], executor: Any, postgres: PostgresObserver) -> None:
    """The task's future says what it is, and the next task runs."""
    before = executor.stats()
    error = executor.submit(*call).exception(30)
    assert re.match(CALLS[call], f"{type(error).__name__}: {error}")
    assert executor.submit(tasks.names).result(30) == []
    after = executor.stats()
    assert (after.completed - before.completed, after.failed - before.failed) == (1, 1)
    assert not postgres.left()


def test_a_keyword_that_cannot_travel(executor: Any) -> None:
    with pytest.raises(pickle.PicklingError, match=r"^argument 'end' of task=builtins\.print, a lock,"):
        executor.submit(print, end=LOCK).result(30)


def test_the_traceback_of_an_error_that_cannot_travel(executor: Any) -> None:
    error = executor.submit(tasks.raise_required).exception(30)
    assert 'in raise_required\n    raise Required("told", 7)' in str(error.__cause__)


@pytest.mark.parametrize("task", [tasks.a_queryset, tasks.raise_lazy, tasks.give_what_queries])
def test_what_queries_on_its_way(task: Any, executor: Any, postgres: PostgresObserver) -> None:
    """Nothing is open, here or there, when the future has it."""
    before = executor.stats()
    assert isinstance(executor.submit(task).exception(30), tasks.Lazy | None)
    assert all_connections() == ()
    assert not postgres.left()
    after = executor.stats()
    opened = after.connections_opened - before.connections_opened
    assert opened == after.connections_closed - before.connections_closed
    assert opened or task is tasks.give_what_queries


def test_what_exits_as_it_is_pickled(executor: Any) -> None:
    """That is the task's error, and no worker's end."""
    before = executor.submit(tasks.process_id).result(30)
    assert isinstance(executor.submit(tasks.give_what_exits).exception(30), SystemExit)
    assert executor.submit(tasks.process_id).result(30) == before


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, LookupError])
def test_callbacks_that_raise(
    error: type[BaseException], executor: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They end no thread: the next callback is called, and the next future gets its result."""
    called: list[object] = []

    def raises(_: object) -> None:
        raise error

    future = executor.submit(tasks.wait_for_a_file, str(tmp_path / "go"))
    future.add_done_callback(raises)
    future.add_done_callback(called.append)
    (tmp_path / "go").touch()
    assert executor.submit(abs, -1).result(30) == 1
    assert called == [future]
    assert [record.name for record in caplog.records] == ["concurrent.futures"]


def test_what_the_standard_pool_sends_in_its_own_way() -> None:
    """A pipe's end is not pickled as what it looks like, a number."""
    here, there = multiprocessing.Pipe()
    with ProcessPoolExecutor(1) as pool:
        pool.submit(tasks.send, there, "sent").result(30)
        assert here.recv() == "sent"


def test_a_function_of_the_prompt() -> None:
    """Nobody can import it: its task fails, and the pool goes on."""
    code = """
    from django_executors import ProcessPoolExecutor

    def task():
        return 1

    with ProcessPoolExecutor(1, "forkserver") as pool:
        print(pool.submit(task).exception(30))
        print(pool.submit(abs, -1).result(30))
    """
    said = run_python(textwrap.dedent(code), settings=WITH_APP).stdout
    assert "AttributeError: Can't get attribute 'task' on <module '__main__'" in said
    assert said.splitlines()[-1] == "1"
