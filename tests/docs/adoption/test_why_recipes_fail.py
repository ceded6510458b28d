"""What «Why connections leak» says of the recipes, where no other test shows it."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator

import pytest
from django.db import OperationalError, connection, transaction

from tests.projects.testapp.models import Entry
from tests.support.subprocesses import run_python

DRAIN = """
    import gc, threading
    from django.db import OperationalError, connections
    connections.settings["pooled"]["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 2, "timeout": 0.5}
    from tests.projects.testapp.models import Entry
    count = Entry.objects.using("pooled").count
    for _ in range(2):
        thread = threading.Thread(target=count)
        thread.start()
        thread.join()
    gc.collect()
    try:
        count()
    except OperationalError as error:
        print(error)
    connections["pooled"].close_pool()
"""


def entries_in_a_transaction() -> Iterator[Entry]:
    with transaction.atomic():
        yield from Entry.objects.iterator()


@pytest.mark.usefixtures("leaked_before")
def test_close_inside_atomic_poisons_the_thread() -> None:
    """After a generator that nobody finished and the recipe's `close()`, every later task fails."""
    unfinished = []

    def first_entry() -> None:
        Entry.objects.create(name="first")
        entries = entries_in_a_transaction()
        unfinished.append(entries)
        next(entries)
        connection.close()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(first_entry).result(10)
        for _ in range(2):
            with pytest.raises(OperationalError, match="the connection is closed"):
                pool.submit(Entry.objects.count).result(10)
        assert pool.submit(lambda: connection.in_atomic_block).result(10)
    unfinished.pop().close()
    connection.close()


def test_dead_threads_drain_djangos_pool() -> None:
    """The places of threads that have ended are lost for good, with the collector too."""
    done = run_python(DRAIN, settings="tests.settings", warnings="ignore")
    assert done.stdout.strip() == "couldn't get a connection after 0.50 sec", done.stderr
