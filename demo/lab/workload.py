"""What each way is put through."""

import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WORKERS = 20
JOBS = 3
CEILING = 16


@dataclass(frozen=True)
class Variant:
    """`callers` threads at once, each of which uses `rounds` pools of `jobs` jobs, one after another.

    With `replica`, rows are read from a second alias of the same database. `ceiling` is for the ways
    that know one: the most connections that they may have at once, over all pools.
    """

    key: str
    title: str
    short_title: str
    callers: int
    rounds: int
    jobs: int = JOBS
    replica: bool = False
    ceiling: int | None = None

    @property
    def pools(self) -> int:
        return self.callers * self.rounds


def variants(*, quick: bool) -> tuple[Variant, ...]:
    pools, callers, replica_pools = (10, 10, 10) if quick else (100, 50, 50)
    return (
        Variant(
            key="in-turn",
            title=f"{pools} pools of {JOBS} jobs, one after another",
            short_title="one after another",
            callers=1,
            rounds=pools,
        ),
        Variant(
            key="at-once",
            title=f"{callers} callers at once, 2 pools of {JOBS} jobs each",
            short_title=f"{callers} at once",
            callers=callers,
            rounds=2,
        ),
        # Two connections for each job, of which the recipe knows one.
        Variant(
            key="replica",
            title=f"{replica_pools} pools of {JOBS} jobs, one after another, reading from a replica",
            short_title="with a replica",
            callers=1,
            rounds=replica_pools,
            replica=True,
        ),
        # As many workers as jobs: without a ceiling each of them wants a connection at once.
        Variant(
            key="ceiling",
            title=f"{callers} callers at once, a pool of {WORKERS} jobs each, ceiling of {CEILING}",
            short_title="with a ceiling",
            callers=callers,
            rounds=1,
            jobs=WORKERS,
            ceiling=CEILING,
        ),
    )


class Failures:
    """How many jobs raised, and what the first of them said."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.jobs = 0  # guarded by _lock
        self.first = ""  # guarded by _lock

    def note(self, error: Exception) -> None:
        # libpq says where it connected to, then «failed:», then what the server said.
        said = str(error).strip().rpartition("failed: ")[2].splitlines()
        message = f"{type(error).__name__}: {said[0] if said else 'no message'}"
        with self._lock:
            self.jobs += 1
            self.first = self.first or message


def use_one_pool(
    executor: type[concurrent.futures.ThreadPoolExecutor],
    jobs: Sequence[Callable[[], None]],
    failures: Failures,
) -> None:
    """Make a pool, run the jobs, wait for them and forget the pool, as a busy view does."""
    pool = executor(max_workers=WORKERS)
    futures = [pool.submit(job) for job in jobs]
    for future in futures:
        try:
            future.result()
        except Exception as error:  # noqa: BLE001 - counted and shown
            failures.note(error)


def run(
    executor: type[concurrent.futures.ThreadPoolExecutor],
    jobs: Sequence[Callable[[], None]],
    *,
    callers: int,
    rounds: int,
    on_pool: Callable[[], None],
) -> Failures:
    """Run the workload in the calling thread, or in `callers` threads that start together."""
    failures = Failures()
    start = threading.Barrier(callers)

    def call() -> None:
        start.wait()
        for _ in range(rounds):
            use_one_pool(executor, jobs, failures)
            on_pool()

    if callers == 1:
        call()
        return failures
    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
