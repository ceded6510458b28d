"""The boundary of one unit of work in a thread that the library does not own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import NoneType, TracebackType
from typing import ParamSpec, TypeVar, overload

from django.db.transaction import TransactionManagementError
from django.utils.asyncio import async_unsafe

from django_executors.arguments import check_decorated

from .ledger import current_holder, next_serial
from .release import release_since
from .wrapper import uncommitted

P = ParamSpec("P")
R = TypeVar("R")


class ConnectionScope:
    """What `connection_scope()` returns. It may be entered again and again, and by several threads."""

    __slots__ = ()

    @async_unsafe(
        "connection_scope cannot be entered while an event loop runs in this thread: the ORM would "
        "refuse to work in it. Use it in the function that you give to sync_to_async."
    )
    def __enter__(self) -> None:
        current_holder().scopes.append((self, next_serial()))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        holder = current_holder()
        for place in reversed(range(len(holder.scopes))):
            if holder.scopes[place][0] is self:
                _, start = holder.scopes.pop(place)
                interrupted = not isinstance(exc, (Exception, GeneratorExit, NoneType))
                release_since(holder, start, interrupted=interrupted)
                return
        raise RuntimeError("a connection_scope was left where it was not entered: nothing is closed")

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        return connection_scope(fn)


@overload
def connection_scope() -> ConnectionScope: ...
@overload
def connection_scope(fn: Callable[P, R], /) -> Callable[P, R]: ...
def connection_scope(fn: Callable[P, R] | None = None, /) -> ConnectionScope | Callable[P, R]:
    """Close, at its end, the database connections that were opened inside it, and nothing else.

    For threads that this library does not own: a `threading.Thread`, another library's pool, a
    consumer's callback. Tasks of an executor of this library need none. Like `atomic`, it is a
    context manager and a decorator, bare or called::

        threading.Thread(target=connection_scope(rebuild)).start()

        @connection_scope
        def rebuild(): ...

        with connection_scope():
            rebuild()

    It works on the calling thread. A connection that was open when the scope began is left as it is,
    whatever is done to it inside; one that was lent to the thread is left to its lender. Scopes
    nest: the inner one closes what was opened since the inner one began. A connection that is left
    in a transaction is closed all the same, which rolls back, with a warning in the log. Errors on
    closing are logged and replace nothing.

    Raises:
        TypeError: the decorated object is not callable, or is a coroutine or generator function,
            whose body would run after the scope's end.
        SynchronousOnlyOperation: entered while an event loop runs in this thread.
        RuntimeError: left in another thread, or in another task, than it was entered in, as a
            suspended generator may be.
    """
    if fn is None:
        return ConnectionScope()
    check_decorated("connection_scope", fn)

    @functools.wraps(fn)
    def scoped(*args: P.args, **kwargs: P.kwargs) -> R:
        with ConnectionScope():
            return fn(*args, **kwargs)

    return scoped


@async_unsafe(
    "release_connections() cannot be called while an event loop runs in this thread: call it in the "
    "synchronous function that uses the ORM."
)
def release_connections() -> None:
    """Give back the connections of the running task, before slow work that needs no database.

    Call it in a task, or inside a `connection_scope`, before a long computation or a call to a slow
    service. It closes what the calling thread has opened since the task (or the outermost scope)
    began, and what its worker had kept for the task; the next query simply opens a new one. Outside
    both it does nothing, so that a function may be called from a task and from a view: a view's
    connection is Django's to close. Connections that were lent to the thread are left to their
    lender.

    Raises:
        TransactionManagementError: inside `atomic`, or while a transaction begun by hand is open:
            giving back the connection would roll it back. Nothing is closed then.
        SynchronousOnlyOperation: called while an event loop runs in this thread.
    """
    holder = current_holder()
    if holder.unit is None:
        return
    for entry in holder.opened_since(holder.unit):
        wrapper = entry.wrapper()
        if wrapper is not None and (transaction := uncommitted(wrapper)) is not None:
            raise TransactionManagementError(
                f"release_connections() cannot be called with {transaction} on the connection "
                f"{wrapper.alias!r}: what is not committed would be lost"
            )
    release_since(holder, holder.unit, keep_wrappers=True)
