"""Close one connection for good, whatever state it is in."""

from __future__ import annotations

import contextlib
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from .inspection import is_open, is_pooled


def close_for_good(wrapper: BaseDatabaseWrapper, *, dirty: bool) -> BaseException | None:
    """Close what this wrapper holds, in the thread that owns it, and return what went wrong.

    A connection of Django's pool goes back to the pool, closed first if it is dirty, so that the
    pool replaces it. Nothing is raised: the callers are at the end of a task, which must not get
    this error in the place of its own result, or of a thread, which has nobody to give it to.
    """
    driver: Any = wrapper.connection
    try:
        if dirty and is_pooled(wrapper) and driver is not None:
            # Not close(): a pool with close_returns takes that for «put it back».
            driver.pgconn.finish()
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
            driver.pgconn.finish()
            pool.putconn(driver)
        elif not hasattr(driver, "_pool"):
            driver.close()
    wrapper.connection = None
