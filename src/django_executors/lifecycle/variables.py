"""The variables in which Django, asgiref and `decimal` keep what is activated.

Where these `Local`s keep it is private. To look into a variable costs next to nothing; to ask Django,
where nothing was ever set, would cost more than all else between two tasks. A variable that is not
where it was is asked for each time.
"""

from __future__ import annotations

import contextvars
import decimal
import threading
from typing import Protocol

import django.urls.base
from asgiref.sync import AsyncToSync
from django.conf import settings
from django.core.cache import caches as django_caches
from django.utils import timezone
from django.utils.translation import trans_real


class Variable(Protocol):
    """What is asked of a variable here: something other than None if it may be set."""

    def get(self, default: None, /) -> object: ...


class Unknown:
    """Stands for a variable that is not where it was."""

    def get(self, default: None, /) -> object:
        return object() if settings.configured else default


class Replaceable:
    """The variable of a `Local` that `override_settings` replaces."""

    def __init__(self, owner: object, name: str) -> None:
        self._names = vars(owner)
        self._name = name
        self._seen: tuple[object, Variable] = (None, Unknown())

    def get(self, default: None, /) -> object:
        seen, variable = self._seen  # at once: other threads replace it
        if (local := self._names.get(self._name)) is not seen:
            variable = variable_of(local)
            self._seen = (local, variable)
        return variable.get(default)


def variable_of(local: object) -> Variable:
    """Return the variable in which a `Local` keeps what it holds."""
    found = getattr(getattr(local, "_storage", None), "_data", None)
    return found if isinstance(found, contextvars.ContextVar) else Unknown()


async_executor = variable_of(getattr(AsyncToSync, "executors", None))
caches: Variable = Replaceable(django_caches, "_connections")
language: Variable = Replaceable(trans_real, "_active")
time_zone = variable_of(getattr(timezone, "_active", None))
urlconf = variable_of(getattr(django.urls.base, "_urlconfs", None))
script_prefix = variable_of(getattr(django.urls.base, "_prefixes", None))


def renew_locks() -> None:
    """In a forked child: a thread that is not here may have held the lock of one of the `Local`s."""
    owners = (
        (django_caches, "_connections"),
        (trans_real, "_active"),
        (timezone, "_active"),
        (django.urls.base, "_urlconfs"),
        (django.urls.base, "_prefixes"),
        (AsyncToSync, "executors"),
    )
    for owner, name in owners:
        kept_in = getattr(getattr(owner, name, None), "__dict__", {})
        for lock in kept_in.keys() & {"_lock", "_thread_lock"}:  # newer asgiref, and older
            kept_in[lock] = threading.RLock()


def is_anything_set() -> bool:
    """Tell whether anything but the script prefix may be set in the calling thread."""
    return not (
        async_executor.get(None)
        is caches.get(None)
        is language.get(None)
        is time_zone.get(None)
        is urlconf.get(None)
        is None
    )


def _find_precision() -> contextvars.ContextVar[decimal.Context]:
    """Return the variable of C code that has no name; on a Python built without it, one never set."""
    context = contextvars.Context()
    context.run(decimal.getcontext)
    return next(iter(context), contextvars.ContextVar("precision"))


precision = _find_precision()
