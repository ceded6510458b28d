"""What became of the tasks of this process."""

from __future__ import annotations

import copy
import os
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from django.core.signals import setting_changed

from .compat import normalize_json

if TYPE_CHECKING:
    from .compat import base

    Result = base.TaskResult[..., Any]


class Results:
    """What became of the tasks of one alias. What is in here is never changed."""

    def __init__(self, most: int) -> None:
        self._most = most
        # Reentrant: a collection may run what uses a result.
        self._lock = threading.RLock()
        self._results: dict[str, Result] = {}  # guarded by _lock
        self._finished: deque[str] = deque()  # guarded by _lock
        #: Of those that wait for a commit.
        self._waiting: dict[str, Future[Any]] = {}

    def add(self, result: Result) -> None:
        with self._lock:
            self._results[result.id] = result

    def get(self, result_id: str) -> Result | None:
        waiting = self._waiting.get(result_id)
        if waiting is not None and waiting.cancelled():  # rolled back
            return None
        result = self._results.get(result_id)
        return None if result is None else copied(result)

    def wait(self, result_id: str, future: Future[Any]) -> None:
        """It waits for a commit, if it has not begun already; this is its task's future."""
        self._waiting[result_id] = future
        result = self._results.get(result_id)
        if result is None or result.enqueued_at is not None:
            self._waiting.pop(result_id, None)

    def discard(self, result_id: str) -> None:
        with self._lock:
            self._results.pop(result_id, None)
        self._waiting.pop(result_id, None)

    def retire(self) -> None:
        """In a forked child: a thread that is not here may have held the lock."""
        self._lock = threading.RLock()

    def change(self, result_id: str, **changes: Any) -> Result:
        """Put one in the place of this result that has these changes."""
        with self._lock:
            result = copy.copy(self._results[result_id])
            for name, value in changes.items():
                object.__setattr__(result, name, value)
            self._results[result_id] = result
            self._waiting.pop(result_id, None)
            if result.is_finished:
                self._finished.append(result_id)
                while len(self._finished) > self._most:
                    self._results.pop(self._finished.popleft(), None)
        return result


def copied(result: Result) -> Result:
    """Return a result that nobody else has, nor a list or dictionary in it: they can be changed."""
    found = copy.copy(result)
    for name in ("args", "kwargs", "_return_value"):
        object.__setattr__(found, name, normalize_json(getattr(result, name)))
    for name in ("errors", "worker_ids"):
        object.__setattr__(found, name, list(getattr(result, name)))
    return found


#: By the alias in TASKS.
of_this_process: dict[str, Results] = {}


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "TASKS":
        of_this_process.clear()


setting_changed.connect(_forget, dispatch_uid="django_executors.backends")


def _after_fork_in_child() -> None:
    for results in of_this_process.values():
        results.retire()
    of_this_process.clear()  # they are the parent's


os.register_at_fork(after_in_child=_after_fork_in_child)
