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

import asyncio
import concurrent.futures
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import AsyncToSync, SyncToAsync
from django.conf import settings
from django.core.cache import caches as django_caches
from django.core.signals import setting_changed
from django.db import connections
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation

from .connections import caches
from .connections.ledger import Holder, Watcher, current_holder, next_serial
from .connections.release import settle

P = ParamSpec("P")
R = TypeVar("R")

#: To be called in a task's context, before the task.
Changes = tuple[Callable[[], object], ...]

#: By which asgiref sends the synchronous code of coroutines to a thread of their request's.
_ROUTES: tuple[contextvars.ContextVar[Any], ...] = (
    SyncToAsync.thread_sensitive_context,
    SyncToAsync.deadlock_context,
    AsyncToSync.async_single_thread_context,
)


def copy() -> contextvars.Context:
    """Return a copy of the current context without asgiref's routes.

    They must be absent, not None: asgiref takes None for a chosen route.
    """
    copied = contextvars.copy_context()
    a, b, c = _ROUTES
    if not (a in copied or b in copied or c in copied):
        return copied
    context = contextvars.Context()
    for variable, value in copied.items():
        if variable not in _ROUTES:
            context.run(variable.set, value)
    return context


class _Variables:
    """The variables in which Django and asgiref keep what is activated.

    To look into a variable costs next to nothing; to ask Django costs more than all else between two
    tasks. Where these `Local`s keep it is private, so it is found out: something is set in an empty
    context. They are others after `override_settings`.
    """

    def __init__(self) -> None:
        self.with_settings = settings.configured
        self.activated = (
            _variable_set_by(translation.deactivate_all) if self.with_settings else _UNUSED,
            _variable_set_by(timezone.activate, "UTC"),
            _variable_set_by(set_urlconf, "urls"),
            _variable_set_by(set_script_prefix, "/"),
        )
        self.async_executor = _variable_set_by(setattr, AsyncToSync.executors, "current", None)
        self.caches = _variable_set_by(django_caches.__setitem__, "default", None)


def _variable_set_by(fn: Callable[..., object], *args: Any) -> contextvars.ContextVar[object]:
    context = contextvars.Context()
    context.run(fn, *args)
    return next(iter(context), _UNUSED)


_UNUSED: contextvars.ContextVar[object] = contextvars.ContextVar("unused")
_NOTHING = (None, None, None, None)
_variables: _Variables | None = None

#: For each thread: what the variables held when Django was last asked, and what there was to change.
_local = threading.local()


def inherited() -> Changes:
    """Return what is to be called in another thread to have there what is activated here."""
    global _variables
    variables = _variables
    if variables is None or (not variables.with_settings and settings.configured):
        variables = _variables = _Variables()
    a, b, c, d = variables.activated
    held = (a.get(None), b.get(None), c.get(None), d.get(None))
    changes: Changes = ()
    if held != _NOTHING:
        seen, changes = getattr(_local, "seen", (_NOTHING, ()))
        if held != seen:
            changes = _find_changes()
            _local.seen = held, changes
    if variables.caches.get(None) is not None:
        changes = (caches.forget_all, *changes)
    if variables.async_executor.get(None) is not None:
        changes = (_forget_executor, *changes)
    return changes


def _find_changes() -> Changes:
    changes: list[Callable[[], object]] = []
    if settings.configured:
        language = translation.get_language()
        if language is None:
            changes.append(translation.deactivate_all)
        elif language != settings.LANGUAGE_CODE:
            changes.append(partial(translation.activate, language))
        if (zone := timezone.get_current_timezone()) is not timezone.get_default_timezone():
            changes.append(partial(timezone.activate, zone))
    if (urlconf := get_urlconf()) is not None:
        changes.append(partial(set_urlconf, urlconf))
    if (prefix := get_script_prefix()) != "/":
        changes.append(partial(set_script_prefix, prefix))
    return tuple(changes)


def _forget(**kwargs: Any) -> None:
    global _variables, _local
    _variables, _local = None, threading.local()


setting_changed.connect(_forget, dispatch_uid="django_executors.context")


def _forget_executor() -> None:
    AsyncToSync.executors.current = None


#: What `sync_to_async` leaves in the thread that it has used.
_loops = SyncToAsync.threadlocal


def end(holder: Holder) -> None:
    """A task of the calling worker's has ended: so do the async code's thread, and its loops."""
    # Of `sync_to_async` in this worker: a later task's `async_to_sync` would go to that loop.
    if loops := _loops.__dict__:
        loops.clear()
    if holder.watchers:
        hide(*holder.watchers)
    if (thread := holder.async_thread) is not None:
        holder.async_thread = None
        with contextlib.suppress(RuntimeError):  # the interpreter exits: it has ended that thread
            thread.submit(_settle).result()
        thread.shutdown()


def _settle() -> None:
    settle(current_holder())


# Who sees the queries of tasks.

#: Those that see the queries of each task that is submitted here.
watchers: contextvars.ContextVar[tuple[Watcher, ...]] = contextvars.ContextVar(
    "django_executors.watchers", default=()
)
#: The task that runs here, where its queries are seen.
running: contextvars.ContextVar[Callable[..., object] | None] = contextvars.ContextVar(
    "django_executors.running", default=None
)


def begin_watching(watcher: Watcher) -> None:
    """Show it the queries of each task that is submitted from now on in this context."""
    watchers.set((*watchers.get(), watcher))


def end_watching(watcher: Watcher) -> None:
    watchers.set(tuple(each for each in watchers.get() if each is not watcher))


def watched() -> Changes:
    """Return what is to be called in another thread to have a task's queries seen."""
    found = tuple(each for each in watchers.get() if not each.is_over)
    return (partial(_watch, found),) if found else ()


def _watch(found: tuple[Watcher, ...]) -> None:
    watchers.set(found)
    running.set(current_holder().task)
    show(*found)


def show(*found: Watcher) -> None:
    """Show them the queries of the calling thread."""
    holder = current_holder()
    holder.be_watched((*holder.watchers, *found))  # those that are made from now on
    for wrapper in connections.all(initialized_only=True):
        for watcher in found:
            watcher.watch(wrapper)


def hide(*found: Watcher) -> None:
    """Show them none of the calling thread's any more."""
    holder = current_holder()
    holder.be_watched(tuple(each for each in holder.watchers if each not in found))
    for wrapper in connections.all(initialized_only=True):
        for watcher in found:
            watcher.unwatch(wrapper)


def run_in_caller(
    context: contextvars.Context,
    named: Callable[..., object],
    fn: Callable[..., R],
    *args: Any,
    **kwargs: Any,
) -> R:
    """Call a task's function in the thread that submits it, in this context."""
    holder = current_holder()
    start = next_serial()
    holder.inline_tasks += 1
    if found := watchers.get():
        context.run(watchers.set, found)
        context.run(running.set, named)
    try:
        return context.run(fn, *args, **kwargs)
    finally:
        holder.inline_tasks -= 1
        # They are known in the copy only, and some are closed by nobody but the garbage collector.
        caches.let_go(holder, since=start, forget=holder.executor is None)


def runs_event_loop() -> bool:
    """Return whether an event loop runs in the calling thread that must not be blocked."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")  # which is set in notebooks


class _ProcessWideThread(concurrent.futures.Executor):
    """Where asgiref runs the ORM of event loops that have no route: in its one thread, or a worker's."""

    def __init__(self, asgirefs: concurrent.futures.Executor) -> None:
        self._asgirefs = asgirefs

    def submit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[R]:
        """Called by the event loop's thread."""
        worker = current_holder()
        if worker.task is None:
            return self._asgirefs.submit(fn, *args, **kwargs)
        if worker.async_thread is None:
            worker.async_thread = concurrent.futures.ThreadPoolExecutor(
                1, initializer=_work_for, initargs=(worker,)
            )
        return worker.async_thread.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._asgirefs.shutdown(wait, cancel_futures=cancel_futures)


def _work_for(worker: Holder) -> None:
    holder = current_holder()
    holder.works_for = worker
    holder.counts = worker.counts


SyncToAsync.single_thread_executor = _ProcessWideThread(SyncToAsync.single_thread_executor)  # type: ignore[assignment]


def ident_of_process_wide_thread() -> int:
    """Return the identifier of the thread in which asgiref runs the ORM of an asynchronous test."""
    return SyncToAsync.single_thread_executor.submit(threading.get_ident).result()
