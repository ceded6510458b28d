"""Worker processes: whose databases they use, and that no socket is shared, by each start method."""

from __future__ import annotations

import os
from concurrent.futures.process import BrokenProcessPool

import pytest
from django.core.cache import caches
from django.db import connection

from django_executors import ProcessPoolExecutor, ThreadPoolExecutor, all_connections
from tests.projects.testapp.models import Entry
from tests.support import process_tasks
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


@pytest.fixture(params=["forkserver", "spawn", "fork"])
def method(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


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
    assert "Ran 3 tests" in ended.stderr


def test_no_socket_is_shared(method: str, postgres: PostgresObserver) -> None:
    """The parent queries before, during and after, with load on both sides: every answer is right."""
    own = server_pid("default")
    with ProcessPoolExecutor(2, method) as pool, ThreadPoolExecutor(2) as threads:
        in_processes = [pool.submit(process_tasks.server_pids) for _ in range(20)]
        answers = [(number, pool.submit(process_tasks.doubled, number)) for number in range(200)]
        in_threads = [(number, threads.submit(process_tasks.doubled, number)) for number in range(500)]
        for number in range(500):
            assert process_tasks.doubled(number) == 2 * number
        assert server_pid("default") == own
        for number, future in (*answers, *in_threads):
            assert future.result(30) == 2 * number
        of_processes = {future.result(30) for future in in_processes}
    assert os.getpid() not in {pid for pid, _ in of_processes}
    assert own not in {session for _, session in of_processes}
    assert server_pid("default") == own
    assert wait_until(postgres.backends, lambda pids: pids == {own}) == {own}
    connection.close()


def test_caches(method: str, cache_server: CacheServer) -> None:
    """A worker process has clients of its own, and the parent's keep working."""
    with ProcessPoolExecutor(1, method) as pool:
        for _ in range(3):
            theirs = pool.submit(process_tasks.client, cache_server.alias).result(30)
            assert theirs != cache_server.own
            cache_server.assert_own_is_untouched()
    assert caches[cache_server.alias].get("used") == 1


@pytest.mark.usefixtures("conn_max_age")
def test_lets_go_before_it_resolves(method: str, postgres: PostgresObserver) -> None:
    """Whatever CONN_MAX_AGE says, which the worker has from its parent; however the task ended."""
    with ProcessPoolExecutor(2, method) as pool:
        for task in (process_tasks.server_pids, process_tasks.fail, process_tasks.names):
            pool.submit(task).exception(30)
            assert not postgres.left()
        for future in [pool.submit(process_tasks.doubled, number) for number in range(50)]:
            future.result(30)
        assert not postgres.left()
        stats = pool.stats()
        assert stats.connections_opened == stats.connections_closed > 0
        assert stats.connections_reset + stats.connections_reused > 0, (
            "nothing was kept for a queued task"
        )


def test_another_worker_takes_the_task(postgres: PostgresObserver) -> None:
    """The worker that has kept its connection for that task lets go, though no other task comes."""
    with ProcessPoolExecutor(2) as pool:
        for _ in range(60):
            for future in [pool.submit(process_tasks.server_pids) for _ in range(3)]:
                future.result(30)
            assert not postgres.left()
        assert pool._calls.keepers.value == 0
    assert pool.stats().connections_opened == pool.stats().connections_closed


def test_dirty(postgres: PostgresObserver) -> None:
    """An open transaction is rolled back, and the next task has a new session."""
    with ProcessPoolExecutor(1) as pool:
        futures = [pool.submit(process_tasks.leave_a_transaction_open) for _ in range(2)]
        sessions = [pool.submit(process_tasks.server_pids) for _ in range(2)]
        for future in futures:
            future.result(30)
        assert [future.result(30)[0] for future in sessions] == [*pool._processes] * 2
        assert pool.stats().connections_closed >= 2
    assert not postgres.left()
    assert not Entry.objects.exists()


def test_its_last_task(postgres: PostgresObserver) -> None:
    """A process that is to be replaced keeps nothing, and each one has its own sessions."""
    with ProcessPoolExecutor(1, max_tasks_per_child=2) as pool:
        found = [
            future.result(30) for future in [pool.submit(process_tasks.server_pids) for _ in range(6)]
        ]
        assert len({pid for pid, _ in found}) == 3
        assert not postgres.left()
        assert pool.stats().connections_opened == pool.stats().connections_closed


def test_killed(method: str, postgres: PostgresObserver) -> None:
    """Every future ends, nothing hangs, and the server has no session left of any worker."""
    with ProcessPoolExecutor(2, method) as pool:
        pool.submit(process_tasks.server_pids).result(30)
        futures = [
            pool.submit(process_tasks.killed),
            *(pool.submit(process_tasks.names) for _ in range(9)),
        ]
        assert isinstance(futures[0].exception(30), BrokenProcessPool)
        for future in futures:
            assert future.exception(30) is None or isinstance(future.exception(), BrokenProcessPool)
        with pytest.raises(BrokenProcessPool):
            pool.submit(process_tasks.names)
    assert not postgres.left()
    stats = pool.stats()
    assert (stats.workers, stats.busy, stats.pending) == (0, 0, 0)
    assert stats.completed + stats.failed == stats.submitted == 11


def test_initializer_that_fails(method: str, postgres: PostgresObserver) -> None:
    """As in the standard pool, and what it opened is gone."""
    with ProcessPoolExecutor(1, method, process_tasks.fail) as pool:
        with pytest.raises(BrokenProcessPool):
            pool.submit(process_tasks.names).result(30)
        with pytest.raises(BrokenProcessPool):
            pool.submit(process_tasks.names)
    assert not postgres.left()


def test_callbacks(postgres: PostgresObserver) -> None:
    """They run in a thread of the parent's, and what they open is closed there."""
    with ProcessPoolExecutor(1) as pool:
        for _ in range(3):
            future = pool.submit(process_tasks.names)
            future.add_done_callback(process_tasks.query_in_a_callback)
        refused = pool.submit(process_tasks.names, lambda: None)
        refused.add_done_callback(process_tasks.query_in_a_callback)
        assert refused.exception(30) is not None
        assert wait_until(all_connections, lambda found: not found, within=10) == ()
    assert not postgres.left()
