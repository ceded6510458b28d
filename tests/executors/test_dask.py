"""DaskExecutor on a cluster of its own."""

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

import psutil
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings

from django_executors import DeadlockError, ExecutorError, ThreadPoolExecutor, executors
from django_executors.dask import DaskExecutor
from django_executors.testing import run_inline
from tests.support import process_tasks as tasks
from tests.support.forks import fork
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import environment, run_python
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def executor() -> Iterator[DaskExecutor]:
    with DaskExecutor(n_workers=2, threads_per_worker=2) as found:
        yield found


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
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


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_each_call_runs(executor: DaskExecutor, tmp_path: Path) -> None:
    """Equal calls are not one call."""
    futures = [executor.submit(tasks.append_a_line, str(tmp_path / "calls")) for _ in range(20)]
    concurrent.futures.wait(futures)
    assert (tmp_path / "calls").read_text() == "called\n" * 20


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
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


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_the_remote_traceback(executor: DaskExecutor) -> None:
    error = executor.submit(tasks.fail).exception(30)
    assert isinstance(error, LookupError)
    assert "in fail\n    raise LookupError" in str(error.__cause__)


@pytest.mark.parametrize("code", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_endings_that_end_threads(code: BaseException, executor: DaskExecutor) -> None:
    """They end the task, and no worker."""
    before = set(executor.map(tasks.process_id_of, range(40)))
    assert isinstance(executor.submit(tasks.raise_in_atomic, code).exception(30), type(code))
    assert set(executor.map(tasks.process_id_of, range(40))) <= before


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_what_tasks_leave(executor: DaskExecutor, postgres: PostgresObserver) -> None:
    """Whatever a task does with its connections, its threads hold none when it has ended."""
    for task in (tasks.leave_a_transaction_open, tasks.set_context, tasks.fail, tasks.names):
        concurrent.futures.wait([executor.submit(task) for _ in range(8)])
    connections.close_all()
    assert not postgres.left()
    assert executor.submit(tasks.names).result(30) == []


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
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


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
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


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
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


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_nothing_before_the_first_task() -> None:
    """Neither a process nor a connection, and none with run_inline."""
    before = multiprocessing.active_children()
    with DaskExecutor("tcp://127.0.0.1:1") as executor, run_inline():
        assert executor.submit(divmod, 7, 2).result() == (3, 1)
    assert multiprocessing.active_children() == before
    assert executor.stats().completed == 1


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
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
@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_wrong_arguments(arguments: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        DaskExecutor(**arguments)


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
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


# The beginning and the end of a DaskExecutor: while it connects, as it is thrown away, at exit.


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_submitted_as_the_interpreter_exits() -> None:
    """It is refused, as the standard classes do it."""
    code = """
    import atexit
    from django_executors.dask import DaskExecutor

    def late():
        try:
            executor.submit(abs, -2)
        except RuntimeError as error:
            print(error, executor.stats().submitted)

    if __name__ == "__main__":
        executor = DaskExecutor(n_workers=1, threads_per_worker=1)
        executor.submit(abs, -1).result(30)
        atexit.register(late)
    """
    said = run_python(code, settings=None, warnings="ignore").stdout
    assert said == "cannot schedule new futures after interpreter shutdown 1\n"


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_nobody_listens() -> None:
    import dask

    before = {*threading.enumerate()}
    with DaskExecutor("tcp://127.0.0.1:1") as executor:
        with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}), pytest.raises(OSError):
            executor.submit(int)
        assert executor.stats().submitted == 0
    assert wait_until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_the_interpreter_exits_while_it_connects() -> None:
    """The task runs, or is refused."""
    code = """
    import threading
    from django_executors.dask import DaskExecutor

    def submit():
        try:
            print(executor.submit(abs, -1).exception(30))
        except RuntimeError:
            print("refused")

    class Announcing(DaskExecutor):
        def _connect(self):
            connected = super()._connect()
            connects.set()
            threading.main_thread().join()
            return connected

    if __name__ == "__main__":
        connects = threading.Event()
        executor = Announcing(n_workers=1, threads_per_worker=1)
        threading.Thread(target=submit).start()
        connects.wait()
    """
    ended = run_python(code, settings=None, warnings="ignore", timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout in {"None\n", "refused\n"}, ended.stderr


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_an_address_that_needs_more() -> None:
    """The error comes at once, and the process ends."""
    code = """
    from django_executors.dask import DaskExecutor

    if __name__ == "__main__":
        executor = DaskExecutor("tls://127.0.0.1:1")
        try:
            executor.submit(int)
        except TypeError as error:
            print(error)
    """
    ended = run_python(code, settings=None, warnings="ignore", timeout=30)
    assert ended.returncode == 0
    assert "TLS configuration" in ended.stdout


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_without_the_line_of_the_main_module(tmp_path: Path) -> None:
    """The last line of what is printed says what is missing."""
    script = tmp_path / "script.py"
    script.write_text("from django_executors.dask import *\nDaskExecutor(n_workers=1).submit(int)")
    ended = subprocess.run(
        [sys.executable, str(script)],
        env=environment(None),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith('has it the line `if __name__ == "__main__":`?')


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
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
        assert isinstance(submitted.exception(60), (OSError, RuntimeError))
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(int)


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_shutdown_of_what_has_just_connected() -> None:
    """Nothing is left of it."""

    class Late(DaskExecutor):
        def _connect(self) -> Any:
            self.shutdown(timeout=0.1)  # as a signal's handler would
            return super()._connect()

    executor = Late(n_workers=1, threads_per_worker=1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)
    assert wait_until(lambda: not executor._work.links(), within=30)
    assert executor.stats().submitted == 0


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_thrown_away() -> None:
    """An executor that nobody shuts down ends its cluster when its tasks have ended."""
    before = set(multiprocessing.active_children())
    executor = DaskExecutor(n_workers=1, threads_per_worker=1)
    future = executor.submit(tasks.names)
    children = set(multiprocessing.active_children()) - before
    assert children
    del executor
    gc.collect()
    assert future.result(30) == []
    left = wait_until(lambda: children & set(multiprocessing.active_children()), lambda left: not left)
    assert not left


@pytest.mark.parametrize("ending", ["", "executor.shutdown(wait=False)", "del executor"])
@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_at_exit(ending: str) -> None:
    """Python waits for the tasks, and their callbacks, and ends the cluster."""
    ended = run_python(
        """
        from tests.support import process_tasksNone
        from django_executors.dask import DaskExecutor
        executor = DaskExecutor(n_workers=1, threads_per_worker=1)
        futures = [executor.submit(process_tasks.doubled, number) for number in range(20)]
        print(executor.submit(process_tasks.process_id).result(), flush=True)
        futures[-1].add_done_callback(lambda future: print(future.result(), flush=True))
        """,
        ending,
        settings="tests.settings",
        warnings="ignore",
    )
    pid, result = ended.stdout.split()
    assert (result, ended.returncode) == ("38", 0), ended.stderr
    assert wait_until(lambda: not Path("/proc", pid).exists(), within=5)


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_forked_child_at_its_exit() -> None:
    """A child that has nothing to do with the cluster leaves it alone when it ends."""
    ended = run_python(
        """
        import os, sys
        from django_executors.dask import DaskExecutor
        executor = DaskExecutor(n_workers=1, threads_per_worker=1)
        assert executor.submit(divmod, 7, 2).result() == (3, 1)
        if not (pid := os.fork()):
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), executor.submit(divmod, 7, 2).result())
        """,
        settings="tests.settings",
        warnings="ignore",
    )
    assert (ended.stdout, ended.returncode) == ("7 (3, 1)\n", 0), ended.stderr
