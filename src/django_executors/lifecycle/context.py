"""What a task inherits from the code that submitted it, and what it does not.

It runs in a copy of the submitter's contextvars: tracing, logging and error reporting see the request
that it belongs to. Language, time zone, URLconf and script prefix Django keeps in asgiref's `Local`,
which some versions of asgiref carry in a context and some do not; they are read and set by Django's
own functions. Two things in a context are not a task's to have: the submitter's cache clients, and
asgiref's routes, by which async code in the task would wait for the request's own thread for ever.

Where an event loop runs in the task's own thread, as by `asyncio.run`, its ORM calls run in a thread of
the worker's, not in the one that asgiref has for the whole process, which never ends and keeps its
connections. That holds for no other loop: what a task gives to the server's runs as without a pool.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import AsyncToSync, SyncToAsync
from django.conf import settings
from django.core.cache import caches
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation

from . import caching, guard, variables
from .holder import Holder, current_holder, in_task_of, next_serial
from .release import release

P = ParamSpec("P")
R = TypeVar("R")


#: What the variable held when the script prefix was last asked for, in which thread, and the answer.
_seen_prefix: tuple[object, int, str] = (None, 0, "/")


def _prefix(held: object) -> str:
    """Return the script prefix, which `django.setup()` sets, in the main thread: hence remembered."""
    global _seen_prefix
    if held is None:
        return "/"
    ident = threading.get_ident()
    seen_held, seen_in, seen = _seen_prefix  # at once: other threads replace it
    if held is not seen_held or ident != seen_in:
        seen = get_script_prefix()
        _seen_prefix = (held, ident, seen)
    return seen


#: In the copy of a context: what is to be done there before the task runs.
changes_to_come: contextvars.ContextVar[list[Callable[[], object]]] = contextvars.ContextVar(
    "django_executors.changes"
)


#: By which asgiref sends the synchronous code of coroutines to a thread of their request's.
_routes: list[contextvars.ContextVar[Any]] = [
    SyncToAsync.thread_sensitive_context,
    SyncToAsync.deadlock_context,
    AsyncToSync.async_single_thread_context,
]


def _copy() -> contextvars.Context:
    """Return a copy of the current context without asgiref's routes.

    They must be absent, not None: asgiref takes None for a chosen route.
    """
    copy = contextvars.copy_context()
    for route in _routes:
        if route in copy:
            break
    else:
        return copy
    context = contextvars.Context()
    for variable, value in copy.items():
        if variable not in _routes:
            context.run(variable.set, value)
    return context


def inherit() -> contextvars.Context:
    """Return a context for one task that is to be called as the calling thread would call it now."""
    context = _copy()
    # The script prefix alone is what `django.setup()` leaves in the main thread.
    if variables.is_anything_set() or _prefix(variables.script_prefix.get(None)) != "/":
        context.run(changes_to_come.set, _find_changes())
    return context


def _find_changes() -> list[Callable[[], object]]:
    changes: list[Callable[[], object]] = []
    if variables.async_executor.get(None) is not None:
        changes.append(_forget_executor)
    if variables.caches.get(None) is not None:
        changes.append(forget_caches)
    return changes + activated()


def activated() -> list[Callable[[], object]]:
    """Return what is to be called to have the calling thread's language, time zone, URLs and prefix."""
    changes: list[Callable[[], object]] = []
    if variables.language.get(None) is not None:
        language = translation.get_language()
        changes.append(
            translation.deactivate_all if language is None else partial(translation.activate, language)
        )
    if variables.time_zone.get(None) is not None and settings.configured:
        changes.append(partial(timezone.activate, timezone.get_current_timezone()))
    if variables.urlconf.get(None) is not None and (urlconf := get_urlconf()) is not None:
        changes.append(partial(set_urlconf, urlconf))
    if (prefix := _prefix(variables.script_prefix.get(None))) != "/":
        changes.append(partial(set_script_prefix, prefix))
    return changes


def _forget_executor() -> None:
    AsyncToSync.executors.current = None


def forget_caches() -> None:
    """Have whatever asks for a cache client next, in the current context, get a new one."""
    nothing: Any = None
    for alias in caches.settings if settings.configured else ():
        # Set before it is deleted: what another thread has put there newer versions of asgiref hide,
        # and give back to async code.
        caches[alias] = nothing
        del caches[alias]


def begin_worker(holder: Holder) -> None:
    """Prepare the calling worker for `run_in_worker`, when its initializer has run."""
    holder.context = _copy()
    holder.context.run(forget_caches)


def run(holder: Holder, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    """Call the task's function in the calling worker, in its context, which is the current one."""
    in_task_of.set(holder)
    if changes := changes_to_come.get(None):
        for change in changes:
            change()
        changes_to_come.set([])  # or a task that this one submits would do it again
    if (shared := variables.precision.get(None)) is not None:
        variables.precision.set(shared.copy())  # a copy of a context has the same `decimal.Context`
    try:
        return fn(*args, **kwargs)
    finally:
        # Of `sync_to_async` in this worker: a later task's `async_to_sync` would go to that loop.
        if loops := vars(SyncToAsync.threadlocal):
            loops.clear()
        if (thread := holder.async_thread) is not None:
            holder.async_thread = None
            with contextlib.suppress(RuntimeError):  # the interpreter exits: it has ended that thread
                thread.submit(_release_all).result()
            thread.shutdown()
        if holder.caches:
            for alias, error in caching.let_go(holder, others=True):
                guard.failures.append((f"{alias} (a cache)", holder.thread_name, error))


def run_in_caller(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a task's function in the thread that submits it, in a copy of its context."""
    holder = current_holder()
    start = next_serial()
    holder.inline_tasks += 1
    try:
        context = contextvars.copy_context()
        if (shared := variables.precision.get(None)) is not None:
            context.run(variables.precision.set, shared.copy())
        return context.run(fn, *args, **kwargs)
    finally:
        holder.inline_tasks -= 1
        # They are known in the copy only, and some are closed by nobody but the garbage collector.
        caching.let_go(holder, since=start, forget=holder.executor is None)


def _release_all() -> None:
    release(current_holder())


class _ProcessWideThread(concurrent.futures.Executor):
    """Where asgiref runs the ORM of event loops that have no route: in its one thread, or a worker's."""

    def __init__(self, asgirefs: concurrent.futures.Executor) -> None:
        self._asgirefs = asgirefs

    def submit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[R]:
        """Called by the event loop's thread, in the context of the coroutine that awaits it."""
        worker = in_task_of.get()
        if worker is None or worker is not current_holder() or worker.is_between_tasks():
            return self._asgirefs.submit(fn, *args, **kwargs)
        if worker.async_thread is None:
            worker.async_thread = concurrent.futures.ThreadPoolExecutor(
                1, initializer=_work_for, initargs=(worker,)
            )
        return worker.async_thread.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._asgirefs.shutdown(wait, cancel_futures=cancel_futures)


def _work_for(worker: Holder) -> None:
    current_holder().works_for = worker


SyncToAsync.single_thread_executor = _ProcessWideThread(SyncToAsync.single_thread_executor)  # type: ignore[assignment]
