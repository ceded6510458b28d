"""What travels to another process and back, and what cannot: on processes and on a cluster."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from pickle import PicklingError
from typing import Any

import pytest
from django.db import connection
from django.utils.functional import SimpleLazyObject

from django_executors import (
    DeadlockError,
    ExecutorError,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    all_connections,
)
from tests.projects.testapp.models import Entry
from tests.support import process_tasks as tasks
from tests.support.forks import fork
from tests.support.kinds import made_once, make
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("idle_before_and_after")

HERE = "tests.support.process_tasks"
LOCK: Any = threading.Lock()


@pytest.fixture(scope="module")
def made() -> Iterator[Callable[[str], Any]]:
    with made_once() as find:
        yield find


@pytest.fixture(params=["process", "dask"])
def executor(request: pytest.FixtureRequest, made: Callable[[str], Any]) -> Any:
    return made(request.param)


CALLS: list[tuple[partial[Any], str]] = [
    (partial(LOCK.acquire), "PicklingError: the function of task=lock.acquire, a builtin_.* at the top"),
    (partial(print, 1, LOCK), "PicklingError: argument 2 of task=builtins.print, a lock, cannot be p"),
    (partial(print, end=LOCK), "PicklingError: argument 'end' of task=builtins.print, a lock,"),
    (partial(print, tasks.Stays()), "UnpicklingError: the task has come .*LookupError: it stays where"),
    (partial(tasks.a_lock), f"PicklingError: the result, a lock, of task={HERE}.a_lock cannot be p"),
    (partial(tasks.give_what_stays), f"UnpicklingError: the result of task={HERE}.give_what_stays has"),
    (partial(tasks.raise_unpicklable), f"PicklingError: the error, a Unpicklable: , of task={HERE}.ra"),
    (partial(tasks.raise_required), f"PicklingError: the error, a Required: told 7, of task={HERE}.ra"),
]


def test_what_cannot_travel(executor: Any, postgres: PostgresObserver) -> None:
    """The task's future says what it is, and the next task runs."""
    for call, said in CALLS:
        before = executor.stats()
        error = executor.submit(call.func, *call.args, **call.keywords).exception(60)
        assert re.match(said, f"{type(error).__name__}: {error}")
        assert executor.submit(tasks.names).result(60) == []
        after = executor.stats()
        assert (after.completed - before.completed, after.failed - before.failed) == (1, 1)
    error = executor.submit(partial(dict, end=LOCK)).exception(60)
    assert "the function of task=builtins.dict, a partial, can" in str(error)
    assert not postgres.left()


def test_errors_that_are_hard_to_send(executor: Any) -> None:
    """Whatever they do as they are pickled or told, the worker goes on, and their traceback comes."""
    for task in (tasks.raise_frozen, tasks.raise_untold):
        found = executor.submit(task).exception(60)
        assert isinstance(found, PicklingError)
        assert f"in {task.__name__}" in str(found.__cause__)


def test_a_shutdown_in_a_callback(executor: Any, request: pytest.FixtureRequest) -> None:
    """It refuses tasks, and says that it would wait for itself, while another thread waits."""
    own = make(request.node.callspec.params["executor"])
    errors: list[BaseException] = []

    def end(_: object) -> None:
        try:
            own.shutdown()
        except RuntimeError as error:
            errors.append(error)

    future = own.submit(tasks.doubled, 2)
    future.add_done_callback(end)
    own.shutdown()
    assert future.result(0) == 4
    assert len(errors) == 1 or not future.exception()


def test_a_report_that_is_there_already(postgres: PostgresObserver) -> None:
    """It is loaded in a thread in which the ORM works, also where an event loop submits."""
    with ProcessPoolExecutor(1) as pool, ThreadPoolExecutor(1) as threads:
        pool.submit(int).result(60)
        holds = threading.Event()

        def hold() -> None:
            with pool._books.lock:
                holds.set()
                assert wait_until(lambda: bool(pool._pending_work_items), within=30)
                assert wait_until(lambda: not pool._pending_work_items, within=30)

        async def submit() -> Any:
            threads.submit(hold)
            assert holds.wait(30)
            return await asyncio.wait_for(asyncio.wrap_future(pool.submit(tasks.give_what_queries)), 60)

        assert isinstance(asyncio.run(submit()), tasks.Queries)
        assert not postgres.left()


def test_the_remote_traceback(executor: Any) -> None:
    """An error has it as its cause, also one that cannot travel itself."""
    for task, last in (
        (tasks.fail, 'in fail\n    raise LookupError("of the initializer")'),
        (tasks.raise_required, 'in raise_required\n    raise Required("told", 7)'),
    ):
        assert last in str(executor.submit(task).exception(60).__cause__)


@pytest.mark.parametrize("task", [tasks.a_queryset, tasks.raise_lazy, tasks.give_what_queries])
def test_what_queries_on_its_way(task: Any, executor: Any, postgres: PostgresObserver) -> None:
    """Nothing is open, here or there, when the future has it."""
    before = executor.stats()
    assert isinstance(executor.submit(task).exception(60), tasks.Lazy | None)
    assert all_connections() == ()
    assert not postgres.left()
    after = executor.stats()
    opened = after.connections_opened - before.connections_opened
    assert opened == after.connections_closed - before.connections_closed
    assert opened or task is tasks.give_what_queries


def test_endings_that_end_threads(executor: Any) -> None:
    """They end the task, and no worker, also as a result is pickled."""
    before = executor.submit(tasks.process_id).result(60)
    for error in (SystemExit(3), KeyboardInterrupt(), GeneratorExit()):
        assert isinstance(executor.submit(tasks.raise_in_atomic, error).exception(60), type(error))
    assert isinstance(executor.submit(tasks.give_what_exits).exception(60), SystemExit)
    assert executor.submit(tasks.process_id).result(60) == before


def test_callbacks_that_raise(executor: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They end no thread: the next future gets its result."""
    called: list[object] = []

    def raises(error: type[BaseException], _: object) -> None:
        raise error

    future = executor.submit(tasks.wait_for_a_file, str(tmp_path / "go"))
    future.add_done_callback(partial(raises, LookupError))
    future.add_done_callback(called.append)
    future.add_done_callback(partial(raises, SystemExit))
    (tmp_path / "go").touch()
    assert executor.submit(abs, -1).result(60) == 1
    assert called == [future]
    told = [record for record in caplog.records if record.name == "concurrent.futures"]
    assert len(told) == 2  # Dask's own loggers may have something to say


def test_arguments_that_query(executor: Any, postgres: PostgresObserver) -> None:
    """They do so on the submitter's connection, in its thread, and so does no other thread of ours."""
    executor.submit(int).result(60)
    assert executor.submit(len, Entry.objects.all()).result(60) == 0
    lazy = SimpleLazyObject(Entry.objects.count)
    assert executor.submit(str, lazy).result(60) == "0"
    own = tasks.server_pid("default")
    assert wait_until(postgres.backends, lambda pids: pids == {own}) == {own}
    connection.close()
    assert all_connections() == ()


def test_a_callback_that_waits(executor: Any, tmp_path: Path) -> None:
    """It would wait for its own thread: that is an error, with the task's name."""
    errors: list[BaseException] = []
    over = threading.Event()

    def wait(_: object) -> None:
        try:
            executor.submit(int).result()
        except DeadlockError as error:
            errors.append(error)
        over.set()

    held = executor.submit(tasks.wait_for_a_file, str(tmp_path / "go"))
    held.add_done_callback(wait)
    (tmp_path / "go").touch()
    assert over.wait(60)
    assert "task=builtins.int" in str(errors)


def test_after_a_fork(executor: Any, tmp_path: Path) -> None:
    """An executor is the child's own in a child; a task of the parent's is not."""
    held = executor.submit(tasks.wait_for_a_file, str(tmp_path / "go"))

    def child() -> None:
        with pytest.raises(ExecutorError, match="belongs to the parent"):
            held.result(30)
        assert executor.submit(divmod, 7, 2).result(30) == (3, 1)
        assert executor.stats().submitted == 1
        executor.shutdown()

    assert fork(child) == (0, "")
    (tmp_path / "go").touch()
    assert held.result(60) is None
    assert executor.submit(divmod, 7, 2).result(60) == (3, 1)


def test_what_the_standard_pool_sends_in_its_own_way() -> None:
    """A pipe's end is not pickled as what it looks like, a number."""
    here, there = multiprocessing.Pipe()
    with ProcessPoolExecutor(1) as pool:
        pool.submit(tasks.send, there, "sent").result(60)
        assert here.recv() == "sent"
