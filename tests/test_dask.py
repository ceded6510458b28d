"""DaskExecutor on a cluster of its own."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings

from django_executors import DeadlockError, ExecutorError, executors
from django_executors.dask import DaskExecutor
from django_executors.testing import run_inline

from . import process_tasks as tasks
from .forking import fork
from .observers import PostgresObserver
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off", "dask_sockets", "idle_before_and_after")


@pytest.fixture(scope="module")
def executor() -> Iterator[DaskExecutor]:
    with DaskExecutor(n_workers=2, threads_per_worker=2) as found:
        yield found


def test_any_keyword(executor: DaskExecutor) -> None:
    """Those that Dask's own `submit` takes, too; and strings that are the names of its tasks."""
    names = [
        "key",
        "pure",
        "workers",
        "retries",
        "priority",
        "fn",
        "self",
        "actor",
        "allow_other_workers",
    ]
    keywords = {name: name for name in names}
    assert executor.submit(dict, **keywords).result(30) == keywords
    link = executor._link
    assert link is not None
    running = executor.submit(dict, key="x")
    keys = list(link._client.futures)
    assert executor.submit(list, keys).result(30) == keys
    running.result(30)


def test_each_call_runs(executor: DaskExecutor, tmp_path: Path) -> None:
    """Equal calls are not one call."""
    futures = [executor.submit(tasks.append_a_line, str(tmp_path / "calls")) for _ in range(20)]
    concurrent.futures.wait(futures)
    assert (tmp_path / "calls").read_text() == "called\n" * 20


def test_what_no_module_has(executor: DaskExecutor) -> None:
    """A lambda, a closure, and an error of a class that is local."""
    by = 3

    class Local(Exception):
        """Of this function."""

    def fail() -> None:
        raise Local(by)

    assert list(executor.map(lambda number: number * by, range(4))) == [0, 3, 6, 9]
    error = executor.submit(fail).exception(30)
    assert isinstance(error, Local)
    assert error.args == (3,)


def test_the_remote_traceback(executor: DaskExecutor) -> None:
    error = executor.submit(tasks.fail).exception(30)
    assert isinstance(error, LookupError)
    assert "in fail\n    raise LookupError" in str(error.__cause__)


@pytest.mark.parametrize("code", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_endings_that_end_threads(code: BaseException, executor: DaskExecutor) -> None:
    """They end the task, and no worker."""
    before = set(executor.map(tasks.process_id_of, range(40)))
    assert isinstance(executor.submit(tasks.raise_in_atomic, code).exception(30), type(code))
    assert set(executor.map(tasks.process_id_of, range(40))) <= before


def test_what_tasks_leave(executor: DaskExecutor, postgres: PostgresObserver) -> None:
    """Whatever a task does with its connections, its threads hold none when it has ended."""
    for task in (tasks.leave_a_transaction_open, tasks.set_context, tasks.fail, tasks.names):
        concurrent.futures.wait([executor.submit(task) for _ in range(8)])
    connections.close_all()
    assert not postgres.left()
    assert executor.submit(tasks.names).result(30) == []


def test_callbacks(executor: DaskExecutor, postgres: PostgresObserver) -> None:
    """They run in one thread of this process, which keeps nothing; and must not wait there."""
    errors: list[BaseException] = []
    over = threading.Event()

    def wait(_: object) -> None:
        tasks.server_pid("default")
        try:
            executor.submit(int).result()
        except DeadlockError as error:
            errors.append(error)
        over.set()

    executor.submit(tasks.names).add_done_callback(wait)
    assert over.wait(30)
    assert "task=builtins.int" in str(errors)
    connections.close_all()
    assert not postgres.left()


def test_a_cancelled_task_is_forgotten(executor: DaskExecutor, tmp_path: Path) -> None:
    """By the scheduler too: it never runs."""
    flag = tmp_path / "go on"
    busy = [executor.submit(tasks.wait_for_a_file, str(flag)) for _ in range(4)]
    assert all(wait_until(future.running, within=30) for future in busy)
    waiting = [executor.submit(tasks.append_a_line, str(tmp_path / "calls")) for _ in range(50)]
    link = executor._link
    assert link is not None
    client = link._client

    def scheduled() -> int:
        return int(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))

    assert wait_until(scheduled, lambda tasks: tasks == 54) == 54
    assert all(future.cancel() for future in waiting)
    assert concurrent.futures.wait(waiting, 30).done == set(waiting)
    assert not any(future.cancel() for future in busy)

    def known() -> int:
        return sum(client.run(lambda dask_worker: len(dask_worker.state.tasks)).values())

    assert wait_until(scheduled, lambda tasks: tasks == 4) == 4
    assert wait_until(known, lambda tasks: tasks == 4) == 4
    flag.touch()
    concurrent.futures.wait(busy)
    assert executor.submit(int).result(30) == 0
    assert not (tmp_path / "calls").exists()
    assert wait_until(lambda: client.futures, lambda found: not found) == {}


def test_on_loopback_only(executor: DaskExecutor) -> None:
    """Nothing of the cluster listens elsewhere, and there is no dashboard."""
    executor.submit(int).result(30)
    me = psutil.Process()
    listening = [
        each.laddr.ip
        for process in (me, *me.children(recursive=True))
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}
    link = executor._link
    assert link is not None
    assert "bokeh" not in str(link._client.cluster.scheduler.http_application.applications)


def test_nothing_before_the_first_task() -> None:
    """Neither a process nor a connection, and none with run_inline."""
    before = multiprocessing.active_children()
    with DaskExecutor("tcp://127.0.0.1:1") as executor, run_inline():
        assert executor.submit(divmod, 7, 2).result() == (3, 1)
    assert multiprocessing.active_children() == before
    assert executor.stats().completed == 1


def test_by_name() -> None:
    named = {"BACKEND": "django_executors.dask.DaskExecutor", "OPTIONS": {"n_workers": 1}}
    with override_settings(EXECUTORS={"far": named}):
        assert executors["far"].submit(tasks.database).result(30) == tasks.database()
        executors.shutdown()
    with (
        override_settings(EXECUTORS={"far": named | {"OPTIONS": {"workers": 1}}}),
        pytest.raises(ImproperlyConfigured, match="DaskExecutor takes 'address', 'security'"),
    ):
        executors["far"]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"address": 8786}, TypeError, "address must be a string"),
        ({"security": True}, TypeError, "security must be a distributed.Security, a dict"),
        ({"n_workers": "2"}, TypeError, "n_workers must be an int"),
        ({"threads_per_worker": 0}, ValueError, "threads_per_worker must be 1 or more"),
        ({"dashboard_address": 8787}, TypeError, "dashboard_address must be a string"),
        (
            {"address": "tcp://127.0.0.1:1", "n_workers": 2},
            ValueError,
            "n_workers=2 is for an own cluster",
        ),
        (
            {"security": {"tls_cert": "x"}},
            TypeError,
            "security has the unknown key 'tls_cert': it",
        ),
        ({"address": "127.0.0.1"}, ValueError, "not '127.0.0.1': missing port number"),
        ({"address": "http://127.0.0.1:8786"}, ValueError, "unknown address scheme 'http'"),
    ],
)
def test_wrong_arguments(arguments: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        DaskExecutor(**arguments)


def test_after_a_fork(executor: DaskExecutor) -> None:
    """In a child the executor is the child's own; a task of the parent's is not."""
    held = executor.submit(tasks.server_pid, "default")

    def child() -> None:
        if not held.done():
            with pytest.raises(ExecutorError, match="belongs to the parent"):
                held.result(30)
        assert executor.submit(divmod, 7, 2).result(30) == (3, 1)
        assert executor.stats().submitted == 1
        executor.shutdown()

    assert fork(child) == (0, "")
    assert held.result(30)
    assert executor.submit(divmod, 7, 2).result(30) == (3, 1)
