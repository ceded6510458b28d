"""One way through one variant: start its process, count meanwhile, keep what was seen."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg

from .child import Child
from .database import with_application
from .sampler import Sample, Sampler
from .ways import Way
from .workload import Variant

ROWS = "SELECT count(*) FROM shop_total"
RIGHT_ROWS = """
    SELECT count(*) FROM shop_total
    JOIN unnest(%s::text[], %s::numeric[]) AS expected (name, amount) USING (name, amount)
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one way did in one variant.

    Attributes:
        peak: the most connections that the server counted at once.
        left: those that it counted when all was done, while the process was still alive.
        seconds: how long the jobs took.
        failures: how many of the `jobs` raised.
        rows: how many totals the jobs wrote, and `right_rows` those of the right amount.
        connections_all: `len(connections.all())` in the process at the end.
        all_connections: `len(django_executors.all_connections())` at the same moment.
    """

    way: Way
    variant: Variant
    peak: int
    left: int
    seconds: float
    jobs: int
    failures: int
    first_failure: str
    rows: int
    right_rows: int
    connections_all: int
    all_connections: int
    samples: list[Sample]

    @property
    def ceiling(self) -> int | None:
        """The most connections that it was to have, if anything said so."""
        return self.variant.ceiling if self.way.knows_ceiling else None


def measure(
    way: Way,
    variant: Variant,
    *,
    url: str,
    connection: psycopg.Connection[Any],
    right: dict[str, Decimal],
    collector: bool,
    on_progress: Callable[[int, int], None],
) -> Run:
    """Run `way` through `variant`.

    Args:
        url: the experiment's database.
        connection: where to count; open before the server is full.
        right: the totals that the jobs must write.
        collector: whether the process has Python's cyclic garbage collector.
        on_progress: told after each pool how many were used, and the connections open now.
    """
    connection.execute("TRUNCATE shop_total")
    application = f"{way.key} {variant.key} {os.getpid()}"
    with Child(way, variant, url=with_application(url, application), collector=collector) as child:
        child.wait_for("ready")
        with Sampler(connection, application) as sampler:
            pools = 0

            def on_pool() -> None:
                nonlocal pools
                pools += 1
                on_progress(pools, sampler.last)

            child.send("run")
            done = child.wait_for("done", on_pool=on_pool)
            left = sampler.wait_until_stable()
        child.send("count")
        counted = child.wait_for("counted")
    # The server takes a moment to notice; the next process must find all its places free.
    with Sampler(connection, application) as end:
        end.wait_until_none()
    return Run(
        way=way,
        variant=variant,
        peak=max((count for _, count in sampler.samples), default=0),
        left=left,
        jobs=variant.pools * variant.jobs,
        rows=_number(connection, ROWS),
        right_rows=_number(connection, RIGHT_ROWS, list(right), list(right.values())),
        samples=sampler.samples,
        **done,
        **counted,
    )


def _number(connection: psycopg.Connection[Any], query: str, *arguments: object) -> int:
    row = connection.execute(query, arguments).fetchone()
    assert row is not None
    number: int = row[0]
    return number
