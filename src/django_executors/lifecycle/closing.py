"""Close one connection for good, whatever state it is in."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from .inspection import is_open, is_pooled

#: The most seconds that the end of a connection waits for another thread that uses it.
_PATIENCE = 1.0


def close_for_good(wrapper: BaseDatabaseWrapper, *, dirty: bool) -> BaseException | None:
    """Close what this wrapper holds, in the thread that owns it, and return what went wrong.

    A connection of Django's pool goes back to the pool, closed first if it is dirty, so that the
    pool replaces it. Nothing is raised: the callers are at the end of a task, which must not get
    this error in the place of its own result, or of a thread, which has nobody to give it to.
    """
    driver: Any = wrapper.connection
    try:
        if is_pooled(wrapper):
            if dirty and driver is not None:
                _finish(driver)
            wrapper.close()
        else:
            with _alone(driver):
                wrapper.close()
    except BaseException as error:  # noqa: BLE001 - returned
        _drop(wrapper, driver)
        return error
    if dirty and is_open(wrapper):  # Django never closes SQLite in memory.
        _drop(wrapper, driver)
    return None


def _drop(wrapper: BaseDatabaseWrapper, driver: Any) -> None:
    """Close the driver's connection behind the wrapper's back."""
    with contextlib.suppress(BaseException):  # the first error is the one that is told
        # Private names of psycopg's, which Django uses too. The pool sets it to None when it has the
        # connection back.
        if (pool := getattr(driver, "_pool", None)) is not None:
            _finish(driver)
            pool.putconn(driver)
        elif not hasattr(driver, "_pool"):
            close_driver(driver)
    wrapper.connection = None


def close_driver(driver: Any) -> None:
    """Close the connection of a driver that no wrapper has, and no pool."""
    with _alone(driver):
        driver.close()


def _finish(driver: Any) -> None:
    # Not close(): a pool with close_returns takes that for «put it back».
    with _alone(driver):
        driver.pgconn.finish()


@contextlib.contextmanager
def _alone(driver: Any) -> Iterator[None]:
    """Let no other thread close a cursor of this psycopg connection while the calling one closes it.

    The calling thread may: the collector, which runs at any moment, finds cursors, and a backend's own
    `close()` may end a transaction. Hence a lock that is reentrant takes the place of psycopg's.
    """
    if not hasattr(driver, "pgconn"):
        yield
        return
    lock, reentrant = driver.lock, threading.RLock()
    with reentrant:
        driver.lock = reentrant
        # If it is not free after that time, a suspended generator has it, and no thread is at work.
        is_free = lock.acquire(timeout=_PATIENCE)
        try:
            yield
        finally:
            if is_free:
                lock.release()
