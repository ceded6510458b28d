"""A TransactionTestCase for Django's own runner: `test_process.py` runs it."""

from __future__ import annotations

import multiprocessing

from django.db import connection
from django.test import TransactionTestCase

from django_executors import ProcessPoolExecutor
from tests.projects.testapp.models import Entry
from tests.support import process_tasks as tasks

POOL = ProcessPoolExecutor(2)


class ProcessCase(TransactionTestCase):
    """Worker processes use the database of the test."""

    def test_each_start_method(self) -> None:
        assert connection.settings_dict["NAME"].startswith("test_")
        Entry.objects.create(name="of the test")
        for method in multiprocessing.get_all_start_methods():
            with ProcessPoolExecutor(1, method, tasks.warm_up, (method,)) as pool:
                assert pool.submit(tasks.database).result() == tasks.database()
                assert pool.submit(tasks.names).result() == ["of the test"]
                assert pool.submit(tasks.warmth).result() == f"{method}, 1 entries"

    def test_an_argument_that_queries(self) -> None:
        """At the module's pool, which is there when the test database is dropped."""
        assert POOL.submit(len, Entry.objects.all()).result() == 0
