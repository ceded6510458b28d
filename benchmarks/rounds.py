"""Which cells are measured, in which order, and with how many tasks."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .cell import measure
from .contestants import LEAKING, Contestant, missing, of_part
from .models import make_tables
from .project import let_go, use
from .ratios import Block
from .servers import WORKERS, Server
from .workloads import Workload

PROBE = 10 * WORKERS
SEED = 3
SLOW = 4
ONCE = ("none", "tcp")


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: how often each contestant runs.
        seconds: how long each run should take.
        tasks: how many tasks each run has; if None, as many as take that long.
    """

    rounds: int
    seconds: float = 0.4
    tasks: int | None = None


def blocks(servers: Sequence[Server], workloads: Sequence[Workload], size: Size) -> Iterator[Block]:
    """Measure each workload on each server that has it."""
    shuffler = random.Random(SEED)
    for server in servers:
        if server.vendor != "none":
            use(server.database)
            make_tables()
            let_go()
        for workload in workloads:
            # The other parts on one server of a kind: over a socket they are the same.
            if server.vendor in workload.vendors and (server.key in ONCE or workload.part == "threads"):
                yield block(server, workload, size, shuffler)


def block(server: Server, workload: Workload, size: Size, shuffler: random.Random) -> Block:
    """Run all contestants once in each round, each round in another order."""
    entered = contestants(server, workload)
    tasks = counts(entered, server, workload, size)
    seconds: dict[Contestant, list[float]] = {each: [] for each in entered}
    order = list(entered)
    for _ in range(size.rounds):
        shuffler.shuffle(order)
        for each in order:
            seconds[each].append(measure(each, workload, server, tasks[each]))
    return Block(server, workload, seconds)


def contestants(server: Server, workload: Workload) -> list[Contestant]:
    """Those to which this workload on this server makes a difference."""
    return [
        each
        for each in of_part(workload.part)
        if each.title not in missing()
        and not (server.pooled and each.conn_max_age)
        and not (each.one_at_a_time and not workload.one_at_a_time)
        and (not each.servers or server.key in each.servers)
    ]


def counts(
    entered: Sequence[Contestant], server: Server, workload: Workload, size: Size
) -> dict[Contestant, int]:
    """How many tasks each gets: the same for all, but for those that are several times slower.

    Everyone is tried with the same number of tasks, twice, the better counts: short runs are slower
    for each task than long ones, and the machine may have been busy.
    """
    if (fixed := size.tasks or workload.tasks) is not None:
        return dict.fromkeys(entered, fixed)
    tries = {each: min(measure(each, workload, server, PROBE) for _ in range(2)) for each in entered}
    probe = PROBE
    while (one := measure(LEAKING, workload, server, probe)) * probe < size.seconds / 4:
        probe *= 4
    same = max(PROBE, int(size.seconds / one))
    found = {}
    for each in entered:
        slower = tries[each] / tries[LEAKING]
        found[each] = max(PROBE, int(same / slower)) if slower > SLOW else same
    return found
