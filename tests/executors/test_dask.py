"""DaskExecutor on a local cluster."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from django.db import connection

from django_executors import ThreadPoolExecutor
from django_executors.dask import DaskExecutor
from tests.support import process_tasks as tasks
from tests.support.kinds import collect_sockets
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import environment, run_python
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")


@pytest.fixture(scope="module")
def executor() -> Iterator[DaskExecutor]:
    with DaskExecutor(n_workers=2, threads_per_worker=2) as found:
        yield found
    collect_sockets()


def client_of(executor: DaskExecutor) -> Any:
    executor.submit(int).result(60)
    return executor._links[-1]._client


def test_any_keyword(executor: DaskExecutor) -> None:
    """Those that Dask's own `submit` takes, too; and strings that are the names of its tasks."""
    names = ["key", "pure", "workers", "retries", "priority", "fn", "self", "actor"]
    keywords = {name: name for name in names}
    assert executor.submit(dict, **keywords).result(60) == keywords
    running = executor.submit(dict, key="x")
    keys = list(client_of(executor).futures)
    assert executor.submit(list, keys).result(60) == keys
    running.result(60)


def test_each_call_runs(executor: DaskExecutor, tmp_path: Path) -> None:
    """Equal calls are not one call."""
    futures = [executor.submit(tasks.append_a_line, str(tmp_path / "calls")) for _ in range(20)]
    concurrent.futures.wait(futures, 60)
    assert (tmp_path / "calls").read_text() == "called\n" * 20


def test_what_no_module_has(executor: DaskExecutor) -> None:
    """A lambda, a closure, and an error of a class that is local."""
    by = 3

    class Local(Exception):
        """Of this function."""

    def fail() -> None:
        raise Local(by)

    assert list(executor.map(lambda number: number * by, range(4))) == [0, 3, 6, 9]
    error = executor.submit(fail).exception(60)
    assert isinstance(error, Local)
    assert error.args == (3,)


def test_what_tasks_leave(executor: DaskExecutor, postgres: PostgresObserver) -> None:
    """Whatever a task does with its connections, its threads hold none when it has ended."""
    for task in (tasks.leave_a_transaction_open, tasks.fail, tasks.names):
        concurrent.futures.wait([executor.submit(task) for _ in range(8)], 60)
    connection.close()
    assert not postgres.left()
    assert executor.submit(tasks.names).result(60) == []


@pytest.mark.parametrize("conn_max_idle", [0, 5])
def test_tasks_of_others(conn_max_idle: float, postgres: PostgresObserver) -> None:
    """What another client's task has open in the thread is not used by ours, nor closed or counted."""
    with DaskExecutor(n_workers=1, threads_per_worker=1, conn_max_idle=conn_max_idle) as shared:
        client = client_of(shared)
        theirs = client.submit(tasks.server_pids, pure=False).result()
        client.submit(tasks.leave_a_transaction_open, pure=False).result()
        assert shared.submit(tasks.names).result(60) == []
        assert shared.submit(tasks.create, "ours").result(60) is None
        assert shared.submit(tasks.server_pids).result(60) != theirs
        assert client.submit(tasks.names, pure=False).result() == ["not committed", "ours"]
        assert client.submit(tasks.server_pids, pure=False).result() == theirs
        stats = shared.stats()
        assert stats.connections_opened == stats.connections_closed == 3
        client.submit(tasks.close_all, pure=False).result()
    assert tasks.names() == ["ours"]


def test_conn_max_idle(postgres: PostgresObserver) -> None:
    """A thread keeps its session for the next task, and it is closed when no other comes."""
    with DaskExecutor(n_workers=1, threads_per_worker=1, conn_max_idle=1.0) as idle:
        assert len({idle.submit(tasks.server_pids).result(60) for _ in range(5)}) == 1
        assert idle.stats().connections_reset == 4
        connection.close()
        assert not postgres.left()


def test_a_cancelled_task_is_forgotten(executor: DaskExecutor, tmp_path: Path) -> None:
    """By the scheduler too: it never runs."""
    flag = tmp_path / "go on"
    client = client_of(executor)
    busy = [executor.submit(tasks.wait_for_a_file, str(flag)) for _ in range(4)]
    assert all(wait_until(future.running, within=60) for future in busy)
    waiting = [executor.submit(tasks.append_a_line, str(tmp_path / "calls")) for _ in range(50)]

    def scheduled() -> int:
        return int(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))

    def known_to_workers() -> int:
        return sum(client.run(lambda dask_worker: len(dask_worker.state.tasks)).values())

    assert wait_until(scheduled, lambda tasks: tasks == 54, within=60) == 54
    assert all(future.cancel() for future in waiting)
    assert concurrent.futures.wait(waiting, 60).done == set(waiting)
    assert not any(future.cancel() for future in busy)
    assert wait_until(scheduled, lambda tasks: tasks == 4, within=60) == 4
    assert wait_until(known_to_workers, lambda tasks: tasks == 4, within=60) == 4
    flag.touch()
    concurrent.futures.wait(busy, 60)
    assert executor.submit(int).result(60) == 0
    assert not (tmp_path / "calls").exists()


def test_on_loopback_only(executor: DaskExecutor) -> None:
    """Nothing of the cluster listens elsewhere, and there is no dashboard."""
    client = client_of(executor)
    me = psutil.Process()
    listening = [
        each.laddr.ip
        for process in (me, *me.children(recursive=True))
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}
    assert "bokeh" not in str(client.cluster.scheduler.http_application.applications)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"address": 8786}, TypeError, "address must be a string"),
    ({"security": True}, TypeError, "security must be a distributed.Security, a dict"),
    ({"n_workers": "2"}, TypeError, "n_workers must be an int"),
    ({"threads_per_worker": 0}, ValueError, "threads_per_worker must be 1 or more"),
    ({"dashboard_address": 8787}, TypeError, "dashboard_address must be a string"),
    ({"address": "tcp://127.0.0.1:1", "n_workers": 2}, ValueError, "n_workers=2 is for an own cluster"),
    ({"security": {"tls_cert": "x"}}, TypeError, "security has the unknown key 'tls_cert': it"),
    ({"address": "127.0.0.1"}, ValueError, "not '127.0.0.1': missing port number"),
    ({"address": "http://127.0.0.1:8786"}, ValueError, "unknown address scheme 'http'"),
]


@pytest.mark.parametrize(("arguments", "error", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    """They are refused by name, before anything connects."""
    with pytest.raises(error, match=said):
        DaskExecutor(**arguments)


def test_nobody_listens() -> None:
    """Within Dask's own timeout `submit` says so, and no thread is left."""
    before = {*threading.enumerate()}
    with DaskExecutor("tcp://127.0.0.1:1") as executor:
        with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}), pytest.raises(OSError):
            executor.submit(int)
        assert executor.stats().submitted == 0
    assert wait_until(lambda: set(threading.enumerate()) <= before, within=30)


def test_shutdown_while_it_connects() -> None:
    """It returns at its deadline; the `submit` that connects finds out by itself."""
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as threads:
        executor = DaskExecutor(f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        submitted = threads.submit(executor.submit, int)
        connected, _ = silent.accept()
        executor.shutdown(timeout=0.1)
        executor.shutdown(wait=False)
        assert not submitted.done()
        connected.close()
        silent.close()
        assert isinstance(submitted.exception(90), (OSError, RuntimeError))
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(int)


def test_thrown_away() -> None:
    """Its cluster begins with the first task, and ends when its tasks have, without a shutdown."""
    before = set(multiprocessing.active_children())
    executor = DaskExecutor(n_workers=1, threads_per_worker=1)
    assert set(multiprocessing.active_children()) == before
    future = executor.submit(tasks.names)
    assert set(multiprocessing.active_children()) - before
    del executor
    gc.collect()
    assert future.result(60) == []
    assert wait_until(lambda: set(multiprocessing.active_children()) <= before, within=60)


def test_at_exit() -> None:
    """Python waits for the tasks, and their callbacks, refuses new ones, and ends each cluster.

    A forked child that has nothing to do with the clusters leaves them alone when it ends.
    """
    code = """
    import atexit, os, sys
    from django_executors.dask import DaskExecutor
    from tests.support import process_tasks as tasks

    def begin(name):
        executor = DaskExecutor(n_workers=1, threads_per_worker=1)
        print("worker", executor.submit(tasks.process_id).result(), flush=True)
        futures = [executor.submit(tasks.doubled, number) for number in range(20)]
        futures[-1].add_done_callback(lambda future: print(name, future.result(), flush=True))
        return executor

    def late():
        try:
            kept.submit(abs, -2)
        except RuntimeError as error:
            print(error, flush=True)

    kept, shut_down = begin("kept"), begin("shut down")
    if not (pid := os.fork()):
        sys.exit(7)
    print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    begin("thrown away")
    shut_down.shutdown(wait=False)
    atexit.register(late)
    """
    ended = run_python(code, settings="tests.settings", warnings="ignore", timeout=100)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    pids = [line.removeprefix("worker ") for line in lines if line.startswith("worker")]
    assert sorted(line for line in lines if not line.startswith("worker")) == [
        "cannot schedule new futures after interpreter shutdown",
        "child 7",
        "kept 38",
        "shut down 38",
        "thrown away 38",
    ]
    assert len(pids) == 3
    assert wait_until(lambda: not any(Path("/proc", pid).exists() for pid in pids), within=30)


def test_errors_of_scripts(tmp_path: Path) -> None:
    """A script's error says at once what an address needs, or the script itself, and the script ends."""
    for name, code, said in (
        ("address", 'DaskExecutor("tls://127.0.0.1:1").submit(int)', "TLS configuration"),
        ("guard", "DaskExecutor(n_workers=1).submit(int)", 'the line `if __name__ == "__main__":`?'),
    ):
        script = tmp_path / f"{name}.py"
        script.write_text(f"from django_executors.dask import *\n{code}")
        ended = subprocess.run(
            [sys.executable, str(script)],
            env=environment(None),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 1
        assert said in ended.stderr.splitlines()[-1]
