"""One Django wrapper: what can be seen of its connection without a round trip, and its end.

The driver is asked, not the wrapper's `vendor`: CockroachDB's, for one, is PostgreSQL's driver under
another name. No driver is imported here.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

#: The most seconds that the end of a connection waits for another thread that uses it.
_PATIENCE = 1.0

# libpq's PGTransactionStatusType, by number.
_BROKEN = "a broken connection"
_TRANSACTION_STATES = (
    None,
    "a query in flight",
    "an open transaction",
    "a failed transaction",
    _BROKEN,
)


def is_open(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether this wrapper has a connection, as Django sees it."""
    return wrapper.connection is not None and not wrapper.closed_in_transaction


def never_closes(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether `close()` does nothing: SQLite in memory, which would be lost."""
    return wrapper.vendor == "sqlite" and wrapper.is_in_memory_db()  # type: ignore[attr-defined]


def is_pooled(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether this wrapper borrows its connection from Django's own pool."""
    return bool(wrapper.settings_dict["OPTIONS"].get("pool"))


def is_djangos(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether its class is Django's own. Another one may keep state where nobody looks."""
    return type(wrapper).__module__.startswith(("django.db.backends.", "django.contrib.gis.db."))


def most_pooled(wrapper: BaseDatabaseWrapper) -> int | None:
    """Return how many connections Django's own pool gives out at most; None if there is no such pool."""
    if wrapper.vendor != "postgresql" or not is_pooled(wrapper):
        return None
    options: Any = wrapper.settings_dict["OPTIONS"]["pool"]
    options = {} if options is True else options
    if not isinstance(options, Mapping):
        return None
    most = options.get("max_size") or options.get("min_size", 4)  # as psycopg_pool has it
    return most if isinstance(most, int) else None


def backend_pid(wrapper: BaseDatabaseWrapper) -> int | None:
    """Return the number by which the server knows this connection, where its driver tells."""
    driver: Any = wrapper.connection
    with contextlib.suppress(Exception):  # for a report: whatever a driver raises, there is none
        if hasattr(driver, "thread_id"):  # MySQL
            return int(driver.thread_id())
        return int(driver.info.backend_pid)
    return None


def open_transaction(wrapper: BaseDatabaseWrapper) -> str | None:
    """Say what transaction is open, or None. MySQL's driver cannot see one that was begun by hand."""
    if wrapper.in_atomic_block:
        return "an open atomic block"
    return None if wrapper.connection is None else _transaction(wrapper.connection)


def _transaction(driver: Any) -> str | None:
    if hasattr(driver, "pgconn"):  # psycopg 3
        return _TRANSACTION_STATES[driver.pgconn.transaction_status]
    if hasattr(driver, "get_transaction_status"):  # psycopg2
        return _TRANSACTION_STATES[driver.get_transaction_status()]
    if getattr(driver, "in_transaction", False):  # SQLite
        return "an open transaction"
    return None


def is_in_atomic(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether it is in an `atomic` that is not a test case's own."""
    # A private name of Django's, by which `atomic(durable=True)` too leaves a TestCase's own out.
    blocks: list[Any] = wrapper.atomic_blocks
    return not all(block._from_testcase for block in blocks)


def is_in_test_case(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether it is in an `atomic` of a test case."""
    blocks: list[Any] = wrapper.atomic_blocks  # see `is_in_atomic`
    return any(block._from_testcase for block in blocks)


def is_in_transaction(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether what is done on it now has yet to be committed."""
    return wrapper.in_atomic_block or not (wrapper.connection is None or wrapper.autocommit)


def has_ended(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether the server has gone away. MySQL's driver cannot tell: after an error, it is asked."""
    driver: Any = wrapper.connection
    if driver is None:
        return False
    if hasattr(driver, "thread_id"):
        return wrapper.errors_occurred and not wrapper.is_usable()
    return _transaction(driver) == _BROKEN


def uncommitted(wrapper: BaseDatabaseWrapper) -> str | None:
    """Say what would be lost by closing now, or may be, where the driver cannot tell; or None."""
    transaction = open_transaction(wrapper)
    if transaction == _BROKEN:
        return None
    if transaction is None and wrapper.vendor == "mysql" and not wrapper.autocommit:
        return "autocommit off"
    return transaction


def is_open_on_server(cursor: weakref.ref[Any]) -> bool:
    """Return whether this is a server-side cursor, by its name, still referenced and open."""
    found = cursor()
    return found is not None and getattr(found, "name", None) is not None and not found.closed


def why_dirty(wrapper: BaseDatabaseWrapper) -> str | None:
    """Say why this connection must not be used again, or None if nothing speaks against it."""
    try:
        if wrapper.in_atomic_block:
            return "an open atomic block"
        driver: Any = wrapper.connection
        if driver is None:
            return None
        if (transaction := _transaction(driver)) is not None:
            return transaction
        if wrapper.autocommit != wrapper.settings_dict["AUTOCOMMIT"]:
            return "autocommit changed"
        if hasattr(driver, "pgconn"):
            if driver.pgconn.pipeline_status:
                return "an open pipeline"
            # Held by a generator that somebody has suspended: the next query would wait for it.
            if driver.lock.locked():
                return "a generator in progress"
    except Exception:  # noqa: BLE001 - a driver that cannot tell
        return "an unknown state"
    return None


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
        # A private name of psycopg's, which Django uses too. The pool sets it to None when it has the
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
