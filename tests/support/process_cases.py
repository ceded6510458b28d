"""A TransactionTestCase for Django's own runner: `test_process_pool.py` runs it."""

from __future__ import annotations

from django.db import connection
from django.test import TransactionTestCase

from django_executors import ProcessPoolExecutor
from tests.projects.testapp.models import Entry
from tests.support import process_tasks


class ProcessCase(TransactionTestCase):
    """Worker processes use the database of the test."""

    def by(self, method: str) -> None:
        assert connection.settings_dict["NAME"].startswith("test_")
        Entry.objects.create(name="of the test")
        pool = ProcessPoolExecutor(1, method, process_tasks.warm_up, (method,))
        with pool:
            assert pool.submit(process_tasks.database).result() == process_tasks.database()
            assert pool.submit(process_tasks.names).result() == ["of the test"]
            assert pool.submit(process_tasks.context).result()[1] == f"{method}, 1 entries"

    def test_forkserver(self) -> None:
        self.by("forkserver")

    def test_spawn(self) -> None:
        self.by("spawn")

    def test_fork(self) -> None:
        self.by("fork")
