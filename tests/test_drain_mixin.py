"""`ExecutorTestMixin` drains: before a test's rows are removed, and when its class is done."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from django.db import connection
from django.test import TransactionTestCase

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.testing import ExecutorTestMixin

from .draining import IDLE, is_idle, query
from .gates import Gate
from .running_cases import run_case
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off", "idle_before_and_after")


def test_mixin_drains_before_the_flush() -> None:
    """What a test's tasks write after its end is gone with the rest of what it wrote."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    gate = Gate()

    def write_later() -> None:
        gate()
        wait_until(lambda: False, within=0.2)  # the test is over, and draining begins
        Entry.objects.create(name="written late")

    class Case(ExecutorTestMixin, TransactionTestCase):
        def test(self) -> None:
            futures.append(pool.submit(write_later))
            self.addCleanup(gate.open)

    futures: list[Future[None]] = []
    result = run_case(Case)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    (future,) = futures
    assert future.done()
    assert future.exception() is None
    assert Entry.objects.count() == 0
    connection.close()
    assert is_idle()


def test_mixin_drains_when_the_class_is_done() -> None:
    """What its own class set-up and tear-down left to do is done when the class is."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)

    class Case(ExecutorTestMixin, TransactionTestCase):
        @classmethod
        def tearDownClass(cls) -> None:
            super().tearDownClass()
            pool.submit(wait_until, lambda: False, within=0.1)
            pool.submit(query)

        def test(self) -> None:
            pass

    result = run_case(Case)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    connection.close()
    assert all_connections() == ()
    assert is_idle()
