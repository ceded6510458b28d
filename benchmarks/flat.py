"""Whether a task costs the same late in the life of a pool, and among many pools."""

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor

from .contestants import LEAKING, OURS, Contestant
from .ratios import Figure
from .workloads import WrongResultError, same

BATCH = 1_000
PATIENCE = 120.0


def flat(tasks: Sequence[int], pools: Sequence[int], batches: int) -> dict[str, dict[int, Figure]]:
    """Return the processor time of a no-op, ours against the standard pool's, for each of these numbers.

    Args:
        tasks: how many one pool runs.
        pools: how many of ours there are.
        batches: how many are measured at the least, for each number.
    """
    return {
        "by how many tasks a pool runs": {each: over_tasks(each, batches) for each in tasks},
        "by how many idle pools there are": {each: among_pools(each, batches) for each in pools},
    }


def over_tasks(tasks: int, batches: int) -> Figure:
    ratios: list[float] = []
    while len(ratios) < batches:
        with begun(LEAKING) as standard, begun(OURS) as ours:
            ratios += [cost(ours) / cost(standard) for _ in range(tasks // BATCH)]
    return Figure.of(ratios)


def among_pools(count: int, batches: int) -> Figure:
    with contextlib.ExitStack() as stack:
        for _ in range(count - 1):
            stack.enter_context(OURS.make(max_workers=1)).submit(same, 0).result(PATIENCE)
        standard, ours = [stack.enter_context(begun(each)) for each in (LEAKING, OURS)]
        return Figure.of([cost(ours) / cost(standard) for _ in range(batches)])


def begun(contestant: Contestant) -> Executor:
    """Return a pool that has run one batch, which costs the standard pool of Python 3.11 more."""
    pool = contestant.make(max_workers=1)
    cost(pool)
    return pool


def cost(pool: Executor) -> float:
    """Return the processor time of a batch, all of which is queued before its first task runs.

    Raises:
        WrongResultError: a task returned a wrong result.
    """
    go = threading.Event()
    began = time.process_time()
    pool.submit(go.wait, PATIENCE)
    futures = [pool.submit(same, number) for number in range(BATCH)]
    go.set()
    futures[-1].result(PATIENCE)
    results = [future.result(PATIENCE) for future in futures]
    seconds = time.process_time() - began
    if results != list(range(BATCH)):
        raise WrongResultError("a batch of no-ops")
    return seconds
