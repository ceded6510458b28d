"""What one thread holds, and what it is doing."""

from __future__ import annotations

import contextvars
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .caching import Client
    from .counting import ConnectionCounts
    from .ledger import Entry

#: The worker that runs the task whose context this is, or a copy of it.
in_task_of: contextvars.ContextVar[Holder | None] = contextvars.ContextVar(
    "django_executors.in_task_of", default=None
)

_serials = itertools.count(1)
_local = threading.local()


class Holder:
    """What one thread holds. Kept alive by the thread, and by the wrappers that it made."""

    __slots__ = (
        "__weakref__",
        "async_thread",
        "caches",
        "context",
        "counts",
        "entries",
        "executor",
        "inline_tasks",
        "pid",
        "scopes",
        "task",
        "thread_ident",
        "thread_name",
        "worker",
        "works_for",
    )

    def __init__(self, thread_ident: int) -> None:
        self.pid = os.getpid()
        self.thread_ident = thread_ident
        self.thread_name = _thread_name(self.thread_ident)
        #: The wrappers that this thread made, open or not, by id.
        self.entries: dict[int, Entry] = {}
        #: As a worker's initializer left it.
        self.context = contextvars.Context()
        #: The cache clients that this thread made and has not let go of, oldest first.
        self.caches: list[Client] = []
        #: Where the event loop of its task runs Django's ORM.
        self.async_thread: Executor | None = None
        #: The worker for whose tasks' event loops this thread runs the ORM.
        self.works_for: Holder | None = None
        #: How many tasks run in this thread because they were submitted in it, one in another.
        self.inline_tasks = 0
        #: The executor whose worker this thread is.
        self.executor: str | None = None
        #: What that executor has of this worker, and where its connections are counted.
        self.worker: Any = None
        self.counts: ConnectionCounts | None = None
        #: What it runs now.
        self.task: Callable[..., Any] | None = None
        #: The scopes that it is in, outermost first, and the serial numbers at which they began.
        self.scopes: list[tuple[object, int]] = []

    def is_between_tasks(self) -> bool:
        """Return whether this is a worker that runs no task now, as it is not in a forked child."""
        return self.executor is not None and self.task is None

    @property
    def in_charge(self) -> Holder:
        """Whoever lets go of what this thread makes."""
        return self.works_for or self

    @property
    def unit(self) -> int | None:
        """The serial number at which its unit of work began: what opened since belongs to it."""
        if self.task is not None and self.executor is not None:
            return 0
        return self.scopes[0][1] if self.scopes else None

    def opened_since(self, serial: int) -> list[Entry]:
        """Return what this thread opened since that serial number was drawn, oldest first."""
        found = (entry for entry in self.copied() if entry.serial > serial)
        return sorted(found, key=lambda entry: entry.serial)

    def copied(self) -> list[Entry]:
        """Return the entries as they are now: a collection may strike one out at any moment."""
        return list(self.entries.values())


def _thread_name(ident: int) -> str:
    # Not current_thread(): in a thread that `threading` did not start, it leaves a dummy for ever.
    return next((t.name for t in threading.enumerate() if t.ident == ident), f"thread-{ident}")


def current_holder() -> Holder:
    """Return the calling thread's holder."""
    try:
        return _local.holder  # type: ignore[no-any-return]
    except AttributeError:
        _local.holder = holder = Holder(threading.get_ident())
        return holder


def next_serial() -> int:
    """Return a number above all that were drawn before."""
    return next(_serials)
