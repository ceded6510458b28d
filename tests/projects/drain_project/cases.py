"""Tests that end while their tasks run. Each finds the database empty."""

from __future__ import annotations

import os
import re
from urllib.request import urlopen

from django.db import connection
from django.test import LiveServerTestCase, TransactionTestCase

from django_executors.testing import ExecutorTestMixin
from tests.projects.testapp.models import Entry

from .work import POOL, add_later, submit_many


class Database(ExecutorTestMixin, TransactionTestCase):
    def test_name(self) -> None:
        """The runner gave this process the database that this kind of run has."""
        assert re.fullmatch(os.environ["DATABASE_PATTERN"], connection.settings_dict["NAME"])
        submit_many("of the first class")


class Tasks(ExecutorTestMixin, TransactionTestCase):
    def setUp(self) -> None:
        super().setUp()
        assert Entry.objects.count() == 0

    def test_left_to_run(self) -> None:
        submit_many("of a test")

    def test_waited_for(self) -> None:
        POOL.submit(add_later, "waited for").result(10)
        assert Entry.objects.count() == 1

    def test_left_to_a_callback(self) -> None:
        POOL.submit(add_later, "of a test").add_done_callback(lambda _: submit_many("of a callback"))


class Requests(ExecutorTestMixin, LiveServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        assert Entry.objects.count() == 0

    def request(self) -> None:
        with urlopen(self.live_server_url, timeout=10) as response:
            assert response.read() == b"submitted"

    def test_once(self) -> None:
        self.request()

    def test_twice(self) -> None:
        self.request()
        self.request()


TESTS = 6
