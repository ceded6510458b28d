"""Worker processes: whose databases they use, that no socket is shared, and that they let go."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
from concurrent.futures.process import BrokenProcessPool

import pytest
from django.core.cache import caches

from django_executors import ProcessPoolExecutor, ThreadPoolExecutor, all_connections, process, remote
from tests.projects.testapp.models import Entry
from tests.support import process_tasks as tasks
from tests.support.cache_clients import CacheServer
from tests.support.forks import server_pid
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.usefixtures("idle_before_and_after"),
    # Python 3.12 and newer warn of a fork beside threads: that is what is tested here.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


@pytest.mark.usefixtures("no_test_database_before")
def test_uses_the_database_of_the_test() -> None:
    """In a TransactionTestCase, by each start method; an initializer beside models works."""
    ended = run_python(
        """
        from django.test.runner import DiscoverRunner
        runner = DiscoverRunner(verbosity=0, interactive=False)
        print(runner.run_tests(["tests.support.process_cases"]))
        """,
        settings="tests.settings",
        warnings="ignore",
    )
    assert ended.stdout.endswith("\n0\n"), ended.stderr
    assert "Ran 2 tests" in ended.stderr


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_no_socket_is_shared(method: str, postgres: PostgresObserver) -> None:
    """The parent queries before, during and after, with load on both sides: every answer is right."""
    own = server_pid("default")
    with ProcessPoolExecutor(2, method) as pool, ThreadPoolExecutor(2) as threads:
        in_processes = [pool.submit(tasks.server_pids) for _ in range(20)]
        answers = [(number, pool.submit(tasks.doubled, number)) for number in range(100)]
        answers += [(number, threads.submit(tasks.doubled, number)) for number in range(200)]
        for number in range(200):
            assert tasks.doubled(number) == 2 * number
        for number, future in answers:
            assert future.result(60) == 2 * number
        of_processes = {future.result(60) for future in in_processes}
    assert os.getpid() not in {pid for pid, _ in of_processes}
    assert own not in {session for _, session in of_processes}
    assert server_pid("default") == own
    assert wait_until(postgres.backends, lambda pids: pids == {own}) == {own}


def test_caches(cache_server: CacheServer) -> None:
    """A worker process has clients of its own, and the parent's keep working."""
    with ProcessPoolExecutor(1, "fork") as pool:
        for _ in range(3):
            assert pool.submit(tasks.client, cache_server.alias).result(60) != cache_server.own
            cache_server.assert_own_is_untouched()
    assert caches[cache_server.alias].get("used") == 1


@pytest.mark.parametrize("age", [0, 600, None], ids=lambda age: f"CONN_MAX_AGE={age}")
def test_lets_go_before_it_resolves(age: int | None, postgres: PostgresObserver) -> None:
    """Whatever CONN_MAX_AGE says, however the task ended."""
    with ProcessPoolExecutor(2, None, tasks.set_max_age, (age,)) as pool:
        for task in (tasks.server_pids, tasks.fail, tasks.names):
            pool.submit(task).exception(60)
            stats = pool.stats()  # as its report has told, with its end
            assert stats.connections_opened == stats.connections_closed
            assert not postgres.left()
        for future in [pool.submit(tasks.doubled, number) for number in range(50)]:
            future.result(60)
        assert not postgres.left()
        stats = pool.stats()
    assert stats.connections_opened > 0
    assert stats.connections_reset + stats.connections_reused > 0, "nothing was kept for a queued task"


def test_another_worker_takes_the_task(postgres: PostgresObserver) -> None:
    """The worker that has kept its connection for that task lets go, though no other task comes."""
    context = multiprocessing.get_context("spawn")
    calls = context.Queue()
    start = process._Start("worker", (None, ()), None, 0.0)
    start.take_from(calls, context.RawValue("q", 0))
    kept, taken = threading.Event(), threading.Event()

    def work() -> object:
        worker = process._Worker(start)
        packed = remote.pack(remote.used_here(), tasks.names, (), {}, process._dumps)
        assert worker.run(packed, process._dumps)[1] is False
        kept.set()
        assert taken.wait(30)
        return worker.get()

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        calls.put("for another worker")
        assert wait_until(lambda: not calls.empty(), within=30)
        got = threads.submit(work)
        assert kept.wait(30)
        assert len(all_connections()) == 1
        assert calls.get() == "for another worker"
        taken.set()
        assert not postgres.left()
        assert not got.done()
        calls.put("next")
        assert got.result(30) == "next"
    calls.close()
    calls.join_thread()


def test_conn_max_idle(postgres: PostgresObserver) -> None:
    """An idle worker keeps its session for the next task, and closes it when no other comes."""
    with ProcessPoolExecutor(1, conn_max_idle=1.0) as pool:
        sessions = {pool.submit(tasks.server_pids).result(60) for _ in range(5)}
        assert len(sessions) == 1
        assert pool.stats().connections_reset == 4
        assert not postgres.left()


def test_dirty(postgres: PostgresObserver) -> None:
    """An open transaction is rolled back, and the next task has a new session."""
    with ProcessPoolExecutor(1) as pool:
        futures = [pool.submit(tasks.leave_a_transaction_open) for _ in range(2)]
        futures += [pool.submit(tasks.names)]
        assert [future.result(60) for future in futures] == [None, None, []]
        assert pool.stats().connections_closed >= 2
    assert not postgres.left()
    assert not Entry.objects.exists()


def test_its_last_task(postgres: PostgresObserver) -> None:
    """A process that is to be replaced keeps nothing, and each one has its own sessions."""
    with ProcessPoolExecutor(1, max_tasks_per_child=2) as pool:
        futures = [pool.submit(tasks.server_pids) for _ in range(6)]
        assert len({future.result(60)[0] for future in futures}) == 3
        assert not postgres.left()
        assert pool.stats().connections_opened == pool.stats().connections_closed


def test_killed(postgres: PostgresObserver) -> None:
    """Every future ends, nothing hangs, and the server has no session left of any worker."""
    with ProcessPoolExecutor(2) as pool:
        pool.submit(tasks.server_pids).result(60)
        futures = [pool.submit(tasks.killed), *(pool.submit(tasks.names) for _ in range(9))]
        assert isinstance(futures[0].exception(60), BrokenProcessPool)
        for future in futures:
            assert future.exception(60) is None or isinstance(future.exception(), BrokenProcessPool)
        with pytest.raises(BrokenProcessPool):
            pool.submit(tasks.names)
    assert not postgres.left()
    stats = pool.stats()
    assert (stats.workers, stats.busy, stats.pending) == (0, 0, 0)
    assert stats.completed + stats.failed == stats.submitted == 11
