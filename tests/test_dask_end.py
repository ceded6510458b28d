"""The beginning and the end of a DaskExecutor: while it connects, as it is thrown away, at exit."""

from __future__ import annotations

import gc
import multiprocessing
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from django_executors import ThreadPoolExecutor
from django_executors.dask import DaskExecutor

from . import process_tasks as tasks
from .subprocesses import environment, run_python
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off", "dask_sockets", "idle_before_and_after")


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


def test_nobody_listens() -> None:
    import dask

    before = {*threading.enumerate()}
    with DaskExecutor("tcp://127.0.0.1:1") as executor:
        with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}), pytest.raises(OSError):
            executor.submit(int)
        assert executor.stats().submitted == 0
    assert wait_until(lambda: set(threading.enumerate()) <= before)


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
def test_at_exit(ending: str) -> None:
    """Python waits for the tasks, and their callbacks, and ends the cluster."""
    ended = run_python(
        """
        from tests import process_tasks
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
