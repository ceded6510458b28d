"""The app in a real process, at its end: collector off, nothing printed."""

from __future__ import annotations

import pytest

from tests.support.subprocesses import WITH_APP, run_python

START = """
import concurrent.futures, gc, logging, os, threading
gc.disable()
from django.db import connection
from django_executors import ThreadPoolExecutor, all_connections
from tests.projects.testapp.models import Entry

ALIAS = {alias!r}

def query():
    return Entry.objects.using(ALIAS).count()
"""

# Threads that are still alive when the process ends, each with a connection: Python drops their
# locals in another thread, where closing is no longer theirs. The driver's ResourceWarning is true.
DAEMONS = {
    "daemon thread in a transaction": """
        from django.db import transaction
        queried = threading.Event()
        def work():
            with transaction.atomic(using=ALIAS):
                query()
                queried.set()
                threading.Event().wait()
        threading.Thread(target=work, daemon=True).start()
        assert queried.wait(10)
        assert len(all_connections()) == 1
    """,
    "daemon thread that goes on querying": """
        queried = threading.Event()
        def work():
            while True:
                query()
                queried.set()
        threading.Thread(target=work, daemon=True).start()
        assert queried.wait(10)
    """,
}

# These end before Python takes itself apart, and close all that they opened.
ENDINGS = {
    "thread that outlives the main one": """
        def work():
            threading.main_thread().join()
            query()
        threading.Thread(target=work).start()
    """,
    "standard pool, not shut down": """
        pool = concurrent.futures.ThreadPoolExecutor(4)
        futures = [pool.submit(query) for _ in range(20)]
    """,
    "pool, not shut down, with work queued": """
        pool = ThreadPoolExecutor(4)
        futures = [pool.submit(query) for _ in range(20)]
    """,
    "pool whose callbacks query": """
        pool = ThreadPoolExecutor(4)
        for _ in range(20):
            pool.submit(query).add_done_callback(lambda future: query())
    """,
    "sys.exit in the main thread": """
        import sys
        threading.Thread(target=query).start()
        sys.exit(0)
    """,
}


@pytest.mark.parametrize(
    ("ending", "alias"),
    [
        *((ending, "default") for ending in DAEMONS | ENDINGS),
        ("daemon thread in a transaction", "mariadb"),
        ("pool, not shut down, with work queued", "mariadb"),
    ],
)
def test_exit(ending: str, alias: str, request: pytest.FixtureRequest) -> None:
    """The process ends with code 0 and without a word, and leaves nothing on the server."""
    observer = request.getfixturevalue("mariadb" if alias == "mariadb" else "postgres")
    finished = run_python(
        START.format(alias=alias),
        (DAEMONS | ENDINGS)[ending],
        settings=WITH_APP,
        warnings="ignore::ResourceWarning" if ending in DAEMONS else "always",
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    assert not observer.left()


# When Python exits, it waits for all that is queued, as it does with the standard pool.


QUEUED = """
import atexit, concurrent.futures, sys, threading
from django_executors import ThreadPoolExecutor
from tests.support.waiting import wait_until

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

ENDINGS_OF_MAIN = {
    "not shut down": "",
    "shut down without waiting": "pool.shutdown(wait=False)",
    "sys.exit": "sys.exit(3)",
    "forgotten": "del pool, futures",
}
EVERYTHING = "".join(f"{number}\n" for number in range(20))


@pytest.mark.parametrize("ending", ENDINGS_OF_MAIN)
def test_all_that_is_queued_runs(ending: str) -> None:
    """However the main thread ends, every task runs, and nothing is logged."""
    finished = run_python(QUEUED, ENDINGS_OF_MAIN[ending], settings=None)
    assert (finished.stdout, finished.stderr) == (EVERYTHING, "")


def test_after_a_deadline_python_waits_for_what_runs() -> None:
    """What still ran at the deadline ends before the process does; what was cancelled does not run."""
    finished = run_python(QUEUED, "pool.shutdown(timeout=0)", settings=None)
    assert finished.stdout == "0\n"
    assert finished.stderr == (
        "executor=of the script timeout=0.0 shutdown left "
        "running=1 (__main__.task x1) not_run=19 (__main__.task x19)\n"
    )


def test_atexit_is_too_late_for_a_deadline() -> None:
    """Exit handlers run when all has run: there a deadline cancels nothing."""
    handler = "atexit.register(lambda: (pool.shutdown(timeout=0), print('exit handler')))"
    finished = run_python(QUEUED, "import atexit", handler, settings=None)
    assert (finished.stdout, finished.stderr) == (f"{EVERYTHING}exit handler\n", "")
