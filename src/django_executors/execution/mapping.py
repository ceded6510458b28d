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


class Executor(concurrent.futures.Executor):
    """What executors of this library have in common: the `map` of Python 3.14, on every Python."""

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Submit a call of `fn` for each item, and return an iterator over the results, in order.

        Tasks are submitted by this call; with a buffersize, so many, and one more each time a result is
        asked for. `iterables` are read by the threads that call this and ask for results. When the
        iteration ends, also by an error or a `break`, what has not begun is cancelled.

        Args:
            timeout: for how many seconds the results may take, from this call on; default None: as long
                as they take.
            chunksize: means nothing to threads, as in the standard class.
            buffersize: how many tasks are submitted ahead, as on Python 3.14. When you would want it:
                the items are many, or read from a database as they come. Default None: all at once.

        Raises:
            TimeoutError: a result was not there in time; from `next()`, as the tasks' own errors are.
            TypeError: buffersize is neither None nor an int.
            ValueError: buffersize is below 1.
            QueueFull: as `submit`; from `next()` too, with a buffersize.
            Exception: what an iterable has raised. Whatever is raised, what was queued is cancelled.
        """
        _check(buffersize)
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables, strict=False)
        futures: _Futures[R] = deque()
        try:
            # As each is submitted, so that what was is known if the next one fails.
            futures.extend(self.submit(fn, *arguments) for arguments in islice(calls, buffersize))
        except BaseException:
            _cancel(futures)
            raise
        # Whoever holds the results need not hold the executor.
        rest = None if buffersize is None else calls
        return _results(weakref.ref(self), fn, rest, futures, deadline)


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
