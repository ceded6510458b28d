"""In the incident, unasked: when a server is full, the log says who holds this process's connections."""

from __future__ import annotations

import logging
import os
import threading

from django_executors.clock import Clock
from django_executors.naming import log

from .ledger import all_connections, stack_of

logger = logging.getLogger(__name__)

#: At most one record in so many seconds.
INTERVAL = 60.0

#: What PostgreSQL and PgBouncer say. An error on connecting has no SQLSTATE in psycopg.
_FULL = (
    "too many clients",
    "remaining connection slots",
    "too many connections for",
    "no more connections allowed",
)
#: MySQL: too many connections; the user's max_user_connections; the user's resource limit.
_FULL_NUMBERS = (1040, 1203, 1226)

_turn = threading.Lock()
_next = float("-inf")  # guarded by _turn


def note(alias: str, error: BaseException, now: float | None = None) -> None:
    """Log who holds what, if connecting failed because the server has no connection left.

    Args:
        now: default: this moment.
    """
    if not says_full(error) or not _turn.acquire(blocking=False):
        return
    global _next
    now = Clock.monotonic() if now is None else now
    try:
        if now < _next:
            return
        _next = now + INTERVAL
    finally:
        _turn.release()
    held = [
        f"alias={one.alias} thread={one.thread_name} executor={one.executor} task={one.task} "
        f"age={one.age:.1f}s backend_pid={one.backend_pid}{stack_of(one.thread_ident)}"
        for one in all_connections()
    ]
    log(
        logger,
        logging.ERROR,
        "alias=%(alias)s the server has no connection left (%(error)s); this process holds %(held)s"
        "%(holders)s",
        alias=alias,
        error=str(error).strip(),
        held=len(held),
        holders="".join(f"\n{line}" for line in held),
    )


def says_full(error: BaseException) -> bool:
    """Return whether this error says that a server has no connection left."""
    if error.args and error.args[0] in _FULL_NUMBERS:
        return True
    said = str(error)
    return any(words in said for words in _FULL)


def _after_fork_in_child() -> None:
    global _turn
    _turn = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
