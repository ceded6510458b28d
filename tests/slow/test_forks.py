"""Forks while a pool is busy: what parent and children get is right, and nobody waits for ever."""

from __future__ import annotations

import os
import threading

import pytest

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.testing import drain
from tests.projects.testapp.models import Entry
from tests.support.forks import exit_code, quiet_fork
from tests.support.observers import PostgresObserver

CHILDREN = 12


def add(number: int) -> int:
    return Entry.objects.count() + number


@pytest.mark.parametrize("conn_max_age", [0, 600], indirect=True)
@pytest.mark.usefixtures("conn_max_age")
def test_under_load(postgres: PostgresObserver) -> None:
    """Twelve children are forked while four workers of the parent's are busy."""
    pool = ThreadPoolExecutor(4)
    enough = threading.Event()
    wrong: list[object] = []

    def load() -> None:
        while not enough.is_set():
            found = list(pool.map(add, range(50)))
            if found != [*range(50)]:
                wrong.append(found)

    def child() -> None:
        code = 1
        try:
            assert list(pool.map(add, range(40), timeout=30)) == [*range(40)]
            drain()
            assert all_connections() == ()
            pool.shutdown()
            code = 0
        finally:
            os._exit(code)

    submitters = [threading.Thread(target=load) for _ in range(2)]
    for submitter in submitters:
        submitter.start()
    try:
        children = []
        for _ in range(CHILDREN):
            if (pid := quiet_fork()) == 0:
                child()
            children.append(pid)
            assert pool.submit(add, 1).result(30) == 1
        assert [exit_code(pid) for pid in children] == [0] * CHILDREN
    finally:
        enough.set()
        for submitter in submitters:
            submitter.join(30)
    assert not wrong
    pool.shutdown()
    assert not postgres.left()
