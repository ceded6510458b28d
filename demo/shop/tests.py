"""The project's own tests. `make test` runs them on its private server; on one of yours, in `demo/`:

    DATABASE_URL=… PYTHONPATH=../tools python -m django test --settings settings

Django makes a database for them beside that of the URL, and drops it at the end.
"""

import concurrent.futures
import gc
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from django.test import TestCase, TransactionTestCase

from django_executors import ConnectionLeakError, ThreadPoolExecutor
from django_executors.testing import ExecutorTestMixin, assert_no_open_connections, drain, run_inline

from .jobs import JOBS
from .models import Total
from .seed import sow

SALES = 50


def write_report(
    executor: Callable[..., concurrent.futures.Executor] = ThreadPoolExecutor,
) -> None:
    """Run the three jobs in a pool, as the experiment does, and wait for them."""
    with executor(max_workers=len(JOBS), thread_name_prefix="report") as pool:
        for future in [pool.submit(job) for job in JOBS]:
            future.result()


def totals() -> dict[str, Decimal]:
    return dict(Total.objects.values_list("name", "amount"))


@run_inline
class InlineTests(TestCase):
    """The jobs run in the test's thread: they see its sales, and what they write is rolled back."""

    expected: dict[str, Decimal]

    @classmethod
    def setUpTestData(cls) -> None:
        cls.expected = sow(SALES)

    def test_report_adds_up_the_sales(self) -> None:
        """The totals are right."""
        write_report()
        assert totals() == self.expected

    def test_report_is_written_anew(self) -> None:
        """What another test has written is not there, and each report adds its own totals."""
        assert not Total.objects.exists()
        write_report()
        write_report()
        assert Total.objects.count() == 2 * len(JOBS)


class WorkerTests(ExecutorTestMixin, TransactionTestCase):
    """The jobs run in worker threads, each on a connection of its own."""

    def test_report_leaves_no_connection(self) -> None:
        """The totals are right, and no worker is left with a connection."""
        expected = sow(SALES)
        with self.assertNoOpenConnections():
            write_report()
        assert totals() == expected

    def test_jobs_run_at_the_same_time(self) -> None:
        """Three jobs, three workers: each waits until all have begun."""
        expected = sow(SALES)
        all_of_them = threading.Barrier(len(JOBS))

        def together(job: Callable[[], None]) -> None:
            all_of_them.wait(timeout=10)
            job()

        with ThreadPoolExecutor(max_workers=len(JOBS)) as pool:
            list(pool.map(together, JOBS))
        assert totals() == expected

    def test_a_report_that_nobody_waits_for(self) -> None:
        """`drain` waits for the jobs, and has workers let go of what they would keep for a while."""
        expected = sow(SALES)
        pool = ThreadPoolExecutor(max_workers=2, conn_max_idle=60.0)
        with assert_no_open_connections():
            for job in JOBS:
                pool.submit(job)
            drain()
        assert totals() == expected
        pool.shutdown()

    def test_standard_pool_is_caught(self) -> None:
        """The same report with the standard pool fails the check, which names the threads."""
        self.addCleanup(gc.collect)  # or what it left would keep the test database from being dropped
        sow(SALES)
        caught: Any
        with (
            self.assertRaises(ConnectionLeakError) as caught,  # noqa: PT027 - Django's runner
            assert_no_open_connections(timeout=0),
        ):
            write_report(concurrent.futures.ThreadPoolExecutor)
        assert "thread=report_0 alias=default" in str(caught.exception)
