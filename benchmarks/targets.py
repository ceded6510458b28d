"""What must be reached, and whether it is."""

from collections.abc import Iterator
from dataclasses import dataclass

from .contestants import (
    CLOSING,
    CLUSTER_BARE,
    CLUSTER_OURS,
    CLUSTER_OURS_IDLE,
    FLOOR,
    LEAKING,
    OURS,
    OURS_60,
    OURS_IDLE,
    OURS_IDLE_60,
    PROCESSES_OURS,
    PROCESSES_OURS_60,
    PROCESSES_STANDARD,
    Contestant,
)
from .ratios import Figure, Measured

MEMORY_TARGET = 1.3
FLAT_TARGET = 1.1


@dataclass(frozen=True)
class Target:
    """How many times as fast as another a contestant must be, or, in the part "cpu", how many times as
    much processor time it may take.
    """

    server: str
    workload: str
    contestant: Contestant
    bound: float
    against: Contestant = LEAKING


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    what: str
    target: str
    measured: Figure
    reached: bool


TARGETS = (
    Target("none", "cpu-noop", OURS, 1.15),
    Target("tcp", "cpu-one", OURS_60, 1.04),
    Target("tcp", "cpu-one", OURS, 1.22),
    Target("none", "noop", OURS, 0.88),
    Target("tcp", "one", OURS, 0.80),
    Target("tcp", "two", OURS, 0.86),
    Target("tcp", "five", OURS, 0.92),
    Target("tcp", "one", OURS, 0.95, against=FLOOR),
    Target("tcp", "two", OURS, 0.95, against=FLOOR),
    Target("tcp", "five", OURS, 0.95, against=FLOOR),
    Target("tcp", "one", OURS_60, 0.97),
    Target("tcp", "five", OURS_60, 0.97),
    Target("tcp", "one-by-one", OURS_IDLE, 0.85),
    Target("tcp", "one-by-one", OURS_IDLE_60, 0.97),
    Target("pool", "one", OURS, 0.98, against=CLOSING),
    Target("mariadb", "one", OURS_60, 0.75),
    Target("tcp", "pools", OURS, 1.00, against=CLOSING),
    Target("none", "processes-noop", PROCESSES_OURS, 0.9, against=PROCESSES_STANDARD),
    Target("none", "processes-noop-by-one", PROCESSES_OURS, 0.85, against=PROCESSES_STANDARD),
    Target("tcp", "processes", PROCESSES_OURS, 0.8, against=PROCESSES_STANDARD),
    Target("tcp", "processes", PROCESSES_OURS_60, 0.95, against=PROCESSES_STANDARD),
    Target("none", "cluster-noop", CLUSTER_OURS, 0.85, against=CLUSTER_BARE),
    Target("none", "cluster-noop-by-one", CLUSTER_OURS, 0.95, against=CLUSTER_BARE),
    Target("tcp", "cluster", CLUSTER_OURS_IDLE, 0.8, against=CLUSTER_BARE),
)


def outcomes(measured: Measured) -> Iterator[Outcome]:
    """Compare; a target of which nothing was measured is left out."""
    for target in TARGETS:
        for block in measured.blocks:
            if (block.server.key, block.workload.key) == (target.server, target.workload):
                figure = block.compare(target.contestant, target.against)
                if figure is not None:
                    workload = ("CPU of " if block.is_cpu else "") + block.workload.title
                    yield outcome(
                        f"{block.server.title}, {workload}: {target.contestant.title}, "
                        f"against {target.against.title}",
                        figure,
                        target.bound,
                        at_most=block.is_cpu,
                    )
    for what, costs in measured.flat.items():
        medians = [figure.median for figure in costs.values()]
        yield outcome(
            f"Cost of a no-op against {LEAKING.title}, {what}: the highest against the lowest",
            Figure.of([max(medians) / min(medians)]),
            FLAT_TARGET,
            at_most=True,
        )
    if measured.memory:
        yield outcome(
            f"Memory of queued no-ops: {OURS.title}, against {LEAKING.title}",
            Figure.of([measured.memory[OURS] / measured.memory[LEAKING]]),
            MEMORY_TARGET,
            at_most=True,
        )


def outcome(what: str, figure: Figure, bound: float, *, at_most: bool) -> Outcome:
    reached = figure.median <= bound if at_most else figure.median >= bound
    return Outcome(what, f"{'≤' if at_most else '≥'} {bound:.2f}", figure, reached)
