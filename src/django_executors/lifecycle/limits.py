"""The ceiling on connections: how many the worker threads of this process hold at once.

A permit goes with a connection, not with a task: it is taken before Django connects, and given back
when the connection is closed, whatever closes it. Those who wait for one are served in turn.

No lock is ever waited for: a permit may be given back by a weak reference's callback, which may run at
any allocation, in the middle of what is done here.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from django_executors import conf
from django_executors.exceptions import ConnectionLimitTimeout

from .holder import Holder
from .naming import task_name


class Permit:
    """The right of one thread to one connection."""

    __slots__ = ("ceiling", "has_connected", "holder", "is_given", "reclaim", "since")

    def __init__(self, ceiling: Ceiling, holder: Holder) -> None:
        self.ceiling = ceiling
        self.holder = holder
        self.since = time.monotonic()
        #: Until then it is for a connection that is just being opened.
        self.has_connected = False
        self.is_given = threading.Lock()  # released when it is, or when it does not wait any more
        self.is_given.acquire()
        #: Set while its connection is kept for a task to come: closes it, and tells whether it has, or
        #: a task has just taken it up. Any thread may call it.
        self.reclaim: Callable[[], bool] | None = None

    def wait(self, timeout: float) -> bool:
        """Tell whether it was given within that many seconds."""
        if not self.is_given.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            return False
        self.is_given.release()
        return True

    def give_back(self) -> None:
        """Any thread may call this, and again."""
        self.ceiling.take_back(self)

    def __str__(self) -> str:
        task = self.holder.task
        return (
            f"thread={self.holder.thread_name} executor={self.holder.executor} "
            f"task={None if task is None else task_name(task)} age={time.monotonic() - self.since:.1f}s"
        )


class Ceiling:
    """The permits for one alias."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.most = 0
        self._given: dict[Permit, None] = {}
        self._waiting: deque[Permit] = deque()
        #: Held by the one thread that gives permits now.
        self._giving = threading.Lock()

    def is_wanted(self) -> bool:
        """Tell whether anybody waits for a permit."""
        return bool(self._waiting)

    def wait_for(self, permit: Permit, timeout: float) -> None:
        """Wait until this permit is given, in turn, for at most that many seconds.

        Raises:
            ConnectionLimitTimeout: none became free.
        """
        self._waiting.append(permit)
        self._give()
        if not permit.wait(0):
            self._reclaim_one()
            if not permit.wait(timeout) and self._stop_waiting(permit):
                raise ConnectionLimitTimeout(self._why(timeout))
        permit.since = time.monotonic()

    def take_back(self, permit: Permit) -> None:
        self._stop_waiting(permit)  # an interruption may have ended the waiting
        self._given.pop(permit, None)
        self._give()

    def _give(self) -> None:
        """Give out what there is. Another thread that does so looks again when it is done."""
        while self._is_there_one() and self._giving.acquire(blocking=False):
            try:
                while self._is_there_one():
                    permit = self._waiting.popleft()
                    self._given[permit] = None
                    permit.is_given.release()
            except IndexError:  # it has just stopped waiting
                pass
            finally:
                self._giving.release()

    def _is_there_one(self) -> bool:
        return bool(self._waiting) and len(self._given) < self.most

    def _stop_waiting(self, permit: Permit) -> bool:
        """Return False if it was given at the last moment, or before."""
        if not permit.is_given.locked():
            return False
        try:
            self._waiting.remove(permit)
        except ValueError:
            permit.wait(1.0)  # that thread is about to say so
            return False
        permit.is_given.release()
        return True

    def _reclaim_one(self) -> None:
        for permit in self._given.copy():
            if (reclaim := permit.reclaim) is not None and reclaim():
                return

    def _why(self, waited: float) -> str:
        given = self._given.copy()
        said = (
            f"alias={self.alias} waited {waited} s for a connection: "
            f"EXECUTORS_MAX_CONNECTIONS={self.most} held={len(given)} waiting={len(self._waiting) + 1}"
        )
        return "\n".join([said, *map(str, given)])


_ceilings: dict[str, Ceiling] = {}


def permit_for(alias: str, holder: Holder) -> Permit | None:
    """Return what this thread has to wait for before it connects; None if nothing limits it.

    Raises:
        ImproperlyConfigured: a setting is wrong.
    """
    most = conf.current().max_connections.get(alias)
    if most is None:
        return None
    ceiling = _ceilings.setdefault(alias, Ceiling(alias))
    ceiling.most = most
    return Permit(ceiling, holder)


# In a forked child the parent's permits are not counted.
os.register_at_fork(after_in_child=_ceilings.clear)
