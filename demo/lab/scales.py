"""What the chart in the terminal and the picture have in common: order, scales, thinning."""

from collections.abc import Sequence

from .measure import Run
from .sampler import Sample
from .workload import Variant


def by_way(runs: Sequence[Run]) -> list[list[Run]]:
    """One list for each way, with its variants in their order."""
    ways = list(dict.fromkeys(run.way for run in runs))
    return [[run for run in runs if run.way == way] for way in ways]


def duration(runs: Sequence[Run], variant: Variant) -> float:
    """The longest that any way took, and was watched, in this variant."""
    ends = [run.samples[-1][0] for run in runs if run.variant == variant and run.samples]
    return max(ends, default=1.0)


def top(runs: Sequence[Run], limit: int) -> int:
    """The highest number on the scale: the limit, unless everything would lie flat below it."""
    peak = max(run.peak for run in runs)
    if peak * 3 >= limit:
        return max(limit, peak)
    return -(-max(peak, 1) // 10) * 10


def in_columns(samples: Sequence[Sample], columns: int, seconds: float) -> list[int | None]:
    """The highest count in each of `columns` equal times; None after the last sample.

    A time without a sample has the count before it.
    """
    highest: list[int | None] = [None] * columns
    for at, count in samples:
        column = min(int(at / seconds * columns), columns - 1)
        highest[column] = max(count, highest[column] or 0)
    if samples:
        last = min(int(samples[-1][0] / seconds * columns), columns - 1)
        before = 0
        for column in range(last + 1):
            before = highest[column] = before if (here := highest[column]) is None else here
    return highest
