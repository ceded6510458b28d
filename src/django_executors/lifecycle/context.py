"""What a task inherits from the code that submitted it, and what it does not.

It runs in a copy of the submitter's contextvars: tracing, logging and error reporting see the request
that it belongs to. Language, time zone, URLconf and script prefix Django keeps in asgiref's `Local`,
which some versions of asgiref carry in a context and some do not; they are read and set by Django's
own functions. Two things in a context are not a task's to have: the submitter's cache clients, and
asgiref's routes, by which async code in the task would wait for the request's own thread for ever.
"""

from __future__ import annotations

import contextlib
import contextvars
import decimal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import django.urls.base
from asgiref.sync import AsyncToSync, SyncToAsync
from django.conf import settings
from django.core.cache import caches
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation
from django.utils.translation import trans_real

from . import caching, guard
from .holder import Holder, current_holder, next_serial
from .release import release

P = ParamSpec("P")
R = TypeVar("R")


def _variable(owner: object, name: str) -> contextvars.ContextVar[Any] | None:
    """Return the variable in which a `Local` of Django's is kept, or None if it is not where it was.

    These names of Django's and asgiref's are private. To look into the variable costs little; to ask
    Django, where nothing was ever set, would cost more than all else between two tasks.
    """
    found = getattr(getattr(getattr(owner, name, None), "_storage", None), "_data", None)
    return found if isinstance(found, contextvars.ContextVar) else None


_time_zone = _variable(timezone, "_active")
_urlconf = _variable(django.urls.base, "_urlconfs")
_script_prefix = _variable(django.urls.base, "_prefixes")
_executor = _variable(AsyncToSync, "executors")


#: What the variable held when the script prefix was last asked for, in which thread, and the answer.
_seen_prefix: tuple[object, int, str] = (None, 0, "/")


def _may_be_set(variable: contextvars.ContextVar[Any] | None) -> bool:
    return settings.configured if variable is None else variable.get(None) is not None


def _prefix() -> str:
    """Return the script prefix, which `django.setup()` sets, in the main thread: hence remembered."""
    global _seen_prefix
    held = _script_prefix and _script_prefix.get(None)
    ident = threading.get_ident()
    seen_held, seen_in, seen = _seen_prefix  # at once: other threads replace it
    if held is None or held is not seen_held or ident != seen_in:
        seen = get_script_prefix()
        _seen_prefix = (held, ident, seen)
    return seen


#: In the copy of a context: what is to be done there before the task runs.
_changes: contextvars.ContextVar[list[Callable[[], object]]] = contextvars.ContextVar(
    "django_executors.changes"
)


def inherit() -> contextvars.Context:
    """Return a context for one task that is to be called as the calling thread would call it now."""
    context = contextvars.copy_context()
    if changes := _find_changes():
        context.run(_changes.set, changes)
    return context


def _find_changes() -> list[Callable[[], object]]:
    changes: list[Callable[[], object]] = []
    if SyncToAsync.deadlock_context.get(False):
        changes.append(partial(SyncToAsync.deadlock_context.set, False))
    if (variable := AsyncToSync.async_single_thread_context).get(None) is not None:
        changes.append(partial(variable.set, None))  # type: ignore[arg-type]
    if _may_be_set(_executor):
        changes.append(_forget_executor)
    if _may_be_set(_variable(caches, "_connections")):  # override_settings replaces it
        changes.append(_forget_caches)
    if _may_be_set(_variable(trans_real, "_active")):  # likewise
        language = translation.get_language()
        changes.append(
            translation.deactivate_all if language is None else partial(translation.activate, language)
        )
    if settings.configured and _may_be_set(_time_zone):
        changes.append(partial(timezone.activate, timezone.get_current_timezone()))
    if _may_be_set(_urlconf) and (urlconf := get_urlconf()) is not None:
        changes.append(partial(set_urlconf, urlconf))
    if _may_be_set(_script_prefix) and (prefix := _prefix()) != "/":
        changes.append(partial(set_script_prefix, prefix))
    return changes


def _forget_executor() -> None:
    AsyncToSync.executors.current = None


def _forget_caches() -> None:
    nothing: Any = None
    for alias in caches.settings if settings.configured else ():
        # Set before it is deleted: what another thread has put there newer versions of asgiref hide,
        # and give back to async code.
        caches[alias] = nothing
        del caches[alias]


def begin_worker(holder: Holder) -> None:
    """Prepare the calling worker for `run_in_worker`, when its initializer has run."""
    holder.async_route = caching.AsyncRoute(holder)
    holder.context = contextvars.copy_context()
    holder.context.run(_forget_caches)


def run(holder: Holder, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    """Call the task's function in the calling worker, in its context, which is the current one."""
    # Where `asyncio.run` in a task sends Django's async ORM: to a thread of the worker's own, not to
    # the one that asgiref has for the whole process, which never ends and keeps its connections.
    SyncToAsync.thread_sensitive_context.set(holder.async_route)
    if changes := _changes.get(None):
        for change in changes:
            change()
        _changes.set([])  # or a task that this one submits would do it again
    _unshare()
    try:
        return fn(*args, **kwargs)
    finally:
        threads = SyncToAsync.context_to_thread_executor
        if threads and (thread := threads.pop(holder.async_route, None)) is not None:
            with contextlib.suppress(RuntimeError):  # the interpreter exits: it has ended that thread
                thread.submit(_release_all).result()
            thread.shutdown()
        if holder.caches:
            for alias, error in caching.let_go(holder, others=True):
                guard.failures.append((f"{alias} (a cache)", holder.thread_name, error))


def _unshare() -> None:
    """Give the copy of a context its own precision and flags: it has the same `decimal.Context`."""
    decimal.setcontext(decimal.getcontext().copy())


def run_in_caller(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a task's function in the thread that submits it, in a copy of its context."""
    holder = current_holder()
    start = next_serial()
    holder.inline_tasks += 1
    try:
        context = contextvars.copy_context()
        context.run(_unshare)
        return context.run(fn, *args, **kwargs)
    finally:
        holder.inline_tasks -= 1
        # They are known in the copy only, and some are closed by nobody but the garbage collector.
        caching.let_go(holder, since=start, forget=holder.executor is None)


def _release_all() -> None:
    release(current_holder())
