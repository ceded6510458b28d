"""What must be reached, and whether it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .contestants import (
    CLOSING,
    CLUSTER_BARE,
    CLUSTER_OURS,
    LEAKING,
    OURS,
    OURS_60,
    OURS_IDLE_60,
    PROCESSES_OURS,
    PROCESSES_STANDARD,
    Contestant,
)
from .ratios import Block, Figure

MEMORY_TARGET = 1.3


@dataclass(frozen=True)
class Target:
    """How many times as fast as another a contestant must be."""

    server: str
    workload: str
    contestant: Contestant
    least: float
    against: Contestant = LEAKING


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    what: str
    target: str
    measured: Figure
    reached: bool


TARGETS = (
    Target("tcp", "one", OURS, 0.85),
    Target("tcp", "two", OURS, 0.90),
    Target("tcp", "five", OURS, 0.95),
    Target("tcp", "one", OURS, 10, against=CLOSING),
    Target("tcp", "one", OURS_60, 0.97),
    Target("tcp", "two", OURS_60, 0.97),
    Target("tcp", "five", OURS_60, 0.97),
    Target("pool", "one", OURS, 0.97, against=CLOSING),
    Target("pool", "two", OURS, 0.97, against=CLOSING),
    Target("pool", "five", OURS, 0.97, against=CLOSING),
    Target("mariadb", "one", OURS_60, 0.60),
    Target("tcp", "one-by-one", OURS_IDLE_60, 0.95),
    Target("none", "noop", OURS, 0.75),
    Target("none", "processes-noop", PROCESSES_OURS, 0.9, against=PROCESSES_STANDARD),
    Target("none", "processes-noop-by-one", PROCESSES_OURS, 0.9, against=PROCESSES_STANDARD),
    Target("tcp", "processes", PROCESSES_OURS, 0.9, against=PROCESSES_STANDARD),
    Target("tcp", "processes-by-one", PROCESSES_OURS, 0.9, against=PROCESSES_STANDARD),
    Target("none", "cluster-noop", CLUSTER_OURS, 0.9, against=CLUSTER_BARE),
    Target("none", "cluster-noop-by-one", CLUSTER_OURS, 0.9, against=CLUSTER_BARE),
    Target("tcp", "cluster", CLUSTER_OURS, 0.9, against=CLUSTER_BARE),
    Target("tcp", "cluster-by-one", CLUSTER_OURS, 0.9, against=CLUSTER_BARE),
)


def outcomes(blocks: Sequence[Block], memory: dict[Contestant, float]) -> Iterator[Outcome]:
    """Compare; a target of which nothing was measured is left out."""
    for target in TARGETS:
        for block in blocks:
            if (block.server.key, block.workload.key) == (target.server, target.workload):
                figure = block.speed(target.contestant, target.against)
                if figure is not None:
                    yield Outcome(
                        f"{block.server.title}, {block.workload.title}: {target.contestant.title}, "
                        f"against {target.against.title}",
                        f"≥ {target.least:g}",
                        figure,
                        figure.median >= target.least,
                    )
    if {OURS, LEAKING} <= memory.keys():
        ratio = memory[OURS] / memory[LEAKING]
        yield Outcome(
            f"Memory of queued no-ops: {OURS.title}, against {LEAKING.title}",
            f"≤ {MEMORY_TARGET:g}",
            Figure.of([ratio]),
            ratio <= MEMORY_TARGET,
        )
