"""Ratios of what was measured in the same round, with their medians and spread."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .contestants import Contestant
from .servers import Server
from .workloads import Workload


@dataclass(frozen=True)
class Figure:
    """A median, with the quartiles of the rounds around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.median:.2f}"
        digits = 1 if self.median >= 10 else 2
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class Block:
    """All that was measured of one workload on one server.

    Attributes:
        seconds: for each contestant the seconds that one task took, a number for each round; in the
            part "cpu" those of processor time. The first is what the others are measured against.
    """

    server: Server
    workload: Workload
    seconds: dict[Contestant, list[float]]

    @property
    def base(self) -> Contestant:
        return next(iter(self.seconds))

    @property
    def is_cpu(self) -> bool:
        """Lower is better, and the least of the rounds counts: a busy machine only adds to it."""
        return self.workload.part == "cpu"

    def compare(self, contestant: Contestant, against: Contestant | None = None) -> Figure | None:
        """How many times as fast as `against` it is, or how many times as much CPU it takes.

        None if one of them was not measured.
        """
        against = against or self.base
        if not {contestant, against} <= self.seconds.keys():
            return None
        if self.is_cpu:
            return Figure.of([min(self.seconds[contestant]) / min(self.seconds[against])])
        pairs = zip(self.seconds[against], self.seconds[contestant], strict=True)
        return Figure.of([theirs / ours for theirs, ours in pairs])

    def microseconds(self) -> float:
        """How long one task of the base took, in all: the time of a run by the number of its tasks."""
        of_base = self.seconds[self.base]
        return (min(of_base) if self.is_cpu else statistics.median(of_base)) * 1e6


@dataclass(frozen=True)
class Measured:
    """All that one run measured.

    Attributes:
        memory: how many bytes a queued no-op takes.
        flat: what `flat` returned.
    """

    blocks: Sequence[Block]
    memory: dict[Contestant, float]
    flat: dict[str, dict[int, Figure]]
