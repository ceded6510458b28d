"""A connection that one task has held for long is told of while it lasts: EXECUTORS_HOLD_WARNING.

As HikariCP's `leakDetectionThreshold`: once, with the stack of the thread that holds it, and once more
when it has come back. One thread looks at the ledger now and then; nothing else is done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_executors import conf
from django_executors.clock import Clock
from django_executors.naming import log, task_name

from . import ledger, release
from .ledger import OPEN, Entry, Holder, current_holder, stack_of

logger = logging.getLogger(__name__)

#: It looks so often within the time of the setting, and at least once a second.
_LOOKS = 10

_WHO = "alias=%(alias)s backend_pid=%(backend_pid)s executor=%(executor)s task=%(task)s"

_lock = threading.Lock()
_thread: threading.Thread | None = None  # guarded by _lock
_pid = os.getpid()


def watch() -> None:
    """Have connections watched from now on, if the setting says so.

    Raises:
        ImproperlyConfigured: it is wrong.
    """
    global _thread, _pid
    if conf.current().hold_warning is None:
        return
    if _pid != os.getpid():  # forked in C, where no handler runs
        _after_fork_in_child()
    if _thread is not None:
        return
    with _lock:
        if _thread is None:
            thread = threading.Thread(target=_watch, name="django_executors-holds", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started: another time
                thread.start()
                _thread = thread


def _watch() -> None:
    global _thread
    watched: dict[int, _Hold] = {}
    with contextlib.suppress(ImproperlyConfigured):  # by now
        while (seconds := conf.current().hold_warning) is not None:
            with contextlib.suppress(Exception):  # of a log handler of the project's
                _look(watched, seconds)
            threading.Event().wait(min(seconds / _LOOKS, 1.0))
    with _lock:
        _thread = None


class _Hold:
    """One connection, for as long as one task has it."""

    def __init__(self, entry: Entry, holder: Holder) -> None:
        self._ident = entry.holder.thread_ident
        self._fields = {
            "alias": entry.alias,
            "backend_pid": entry.backend_pid,
            "executor": holder.executor,
            "task": None if holder.task is None else task_name(holder.task),
        }
        self._since = Clock.monotonic()
        self._is_told = False

    def has_lasted(self, seconds: float) -> bool:
        return Clock.monotonic() - self._since >= seconds

    def tell(self) -> None:
        if self._is_told:
            return
        self._is_told = True
        self._log(
            "has held its connection for %(seconds)s s: call release_connections() before slow "
            "work%(stack)s",
            stack=stack_of(self._ident),
        )

    def end(self) -> None:
        if self._is_told:
            self._log("has given its connection back after %(seconds)s s")

    def _log(self, text: str, **more: str) -> None:
        fields: dict[str, Any] = {
            **self._fields,
            "seconds": round(Clock.monotonic() - self._since, 1),
            **more,
        }
        log(logger, logging.WARNING, f"{_WHO} {text}", **fields)


def _look(watched: dict[int, _Hold], seconds: float) -> None:
    held = {}
    for entry in ledger.all_entries():
        holder = entry.holder.worker
        if entry.state is OPEN and holder.executor is not None and holder.task is not None:
            held[entry.serial] = entry, holder  # a number of its own each time that a task takes it
    for serial in [*watched]:
        if serial not in held:
            watched.pop(serial).end()
    for serial, (entry, holder) in held.items():
        if serial not in watched:
            watched[serial] = _Hold(entry, holder)
        if watched[serial].has_lasted(seconds):
            watched[serial].tell()
    # A log handler of the project's may have used the ORM.
    release.release_since(current_holder(), 0)


def _after_fork_in_child() -> None:
    global _lock, _pid, _thread
    _lock, _pid, _thread = threading.Lock(), os.getpid(), None


os.register_at_fork(after_in_child=_after_fork_in_child)
