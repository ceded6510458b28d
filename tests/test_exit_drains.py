"""When Python exits, it waits for all that is queued, as it does with the standard pool."""

from __future__ import annotations

import pytest

from .subprocesses import run_python

START = """
import atexit, concurrent.futures, sys, threading
from {module} import ThreadPoolExecutor
from tests.waiting import wait_until

pool = ThreadPoolExecutor(1, "of the script")
begun = threading.Event()

def exiting(probe=concurrent.futures.ThreadPoolExecutor(1)):
    try:
        probe.submit(int)
    except RuntimeError:
        return True

def task(number):
    begun.set()
    assert wait_until(exiting, within=20)
    print(number)

futures = [pool.submit(task, number) for number in range(20)]
assert begun.wait(10)
"""

ENDINGS = {
    "not shut down": "",
    "shut down without waiting": "pool.shutdown(wait=False)",
    "sys.exit": "sys.exit(3)",
    "forgotten": "del pool, futures",
}
EVERYTHING = "".join(f"{number}\n" for number in range(20))


@pytest.mark.parametrize("module", ["concurrent.futures", "django_executors"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_all_that_is_queued_runs(ending: str, module: str) -> None:
    """However the main thread ends, every task runs, and nothing is logged."""
    finished = run_python(START.format(module=module), ENDINGS[ending], settings=None)
    assert (finished.stdout, finished.stderr) == (EVERYTHING, "")


def test_atexit_is_too_late_for_a_deadline() -> None:
    """Exit handlers run when all has run: there a deadline cancels nothing."""
    finished = run_python(
        START.format(module="django_executors"),
        "atexit.register(lambda: (pool.shutdown(timeout=0), print('exit handler')))",
        settings=None,
    )
    assert (finished.stdout, finished.stderr) == (f"{EVERYTHING}exit handler\n", "")


def test_after_a_deadline_python_waits_for_what_runs() -> None:
    """What still ran at the deadline ends before the process does; what was cancelled does not run."""
    finished = run_python(
        START.format(module="django_executors"), "pool.shutdown(timeout=0)", settings=None
    )
    assert finished.stdout == "0\n"
    assert finished.stderr == (
        "executor=of the script timeout=0.0 shutdown left "
        "running=1 (__main__.task x1) not_run=19 (__main__.task x19)\n"
    )
