"""What became of the tasks of this process."""

from __future__ import annotations

import copy
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from django.core.signals import setting_changed

if TYPE_CHECKING:
    from .compat import base

    Result = base.TaskResult[..., Any]


class Results:
    """What became of the tasks of one alias. What is in here is never changed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._results: dict[str, Result] = {}  # guarded by _lock
        self._finished: deque[str] = deque()  # guarded by _lock

    def add(self, result: Result) -> None:
        with self._lock:
            self._results[result.id] = result

    def get(self, result_id: str) -> Result | None:
        with self._lock:
            # A copy: `refresh` changes what it is called on.
            return copy.copy(self._results.get(result_id))

    def discard(self, result_id: str) -> None:
        with self._lock:
            self._results.pop(result_id, None)

    def change(self, result_id: str, **changes: Any) -> Result:
        """Put one in the place of this result that has these changes."""
        with self._lock:
            result = copy.copy(self._results[result_id])
            for name, value in changes.items():
                object.__setattr__(result, name, value)
            self._results[result_id] = result
            if result.is_finished:
                self._finished.append(result_id)
                while len(self._finished) > self._most:
                    self._results.pop(self._finished.popleft(), None)
        return result


#: By the alias in TASKS.
of_this_process: dict[str, Results] = {}


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "TASKS":
        of_this_process.clear()


setting_changed.connect(_forget, dispatch_uid="django_executors.backends")
os.register_at_fork(after_in_child=of_this_process.clear)  # they are the parent's
