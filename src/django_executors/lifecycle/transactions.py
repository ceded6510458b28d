"""The open transactions of a submitter: when they commit, and a warning inside them."""

from __future__ import annotations

import contextlib
import logging
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.asyncio import async_unsafe

from .holder import Holder
from .naming import task_name

logger = logging.getLogger(__name__)

#: What stands between a call of `submit` and the code that wants it.
_ON_THE_WAY = ("django_executors", "concurrent", "asyncio", "contextlib", "functools")

#: So many call sites are remembered: code may be made while a process runs.
_MOST = 1000

_warned: dict[tuple[str, int], object] = {}


def warn_if_open(holder: Holder, fn: Callable[..., Any]) -> None:
    """Log one warning for each call site that submits a task inside an `atomic`, a test's own aside."""
    aliases = [entry.alias for entry in holder.copied() if _is_in_atomic(entry.wrapper())]
    if not aliases:
        return
    site = _call_site()
    this = object()
    if len(_warned) >= _MOST:
        _warned.clear()
    if _warned.setdefault(site, this) is not this:
        return
    with contextlib.suppress(Exception):  # a log handler's own
        logger.warning(
            "task=%s alias=%s at=%s:%s submitted inside an open transaction: the worker does not see "
            "what this transaction has not committed, and may wait for its locks for ever: use "
            "submit_on_commit",
            task_name(fn),
            ",".join(sorted(aliases)),
            *site,
        )


def _is_in_atomic(wrapper: Any) -> bool:
    # Private names of Django's, by which `atomic(durable=True)` too leaves a TestCase's own out.
    return wrapper is not None and not all(block._from_testcase for block in wrapper.atomic_blocks)


def _call_site() -> tuple[str, int]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _ON_THE_WAY:
        frame = frame.f_back
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


@async_unsafe("You cannot call submit_on_commit from an async context - use sync_to_async.")
def uncommitted_here() -> list[BaseDatabaseWrapper]:
    """Return the calling thread's wrappers that have yet to commit what is done on them now.

    Of the transactions that a TestCase makes for its test, one: as for `on_commit`, that of "default".
    """
    found = [
        wrapper
        for wrapper in connections.all(initialized_only=True)
        if wrapper.in_atomic_block or not (wrapper.connection is None or wrapper.autocommit)
    ]
    own = [wrapper for wrapper in found if not wrapper.in_atomic_block or _is_in_atomic(wrapper)]
    return own or sorted(found, key=lambda wrapper: wrapper.alias != DEFAULT_DB_ALIAS)[:1]


class OnCommit:
    """What a wrapper's `on_commit` gets: told of the commit by Django's call, of a rollback by its end.

    Django throws it away when the transaction rolls back, or its savepoint, or the connection is closed;
    so its only reference is Django's. At most one of the two functions is called, once.
    """

    __slots__ = ("_told",)

    def __init__(self, committed: Callable[[], None], rolled_back: Callable[[], None]) -> None:
        self._told = [(committed, rolled_back)]

    def __call__(self) -> None:
        if self._told:  # a test may call what it has captured again
            self._told.pop()[0]()  # in no variable: an error's traceback may keep this frame

    def __del__(self) -> None:
        if self._told:
            self._told.pop()[1]()


def run_commit_hooks(reference: weakref.ref[BaseDatabaseWrapper]) -> None:
    """A transaction of this wrapper's has committed: run what was to run then.

    When a callback raises, Django forgets those that come after it. Ours run all the same.
    """
    wrapper = reference()
    assert wrapper is not None
    ours = [hook[1] for hook in wrapper.run_on_commit if isinstance(hook[1], OnCommit)]
    try:
        type(wrapper).run_and_clear_commit_hooks(wrapper)
    except BaseException:
        while ours:
            # What interrupts one does not interrupt the others: that transaction has committed.
            with contextlib.suppress(BaseException):
                ours.pop(0)()
        raise
