"""Cancellations that are heard of where no code of the user's may run.

A transaction rolls back inside the `__exit__` of an `atomic`, and a done-callback that used the ORM
there would break it. So callbacks and waiters hear of it in a thread of their own. It begins before
there is anything to cancel: the news may come at any allocation, when no thread can be started.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from django_executors.lifecycle.scope import connection_scope

logger = logging.getLogger(__name__)

Future = concurrent.futures.Future[Any]

_News = tuple[Future, Sequence[Callable[[Future], object]]]


class _Messenger:
    """The thread, and what it has to deliver."""

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[_News | None] = queue.SimpleQueue()
        self._undelivered: list[Future] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None  # guarded by _lock

    def begin(self) -> None:
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="cancellations", daemon=True)
                thread.start()
                self._thread = thread

    def deliver(self, future: Future, callbacks: Sequence[Callable[[Future], object]]) -> None:
        self._undelivered.append(future)
        self._news.put((future, callbacks))

    def unfinished(self) -> list[str]:
        undelivered = len(self._undelivered)
        return [f"callbacks of {undelivered} cancelled futures"] if undelivered else []

    def end(self) -> None:
        """At the end of the process: return when all is delivered."""
        if self._thread is not None:
            self._news.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (news := self._news.get()) is not None:
            future, callbacks = news
            future.set_running_or_notify_cancel()  # or `wait` and `as_completed` sleep on
            with connection_scope():
                for callback in callbacks:
                    try:
                        # The standard class's way to call it now, and to log what it raises.
                        concurrent.futures.Future.add_done_callback(future, callback)
                    except BaseException:  # this thread is everybody's: it stays
                        logger.exception("a callback of a cancelled future wanted to end its thread")
            self._undelivered.remove(future)
            del news, future, callbacks


_messenger = _Messenger()


def begin() -> None:
    """Be ready to deliver. Before the first future is made that may have to be cancelled so."""
    _messenger.begin()


def deliver(future: Future, callbacks: Sequence[Callable[[Future], object]]) -> None:
    """Tell these callbacks, and who waits, that this future is cancelled. Takes no lock."""
    _messenger.deliver(future, callbacks)


def unfinished() -> list[str]:
    """Say what is not delivered yet."""
    return _messenger.unfinished()


def _after_fork_in_child() -> None:
    global _messenger
    _messenger = _Messenger()  # what is undelivered is the parent's


atexit.register(lambda: _messenger.end())
os.register_at_fork(after_in_child=_after_fork_in_child)
