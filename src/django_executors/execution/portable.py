"""What a task takes along to another process: what of its submitter's context can be pickled.

A context cannot be pickled, nor can its variables. One that is an attribute of a module is found again
by that name. Each value is pickled by itself, and what cannot be, on either side, stays behind: the
request of a tracer, a lock, a client of a cache.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import pickle
import sys
from collections.abc import Callable
from functools import partial

from django_executors import context

#: Pickled one by one: what is to be called in the other process.
Carried = tuple[bytes, ...]

#: A variable's module and its name there; None: it has none.
_places: dict[contextvars.ContextVar[object], tuple[str, str] | None] = {}


def pack() -> Carried:
    """Return what of the calling thread's context can be pickled."""
    found: list[Callable[[], object]] = [*context.inherited()]
    for variable, value in contextvars.copy_context().items():
        if variable not in _places:
            _places[variable] = _find(variable)
        if (place := _places[variable]) is not None:
            found.append(partial(_set, *place, value))
    carried = []
    for each in found:
        with contextlib.suppress(Exception):  # of whatever class
            carried.append(pickle.dumps(each))
    return tuple(carried)


def unpack(base: contextvars.Context, carried: Carried) -> contextvars.Context:
    """Return a context for one task: a copy of this one, and what is carried."""
    inherited = base.copy()
    for each in carried:
        with contextlib.suppress(Exception):
            inherited.run(pickle.loads(each))
    return inherited


def _find(variable: contextvars.ContextVar[object]) -> tuple[str, str] | None:
    for module_name, module in list(sys.modules.items()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable:
                return module_name, name
    return None


def _set(module: str, name: str, value: object) -> None:
    with contextlib.suppress(Exception):  # it may be another version, or not importable here
        getattr(importlib.import_module(module), name).set(value)
