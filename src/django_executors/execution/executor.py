"""What all executors of this library have in common."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from . import deferred, mapping
from .stats import ExecutorStats

P = ParamSpec("P")
R = TypeVar("R")


class Executor(concurrent.futures.Executor):
    """`map` as on Python 3.14, on every Python, `submit_on_commit`, and what the reference lists."""

    #: How many threads of this process run its tasks at once, besides those that submit them.
    _most_workers = 0
    #: How many processes of its own on this machine do.
    _most_processes = 0

    def submit_on_commit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[R]:
        """Submit this call when the transaction has committed that the calling thread is in.

        That is the outermost `atomic`, on whatever alias; with several aliases in one, all of them.
        Outside of one it is submitted at once, as by `submit`. It is called with this moment's
        contextvars and language. `transaction.on_commit` has it run, so a test needs
        `captureOnCommitCallbacks(execute=True)` or pytest-django's fixture of that name; but here it is
        submitted also where another `on_commit` callback raises.

        The future is cancelled if the task is not submitted: at once when the transaction rolls back,
        or an inner `atomic` that this was called in, or its connection is closed. (As with `on_commit`,
        a savepoint of `transaction.savepoint()` does not count.) Done-callbacks then run in a thread of
        their own, not inside the caller's `atomic`; what they open is closed there. Until it is
        submitted, `cancel()` cancels it, and `stats()` does not count it. What `submit` raises at the
        commit is the future's exception: the commit has happened.

        Raises:
            DeadlockError: from the future's `result` and `exception`, in the calling thread and before
                the commit, with a timeout too: it could never come.
            SynchronousOnlyOperation: called in a coroutine, as Django's `on_commit`.
            TransactionManagementError: autocommit is switched off on an alias, outside of `atomic`.
            RuntimeError, QueueFull: as `submit`, where there is no transaction.
        """
        return deferred.submit_on_commit(self.submit, fn, *args, **kwargs)

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
        asked for. `iterables` are read by the threads that call this and ask for results. When an
        iteration that has begun ends, also by an error or a `break`, what has not begun is cancelled.
        While there is more to submit, the iterator keeps the executor.

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
        return mapping.results(self, fn, iterables, timeout, buffersize)

    if TYPE_CHECKING:  # the standard classes' `shutdown` comes after this one's would

        def shutdown(
            self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
        ) -> None: ...

    def _be_called(self, name: str) -> None:
        """Have logs call it so, where its threads' names do not."""

    def _why_useless(self) -> str | None:
        """Say why no task can run any more that could run in one that is made anew; None: it can."""
        # A private name of the standard pools': a process has died, an initializer has failed.
        why = getattr(self, "_broken", False)
        return str(why) if why else None

    def stats(self) -> ExecutorStats:
        """Return what was done so far, in numbers."""
        raise NotImplementedError
