"""`map`: results in the order of the items, with no more of them submitted than a buffer holds."""

from __future__ import annotations

import concurrent.futures
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

R = TypeVar("R")

_Futures = deque[concurrent.futures.Future[R]]


def results(
    executor: concurrent.futures.Executor,
    fn: Callable[..., R],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    buffersize: int | None,
) -> Iterator[R]:
    """See `Executor.map`."""
    _check(buffersize)
    deadline = None if timeout is None else time.monotonic() + timeout
    futures: _Futures[R] = deque()
    submitted = (executor.submit(fn, *arguments) for arguments in zip(*iterables, strict=False))
    try:
        # One by one, so that what was submitted is known if the next one fails.
        futures.extend(islice(submitted, buffersize))
    except BaseException:
        _cancel(futures)
        raise
    return _results(submitted, futures, deadline)


def _check(buffersize: object) -> None:
    if buffersize is not None:
        if isinstance(buffersize, bool) or not isinstance(buffersize, int):
            raise TypeError(f"buffersize must be an int or None, not {buffersize!r}")
        if buffersize < 1:
            raise ValueError(f"buffersize must be 1 or more, or None, not {buffersize!r}")


def _results(
    submitted: Iterator[concurrent.futures.Future[R]], futures: _Futures[R], deadline: float | None
) -> Generator[R]:
    try:
        while futures:
            # Before the wait, so that a worker has it meanwhile.
            futures.extend(islice(submitted, 1))
            yield _result(futures.popleft(), deadline)
    finally:
        _cancel(futures)


def _result(future: concurrent.futures.Future[R], deadline: float | None) -> R:
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()  # after a timeout
        del future  # which is in the error's traceback


def _cancel(futures: _Futures[R]) -> None:
    for future in futures:
        future.cancel()
