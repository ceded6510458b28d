"""What is open in this process, as records."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .ledger import Entry, open_entries
from .naming import task_name


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One open connection of this process, as `all_connections` saw it.

    Attributes:
        alias: its name in `settings.DATABASES`.
        vendor: `"postgresql"`, `"mysql"`, `"sqlite"`, …
        backend_pid: the server's number for it (`pg_stat_activity.pid`, `PROCESSLIST.ID`), or None
            where the driver does not tell.
        thread_name: the thread that holds it.
        thread_ident: that thread's `threading.get_ident()`.
        age: seconds since it was opened.
        executor: the `thread_name_prefix` of the executor whose worker holds it, or None.
        task: the qualified name of the task that runs in that thread now, or None.
    """

    alias: str
    vendor: str
    backend_pid: int | None
    thread_name: str
    thread_ident: int
    age: float
    executor: str | None
    task: str | None


def all_connections() -> tuple[ConnectionInfo, ...]:
    """Return every open Django connection of this process, oldest first, whichever thread holds it.

    What `connections.all()` cannot see: that shows the calling thread's own. Open is meant as Django
    sees it: a connection that the server has killed counts until its thread notices. One that a
    worker keeps for its next task counts too, without a task. Connections that were open before
    `django_executors` was imported are not known until they next connect.

    Any thread may call this; it takes no lock, asks no server and keeps nothing alive.
    """
    now = time.monotonic()
    return tuple(info(entry, now) for entry in open_entries())


def info(entry: Entry, now: float) -> ConnectionInfo:
    """Return the record of one entry, at this moment by `time.monotonic()`."""
    holder, task = entry.holder, entry.holder.task
    return ConnectionInfo(
        alias=entry.alias,
        vendor=entry.vendor,
        backend_pid=entry.backend_pid,
        thread_name=holder.thread_name,
        thread_ident=holder.thread_ident,
        age=max(0.0, now - entry.opened_at),  # it may have connected anew meanwhile
        executor=holder.executor,
        task=None if task is None else task_name(task),
    )
