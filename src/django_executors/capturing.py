"""See the queries of a block of code and of the tasks that it submits, for tests."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, overload

from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.asyncio import async_unsafe

from . import context
from .connections import ledger
from .naming import task_name


class CapturedQueries(Sequence[dict[str, Any]]):
    """What `capture_queries()` returns: the queries, in the order in which they ended.

    Args:
        number: how many there must be at the end.
    """

    def __init__(self, number: int | None = None) -> None:
        self._number = number
        self._queries: list[dict[str, Any]] = []
        self.is_over = False

    @async_unsafe(
        "Queries cannot be captured in a coroutine, whose own run in another thread: do it in the "
        "synchronous function that you give to sync_to_async, or that calls async_to_sync."
    )
    def __enter__(self) -> CapturedQueries:
        context.begin_watching(self)
        context.show(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        context.end_watching(self)
        context.hide(self)
        self.is_over = True
        if exc_type is None and self._number is not None and len(self) != self._number:
            raise AssertionError(
                f"{len(self)} queries executed, {self._number} expected\nCaptured queries were:\n{self}"
            )

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._queries[index]

    def __len__(self) -> int:
        return len(self._queries)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._queries)

    def __str__(self) -> str:
        lines = (
            f"{number}. {query['sql']}" + (f"  ({query['task']})" if query["task"] else "")
            for number, query in enumerate(self._queries, 1)
        )
        return "\n".join(lines)

    def watch(self, wrapper: BaseDatabaseWrapper) -> None:
        """Called in the thread whose wrapper it is."""
        log = wrapper.queries_log
        if not isinstance(log, _Log):
            wrapper.queries_log = log = _Log(wrapper)
            wrapper.force_debug_cursor = True
        log.readers.append(self)

    def unwatch(self, wrapper: BaseDatabaseWrapper) -> None:
        log = wrapper.queries_log
        if isinstance(log, _Log) and self in log.readers:
            log.readers.remove(self)
            if not log.readers:
                log.restore(wrapper)

    def add(self, alias: str, query: dict[str, Any]) -> None:
        if not self.is_over:
            running = context.running.get()
            task = None if running is None else task_name(running)
            self._queries.append({**query, "alias": alias, "task": task})


class _Log(deque[dict[str, Any]]):
    """A wrapper's `queries_log`, to which Django appends each query, with readers.

    What connecting does itself is not read: inline, there is none.
    """

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        before = wrapper.queries_log
        super().__init__(before, before.maxlen)
        self.readers: list[CapturedQueries] = []
        self._before = before
        self._was_forced = wrapper.force_debug_cursor
        self._wrapper = weakref.ref(wrapper)

    def append(self, query: dict[str, Any]) -> None:
        super().append(query)
        wrapper = self._wrapper()
        if wrapper is not None and not ledger.is_connecting(wrapper):
            for reader in self.readers:
                reader.add(wrapper.alias, query)

    def restore(self, wrapper: BaseDatabaseWrapper) -> None:
        self._before.clear()
        self._before.extend(self)
        wrapper.queries_log = self._before
        if wrapper.force_debug_cursor:  # nobody else has switched it off meanwhile
            wrapper.force_debug_cursor = self._was_forced
