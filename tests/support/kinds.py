"""One executor of each kind for a whole module: a cluster takes seconds to start."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from django_executors import ImmediateExecutor, ProcessPoolExecutor, ThreadPoolExecutor

KINDS = ["immediate", "thread", "process", "dask"]


def make(kind: str) -> Any:
    """Return a new executor with one worker."""
    if kind == "immediate":
        return ImmediateExecutor()
    if kind == "thread":
        return ThreadPoolExecutor(1)
    if kind == "process":
        return ProcessPoolExecutor(1)
    from django_executors.dask import DaskExecutor  # seconds that the fast tier need not wait

    return DaskExecutor(n_workers=1, threads_per_worker=1)


@contextlib.contextmanager
def made_once() -> Iterator[Callable[[str], Any]]:
    """Yield a function that returns the executor of a kind, made when it is first asked for."""
    made: dict[str, Any] = {}

    def find(kind: str) -> Any:
        if kind not in made:
            made[kind] = make(kind)
        return made[kind]

    yield find
    for executor in made.values():
        executor.shutdown()
    collect_sockets()


def collect_sockets() -> None:
    """Collect those that Dask leaves to the collector."""
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()
