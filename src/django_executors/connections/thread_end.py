"""The end of a thread: what it opened is closed in it, at once, without a garbage collection.

A value in a `threading.local` is dropped when its thread ends, in that thread, by reference count
alone; closing belongs in its `__del__`. (`weakref.finalize` and exit handlers run elsewhere or too
late.) There are ends at which it runs in another thread, or in a forked child: it acts only where
process and thread are the ones that it was made in, and is silent otherwise.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque

from . import caches, ledger
from .ledger import Holder
from .wrapper import is_open

#: What went wrong at the ends of threads, for a living one to log: (alias, thread name, error).
failures: deque[tuple[str, str, BaseException]] = deque(maxlen=100)

_local = threading.local()


class _ThreadEnd:
    """Closes, when its thread drops it, what that thread still holds."""

    __slots__ = ("_holder",)

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    def __del__(self) -> None:
        # Never log here: a log record asks for the current thread, and asking for one that has left
        # threading's books adds a dummy that stays in threading.enumerate() for ever.
        try:
            holder = self._holder
            if (
                sys.is_finalizing()
                or holder.pid != os.getpid()
                or holder.thread_ident != threading.get_ident()
            ):
                return
            for alias, why in caches.let_go(holder):
                failures.append((alias, holder.thread_name, why))
            for entry in holder.copied():
                wrapper = entry.wrapper()
                # A wrapper lent to other threads is their lender's to close.
                if wrapper is not None and entry.holds(wrapper) and not wrapper.allow_thread_sharing:
                    error = entry.close(wrapper, dirty=entry.why_dirty(wrapper) is not None)
                    if is_open(wrapper):  # SQLite in memory, which Django never closes
                        error = entry.close(wrapper, dirty=True)
                    if error is not None:
                        failures.append((entry.alias, holder.thread_name, error))
        except BaseException:  # noqa: BLE001 - the interpreter is being taken apart
            pass


def arm(holder: Holder) -> None:
    """Have the calling thread close what it holds when it ends."""
    if not hasattr(_local, "end"):
        _local.end = _ThreadEnd(holder)


def watch_every_thread() -> None:
    """Arm every thread of this process that opens a connection from now on."""
    ledger.on_open = arm


os.register_at_fork(after_in_child=failures.clear)
