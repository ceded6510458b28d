"""The ceiling on connections: how many the worker threads of this process hold at once.

A permit goes with a connection, not with a task: it is taken before Django connects, and given back
when the connection is closed, whatever closes it. Those who wait for one are served in turn. One that
is only parked is closed for whoever waits.
"""

from __future__ import annotations

import os
import threading
from collections import deque

from django.db.backends.base.base import BaseDatabaseWrapper

from django_executors import conf, observing
from django_executors.clock import Clock
from django_executors.exceptions import ConnectionLimitTimeout
from django_executors.naming import task_name

from . import thread_end
from .ledger import PARKED, Entry, Holder, current_holder, lock, stack_of
from .wrapper import never_closes


class Permit:
    """The right of one thread to one connection."""

    __slots__ = ("_ceiling", "entry", "holder", "is_given", "since")

    def __init__(self, ceiling: Ceiling, entry: Entry, holder: Holder) -> None:
        self._ceiling = ceiling
        self.entry = entry
        self.holder = holder
        self.since = Clock.monotonic()
        self.is_given = False  # guarded by lock

    def give_back(self) -> None:
        """Any thread may call this, and again."""
        self._ceiling.take_back(self)

    def is_wanted(self) -> bool:
        """Tell whether somebody waits for one."""
        return self._ceiling.is_wanted()

    def __str__(self) -> str:
        task = self.holder.task
        return (
            f"thread={self.holder.thread_name} executor={self.holder.executor} "
            f"task={None if task is None else task_name(task)} age={Clock.monotonic() - self.since:.1f}s"
            f"{stack_of(self.entry.holder.thread_ident)}"
        )


class Ceiling:
    """The permits for one alias."""

    def __init__(self, alias: str, most: int) -> None:
        self._alias = alias
        self.most = most
        self._changed = threading.Condition(lock)
        self._given: dict[Permit, None] = {}  # guarded by lock
        self._waiting: deque[Permit] = deque()  # guarded by lock

    def is_wanted(self) -> bool:
        return bool(self._waiting)

    def waiting(self) -> int:
        return len(self._waiting)

    def wait_for(self, permit: Permit, timeout: float) -> None:
        """Wait until this permit is given, in turn, for at most that many seconds.

        Raises:
            ConnectionLimitTimeout: none became free.
        """
        with lock:
            self._waiting.append(permit)
            self._give()
            parked = None
            if not permit.is_given:
                parked = next((each.entry for each in self._given if each.entry.state is PARKED), None)
        if parked is not None:
            parked.close_parked()
        with lock:
            if not self._changed.wait_for(lambda: permit.is_given, min(timeout, threading.TIMEOUT_MAX)):
                self._waiting.remove(permit)
                raise ConnectionLimitTimeout(self._why(timeout))
        permit.since = Clock.monotonic()

    def take_back(self, permit: Permit) -> None:
        with lock:
            if permit in self._waiting:  # an interruption has ended the waiting
                self._waiting.remove(permit)
            if self._given.pop(permit, self) is None:
                self._give()

    def _give(self) -> None:
        while self._waiting and len(self._given) < self.most:
            permit = self._waiting.popleft()
            self._given[permit] = None
            permit.is_given = True
            self._changed.notify_all()

    def _why(self, waited: float) -> str:
        said = (
            f"alias={self._alias} waited {waited} s for a connection: "
            f"EXECUTORS_MAX_CONNECTIONS={self.most} held={len(self._given)} "
            f"waiting={len(self._waiting) + 1}"
        )
        return "\n".join([said, *map(str, self._given)])


_ceilings: dict[str, Ceiling] = {}


def wait_for_turn(entry: Entry, wrapper: BaseDatabaseWrapper) -> None:
    """Wait until the calling thread may connect, if a ceiling holds for it.

    It holds for each worker, for a thread in a `connection_scope` unless it is the main thread, and for
    the thread in which the event loop of a worker's task runs the ORM.

    Raises:
        ConnectionLimitTimeout: it had no turn.
        ImproperlyConfigured: a setting is wrong.
    """
    holder = current_holder()
    if entry.permit is not None or entry.holder is not holder:  # connecting anew, or lent to this thread
        return
    if holder.executor is None and holder.works_for is None:
        if not holder.scopes or holder.thread_ident == threading.main_thread().ident:
            return
        thread_end.arm(holder)  # nobody else releases it where the scope is never left
    most = conf.current().max_connections.get(entry.alias)
    if most is None or never_closes(wrapper):
        return
    for each in holder.copied():  # closed behind Django's back
        if each.permit is not None and not each.is_held():
            each.closed()
    with lock:
        ceiling = _ceilings.setdefault(entry.alias, Ceiling(entry.alias, most))
        ceiling.most = most
    entry.permit = permit = Permit(ceiling, entry, holder.worker)
    began, observer = permit.since, observing.observer
    try:
        ceiling.wait_for(permit, conf.current().connection_wait_timeout)
    except ConnectionLimitTimeout:
        if observer is not None:
            observer.had_no_turn(entry.alias)
        raise
    if observer is not None:
        observer.had_turn(entry.alias, permit.since - began)


def limits() -> dict[str, tuple[int, int]]:
    """Return of each alias that has a ceiling what that is, and how many wait for their turn.

    Raises:
        ImproperlyConfigured: a setting is wrong.
    """
    found = {}
    for alias, most in conf.current().max_connections.items():
        ceiling = _ceilings.get(alias)
        found[alias] = most, 0 if ceiling is None else ceiling.waiting()
    return found


# In a forked child the parent's permits are not counted.
os.register_at_fork(after_in_child=_ceilings.clear)
