"""A cluster of 2 worker processes of 2 threads each, started by Dask's own commands."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import KilledWorker
from distributed.scheduler import NoWorkerError

from django_executors.dask import DaskExecutor
from tests.projects.testapp.models import Entry
from tests.support import process_tasks as tasks
from tests.support.clusters import Cluster, cluster
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")


@pytest.fixture
def two_by_two(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT="20s") as found:
        found.start_workers(2, 2)
        yield found


def both_workers(executor: DaskExecutor) -> set[int]:
    """Return the processes' ids when both take tasks."""
    found: set[int] = set()

    def more() -> set[int]:
        found.update(executor.map(tasks.process_id_of, range(8)))
        return found

    assert len(wait_until(more, lambda pids: len(pids) == 2, within=60)) == 2
    return found


def test_many_tasks(two_by_two: Cluster, postgres: PostgresObserver) -> None:
    """All results are right, each task has closed what it opened, and nothing is left on the server."""
    with DaskExecutor(two_by_two.address) as executor:
        both_workers(executor)
        answers = [executor.submit(tasks.doubled, number) for number in range(500)]
        assert [future.result(100) for future in answers] == list(range(0, 1000, 2))
        assert not postgres.left()
        stats = executor.stats()
        assert (stats.busy, stats.pending, stats.failed, stats.cancelled) == (0, 0, 0, 0)
        assert stats.connections_opened == stats.connections_closed == 500


def test_a_worker_that_is_killed(
    two_by_two: Cluster, postgres: PostgresObserver, tmp_path: Path
) -> None:
    """Another one runs its tasks: each future gets its result, and nothing is left on the server."""
    with DaskExecutor(two_by_two.address) as executor:
        victim = both_workers(executor).pop()
        held = [executor.submit(tasks.wait_for_a_file, str(tmp_path / "go")) for _ in range(4)]
        answers = [executor.submit(tasks.doubled, number) for number in range(100)]
        assert wait_until(lambda: all(future.running() for future in held), within=60)
        os.kill(victim, signal.SIGKILL)
        (tmp_path / "go").touch()
        assert [future.result(100) for future in answers] == list(range(0, 200, 2))
        assert [future.result(100) for future in held] == [None] * 4
        assert not postgres.left()


def test_a_task_that_kills(two_by_two: Cluster) -> None:
    """Dask runs it again a few times, and gives it up, or there is no worker left; others end well."""
    with DaskExecutor(two_by_two.address) as executor:
        error = executor.submit(tasks.killed).exception(100)
        assert isinstance(error, (KilledWorker, NoWorkerError))
        assert "tests.support.process_tasks.killed" in str(error)
        two_by_two.start_workers(1, 1)
        assert list(executor.map(tasks.doubled, range(50))) == list(range(0, 100, 2))
        assert executor.stats().failed == 1


def test_the_scheduler_is_lost_at_the_end(tmp_path: Path) -> None:
    """Dask's client cannot connect anew while it is closed: it says so, and all threads end."""
    with cluster(tmp_path) as found:
        scheduler = found.start_scheduler()
        found.start_workers(1, 1)
        before = set(threading.enumerate())
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
            DaskExecutor(found.address) as executor,
        ):
            assert executor.submit(tasks.names).result(100) == []
            client = executor._links[-1]._client
            client.sync(client.rpc.close)  # as its own `close` does, at the same moment
            scheduler.kill()
            scheduler.wait()
            assert wait_until(client._handle_report_task.done, within=60)
        assert wait_until(lambda: not set(threading.enumerate()) - before, within=60)


def test_the_scheduler_is_lost(tmp_path: Path) -> None:
    """Each future gets an error, and the next `submit` connects to the new one."""
    with cluster(tmp_path) as found:
        scheduler = found.start_scheduler()
        found.start_workers(1, 1)
        with DaskExecutor(found.address) as executor:
            assert executor.submit(tasks.names).result(100) == []
            futures = [executor.submit(tasks.wait_for_a_file, str(tmp_path / "never")) for _ in range(5)]
            assert wait_until(futures[0].running, within=60)
            scheduler.kill()
            scheduler.wait()
            for future in futures:
                with pytest.raises(concurrent.futures.BrokenExecutor, match=r"lost task=tests\.support"):
                    future.result(60)
            found.start_scheduler(int(found.address.rpartition(":")[2]))
            found.start_workers(1, 1)
            Entry.objects.create(name="after")
            assert executor.submit(tasks.names).result(100) == ["after"]
