"""Start a queryset's query in a worker, and use its rows as if it had been evaluated here.

Rails' `load_async` is where the idea is from: whoever uses rows that no worker has begun to load runs
the query, so that nobody waits behind a long queue.
"""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from django.db import connections
from django.utils.asyncio import async_unsafe

from .connections.ledger import all_entries, holds_permit
from .connections.wrapper import is_in_test_case, is_in_transaction, open_transaction
from .context import runs_event_loop

if TYPE_CHECKING:
    from django.db.models import QuerySet

    Q = TypeVar("Q", bound=QuerySet[Any])
else:  # Django's models take longer to import than all of this package
    Q = TypeVar("Q")


class RowsOf:
    """A task: run this query, and those of its `prefetch_related`. Its name says of which model."""

    def __init__(self, queryset: Any) -> None:
        self._queryset = queryset
        model = queryset.model
        self.__module__, self.__qualname__ = model.__module__, f"load({model.__qualname__})"

    def __call__(self) -> list[Any]:
        return list(self._queryset.all())  # no two threads may use one


class Loading(NamedTuple):
    """A query that is submitted."""

    future: concurrent.futures.Future[list[Any]]
    task: RowsOf
    #: Tells whether no worker is free for what is queued.
    is_behind: Callable[[], bool]

    def rows(self) -> list[Any]:
        """Wait for the rows; if no worker is free to begin, run the query here."""
        try:
            if not self.future.done() and self.is_behind():
                self.future.cancel()  # unless it has begun
            return self.future.result()
        except (concurrent.futures.CancelledError, concurrent.futures.BrokenExecutor):
            return self.task()
        finally:
            del self  # which is in the error's traceback


def load(queryset: Q, submit: Callable[[Callable[[], RowsOf]], Loading | None]) -> Q:
    """See `Executor.load`.

    Args:
        submit: submits the task that it is given the means to make; None: no worker is to run it.
    """
    found: Any = queryset
    _check(found)
    if isinstance(found, _Loaded) or vars(found)["_result_cache"] is not None:
        return queryset
    make = functools.partial(_task, found)
    if _is_in_transaction(found) or holds_permit(found.db) or (loading := submit(make)) is None:
        return found.all()  # type: ignore[no-any-return]
    return _Loaded.by(loading, found)  # type: ignore[no-any-return]


def _task(queryset: Any) -> RowsOf:
    to_run = queryset.using(queryset.db)
    vars(to_run)["_query"] = _own(to_run.query)
    return RowsOf(to_run)


def _own(query: Any) -> Any:
    """Return a copy that shares no subquery with this one, where that can be.

    Django compiles a query by changing it and changing it back, so no two threads may have one. Its own
    `clone` shares what is inside; that a query may be pickled is documented.
    """
    try:
        return pickle.loads(pickle.dumps(query))
    except Exception:  # noqa: BLE001 - of a value's own, of whatever class
        return query


def _check(queryset: Any) -> None:
    from django.db.models import QuerySet
    from django.db.models.manager import BaseManager
    from django.db.models.query import RawQuerySet

    if isinstance(queryset, RawQuerySet):
        raise TypeError(
            "load() takes no raw queryset, which is no QuerySet: use submit(list, queryset), and the "
            "future's result"
        )
    if not isinstance(queryset, QuerySet):
        add = ": add .all()" if isinstance(queryset, BaseManager) else ""
        raise TypeError(
            f"load() takes a QuerySet, as in Order.objects.all(), not a {type(queryset).__name__}{add}"
        )
    if queryset.query.select_for_update:
        raise TypeError(
            "load() takes no queryset with select_for_update(): the locks would be the worker's, and "
            "gone as soon as the rows are there"
        )


def _is_in_transaction(queryset: Any) -> bool:
    """Tell whether there are rows that only the calling thread's connection sees.

    A coroutine's ORM calls run in another thread. Nothing is in a transaction there when the coroutine
    runs, but in an asynchronous test: that of its TestCase.
    """
    wrappers = [
        each
        for each in connections.all(initialized_only=True)
        if is_in_transaction(each) or open_transaction(each)
    ]
    if runs_event_loop():
        found = (entry.wrapper() for entry in all_entries())
        wrappers += [each for each in found if each is not None and is_in_test_case(each)]
    aliases = {each.alias for each in wrappers}
    # What is prefetched may be from any alias.
    return bool(aliases) and (queryset.db in aliases or bool(queryset._prefetch_related_lookups))


class _Loaded:
    """What stands before a queryset's class where its rows come from a worker.

    Private names of Django's: `_result_cache`, where each method of a queryset's looks for its rows, and
    `_prefetch_done`; `_prefetch_related_lookups`; `_clone`, by which each one begins that is derived.
    """

    #: The queryset's own class.
    _plain: Any

    @classmethod
    def by(cls, loading: Loading, queryset: Any) -> Any:
        """Return a copy of this queryset whose rows come from there."""
        found = queryset.all()
        found.__class__ = _loaded(found.__class__)
        vars(found)["_loading"] = loading
        return found

    @property
    def _result_cache(self) -> Any:
        if "_loading" in vars(self):
            self._wait()
        return vars(self)["_result_cache"]

    @_result_cache.setter
    def _result_cache(self, rows: Any) -> None:
        vars(self).pop("_loading", None)
        vars(self)["_result_cache"] = rows

    @async_unsafe("You cannot wait for rows in an async context: use `async for`, or sync_to_async.")
    def _wait(self) -> None:
        mine = vars(self)
        loading = mine.get("_loading")
        if loading is None:  # another thread has come first
            return
        try:
            mine.update(_result_cache=loading.rows(), _prefetch_done=True)
        finally:  # after an error it is a queryset like any other, which tries again
            mine.pop("_loading", None)
            del loading

    def _clone(self, *args: Any, **kwargs: Any) -> Any:
        cloned: Any = super()._clone(*args, **kwargs)  # type: ignore[misc]
        cloned.__class__ = self._plain
        return cloned

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._clone(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        rows, evaluated = self._result_cache, self._clone()
        vars(evaluated).update(_result_cache=rows, _prefetch_done=rows is not None)
        return object.__new__, (self._plain,), evaluated.__getstate__()


@functools.cache
def _loaded(plain: Any) -> Any:
    metaclass: Any = type(plain)
    names = {"_plain": plain, "__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return metaclass(plain.__name__, (_Loaded, plain), names)
