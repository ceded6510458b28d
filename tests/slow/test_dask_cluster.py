"""A cluster of 2 worker processes of 2 threads each, started by Dask's own commands."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import KilledWorker
from distributed.scheduler import NoWorkerError
from django.db import connection

from django_executors.dask import DaskExecutor
from tests.projects.testapp.models import Entry
from tests.support import process_tasks as tasks
from tests.support.clusters import Cluster, cluster
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")


#: Connections of two workers with two threads each.
MOST = 4


@pytest.fixture
def two_by_two(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT="20s") as found:
        found.start_workers(2, 2)
        yield found


class Sampler:
    """The most clients that the server had at once.

    A backend whose client is gone takes a moment to end, longer on a busy machine: where there are too
    many, those count whose client still has its socket.
    """

    def __init__(self, postgres: PostgresObserver) -> None:
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(postgres,))

    def _sample(self, postgres: PostgresObserver) -> None:
        while not self._over.wait(0.01):
            clients = len(postgres.backends())
            if clients > MOST:
                rows = postgres.execute(
                    "SELECT client_port FROM pg_stat_activity WHERE datname = 'app' AND client_port > 0"
                )
                open_now = {each.laddr.port for each in psutil.net_connections("tcp") if each.pid}
                clients = len({port for (port,) in rows} & open_now)
            self.most = max(self.most, clients)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.timeout(700)  # above the waits, which only a failure reaches
@pytest.mark.parametrize(("number_of_tasks", "kills"), [(1000, False), (5000, True)])
def test_many_tasks(
    number_of_tasks: int, kills: bool, two_by_two: Cluster, postgres: PostgresObserver
) -> None:
    """All results are right, four connections at most, and none a second after the last result."""
    with DaskExecutor(two_by_two.address) as executor:
        pids = set()
        while len(pids) < 2:
            pids |= set(executor.map(tasks.process_id_of, range(8)))
        half, over = threading.Event(), threading.Event()
        left = iter(range(number_of_tasks))

        def note(future: object) -> None:
            number = next(left)
            if number == number_of_tasks // 2:
                half.set()
            elif number == number_of_tasks - 1:
                over.set()

        with Sampler(postgres) as sampler:
            futures = [executor.submit(tasks.doubled, number) for number in range(number_of_tasks)]
            for future in futures:
                future.add_done_callback(note)
            assert half.wait(300)
            if kills:
                os.kill(pids.pop(), signal.SIGKILL)
            assert over.wait(300)
        assert not postgres.left()
        assert [future.result() for future in futures] == [
            2 * number for number in range(number_of_tasks)
        ]
        assert 1 <= sampler.most <= MOST
        stats = executor.stats()
        assert (stats.busy, stats.pending, stats.failed, stats.cancelled) == (0, 0, 0, 0)
        if not kills:
            assert stats.connections_opened == stats.connections_closed == number_of_tasks
    connection.close()


def test_a_task_that_kills(two_by_two: Cluster) -> None:
    """Dask runs it again a few times, and gives it up, or there is no worker left; others end well."""
    with DaskExecutor(two_by_two.address) as executor:
        error = executor.submit(tasks.killed).exception(60)
        assert isinstance(error, (KilledWorker, NoWorkerError))
        assert "tests.support.process_tasks.killed" in str(error)
        two_by_two.start_workers(1, 1)
        assert list(executor.map(tasks.doubled, range(50))) == list(range(0, 100, 2))
        assert executor.stats().failed == 1


def test_a_worker_that_joins_later(two_by_two: Cluster) -> None:
    """It is set up before it runs a task."""
    with DaskExecutor(two_by_two.address) as executor:
        known = set(executor.map(tasks.process_id_of, range(20)))
        two_by_two.start_workers(1, 1)

        def others() -> set[int]:
            return set(executor.map(tasks.process_id_of, range(20))) - known

        assert wait_until(lambda: len(known | others()) > 2 and others(), within=30)
        assert set(executor.map(tasks.database_of, range(40))) == {"app"}


def test_the_scheduler_is_lost(tmp_path: Path) -> None:
    """Each future gets an error, and the next `submit` connects to the new one."""
    with cluster(tmp_path) as found:
        scheduler = found.start_scheduler()
        found.start_workers(1, 1)
        with DaskExecutor(found.address) as executor:
            assert executor.submit(tasks.names).result(60) == []
            futures = [executor.submit(tasks.wait_for_a_file, str(tmp_path / "never")) for _ in range(5)]
            assert wait_until(futures[0].running, within=30)
            scheduler.kill()
            scheduler.wait()
            for future in futures:
                with pytest.raises(concurrent.futures.BrokenExecutor, match=r"lost task=tests\.process"):
                    future.result(30)
            found.start_scheduler(int(found.address.rpartition(":")[2]))
            found.start_workers(1, 1)
            Entry.objects.create(name="after")
            assert executor.submit(tasks.names).result(60) == ["after"]
