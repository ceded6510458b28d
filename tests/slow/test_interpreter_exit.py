"""The app in a real process: threads that end in it, and its own end. Collector off, nothing printed."""

from __future__ import annotations

import pytest

from tests.support.observers import PostgresObserver
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


THREADS = """
import _thread, asyncio
from tests.support.waiting import wait_until

def plain_thread():
    thread = threading.Thread(target=query)
    thread.start()
    thread.join(20)

def standard_pool():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: query(), range(20)))

def raw_thread():
    queried = threading.Event()
    def work():
        query()
        queried.set()
    _thread.start_new_thread(work, ())
    assert queried.wait(20)

def to_thread():
    asyncio.run(asyncio.to_thread(query))

for use_threads in (plain_thread, standard_pool, raw_thread, to_thread):
    use_threads()
    only_main = lambda: threading.enumerate() == [threading.main_thread()]
    assert wait_until(only_main, within=20), use_threads
    assert wait_until(all_connections, lambda found: not found, within=20) == (), use_threads
    left = lambda: Entry.objects.raw(
        "SELECT 1 AS id, count(*) AS left FROM pg_stat_activity "
        "WHERE datname = 'app' AND pid <> pg_backend_pid()"
    )[0].left
    assert wait_until(left, lambda count: not count, within=20) == 0, use_threads
    connection.close()
"""


def test_installed_app(postgres: PostgresObserver) -> None:
    """The app in INSTALLED_APPS is enough: nothing of an ended thread is left in a living process."""
    finished = run_python(START.format(alias="default"), THREADS, settings=WITH_APP)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    assert not postgres.left()


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


def test_atexit_is_too_late_for_a_deadline() -> None:
    """Exit handlers run when all has run: there a deadline cancels nothing."""
    finished = run_python(
        QUEUED,
        "atexit.register(lambda: (pool.shutdown(timeout=0), print('exit handler')))",
        settings=None,
    )
    assert (finished.stdout, finished.stderr) == (f"{EVERYTHING}exit handler\n", "")


def test_after_a_deadline_python_waits_for_what_runs() -> None:
    """What still ran at the deadline ends before the process does; what was cancelled does not run."""
    finished = run_python(QUEUED, "pool.shutdown(timeout=0)", settings=None)
    assert finished.stdout == "0\n"
    assert finished.stderr == (
        "executor=of the script timeout=0.0 shutdown left "
        "running=1 (__main__.task x1) not_run=19 (__main__.task x19)\n"
    )
