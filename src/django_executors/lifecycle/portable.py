"""What a task takes along to another process: what of its submitter's context can be pickled.

A context cannot be pickled, nor can its variables. One that is an attribute of a module is found again
by that name. Each value is pickled by itself, and what cannot be, on either side, stays behind: the
request of a tracer, a lock, a client of a cache.
"""

from __future__ import annotations

import contextlib
import contextvars
import decimal
import importlib
import pickle
import sys
from collections.abc import Callable
from functools import partial

from . import context, variables
from .holder import Holder, in_task_of

#: Pickled one by one: what is to be called in the other process.
Carried = tuple[bytes, ...]

#: A variable's module and its name there; None: it has none.
_places: dict[contextvars.ContextVar[object], tuple[str, str] | None] = {
    in_task_of: None,  # type: ignore[dict-item]
    context.changes_to_come: None,  # type: ignore[dict-item]
    variables.precision: None,  # type: ignore[dict-item]
}


def pack() -> Carried:
    """Return what of the calling thread's context can be pickled."""
    found: list[Callable[[], object]] = context.activated()
    precision = variables.precision.get(None)
    if precision is not None and not _is_as_made(precision):
        found.append(partial(decimal.setcontext, precision))
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


def unpack(holder: Holder, carried: Carried) -> contextvars.Context:
    """Return a context for one task of the calling worker: what its initializer left, and these."""
    changes: list[Callable[[], object]] = []
    for each in carried:
        with contextlib.suppress(Exception):
            changes.append(pickle.loads(each))
    inherited = holder.context.copy()
    inherited.run(context.changes_to_come.set, changes)
    return inherited


def _is_as_made(precision: decimal.Context) -> bool:
    made = decimal.DefaultContext
    return (
        precision.prec == made.prec
        and precision.rounding == made.rounding
        and precision.traps == made.traps
        and precision.Emax == made.Emax
        and precision.Emin == made.Emin
        and precision.capitals == made.capitals
        and precision.clamp == made.clamp
    )


def _find(variable: contextvars.ContextVar[object]) -> tuple[str, str] | None:
    for module_name, module in list(sys.modules.items()):
        if module is variables:  # they are in `context.activated`, or are no other process's
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable:
                return module_name, name
    return None


def _set(module: str, name: str, value: object) -> None:
    with contextlib.suppress(Exception):  # it may be another version, or not importable here
        getattr(importlib.import_module(module), name).set(value)
