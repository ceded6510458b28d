"""`map`: results in the order of the items, with no more of them submitted than a buffer holds."""

from __future__ import annotations

import concurrent.futures
import time
import weakref
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
    calls = zip(*iterables, strict=False)
    futures: _Futures[R] = deque()
    try:
        # As each is submitted, so that what was is known if the next one fails.
        futures.extend(executor.submit(fn, *arguments) for arguments in islice(calls, buffersize))
    except BaseException:
        _cancel(futures)
        raise
    # Whoever holds the results need not hold the executor.
    rest = None if buffersize is None else calls
    return _results(weakref.ref(executor), fn, rest, futures, deadline)


def _check(buffersize: object) -> None:
    if buffersize is not None:
        if isinstance(buffersize, bool) or not isinstance(buffersize, int):
            raise TypeError(f"buffersize must be an int or None, not {buffersize!r}")
        if buffersize < 1:
            raise ValueError(f"buffersize must be 1 or more, or None, not {buffersize!r}")


def _results(
    reference: weakref.ref[concurrent.futures.Executor],
    fn: Callable[..., R],
    rest: Iterator[tuple[Any, ...]] | None,
    futures: _Futures[R],
    deadline: float | None,
) -> Generator[R]:
    try:
        while futures:
            if (
                rest is not None
                and (executor := reference()) is not None
                and (arguments := next(rest, None)) is not None
            ):
                futures.append(executor.submit(fn, *arguments))
            executor = None
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
