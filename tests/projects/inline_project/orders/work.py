"""Code as projects have it: it hands work to pools, and knows nothing of tests."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, as_completed, wait

from django.db import close_old_connections, connection, connections, transaction

from django_executors import ThreadPoolExecutor

from .models import Order

POOL = ThreadPoolExecutor(2, "orders")


def add(name: str) -> str:
    return Order.objects.create(name=name).name


def submit() -> set[str]:
    """Use the pool of the module."""
    return {POOL.submit(add, "submitted").result(10)}


def pool_of_its_own() -> set[str]:
    """Make a pool, and wait for its end."""
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(add, f"number {number}") for number in range(5)]
    return {future.result() for future in futures}


def map_and_count() -> set[str]:
    """Write by `map`, then read by `map` what was written."""
    written = list(POOL.map(add, ["b", "a", "c"], timeout=10))
    assert written == ["b", "a", "c"]
    assert list(POOL.map(lambda name: Order.objects.filter(name=name).count(), written)) == [1, 1, 1]
    return set(written)


def callbacks() -> set[str]:
    """Write in done-callbacks, and close there."""

    def log(future: Future[str]) -> None:
        add(f"{future.result()} done")
        connection.close()

    future = POOL.submit(add, "task")
    future.add_done_callback(log)
    POOL.submit(int).add_done_callback(lambda _: close_old_connections())
    return {"task", "task done"}


def nested() -> set[str]:
    """Submit from a task to the same pool, and wait there."""

    def task() -> set[str]:
        futures = [POOL.submit(add, name) for name in ("left", "right")]
        assert not wait(futures, 10).not_done
        return {future.result() for future in as_completed(futures, 10)} | {add("parent")}

    return POOL.submit(task).result(10)


def raising() -> set[str]:
    """Write, then raise: without an `atomic` of the task's own, the row stays."""

    def task() -> None:
        add("before the error")
        raise LookupError("of the task")

    error = POOL.submit(task).exception(10)
    assert isinstance(error, LookupError)
    return {"before the error"}


def atomic() -> set[str]:
    """Commit in an `atomic` of the task's own, and roll back in another."""

    @transaction.atomic
    def task(name: str, *, fails: bool) -> None:
        add(name)
        if fails:
            raise LookupError("of the task")

    POOL.submit(task, "committed", fails=False).result(10)
    assert isinstance(POOL.submit(task, "rolled back", fails=True).exception(10), LookupError)
    return {"committed"}


def initializer() -> set[str]:
    """Write in a pool's initializer, and close there."""

    def initialize() -> None:
        add("initialized")
        connections.close_all()

    with ThreadPoolExecutor(1, initializer=initialize) as pool:
        return set(pool.map(add, ["first", "second"])) | {"initialized"}


def _closing(close: Callable[[], object]) -> set[str]:
    def task(name: str) -> str:
        try:
            return add(name)
        finally:
            close()

    with ThreadPoolExecutor(2) as pool:
        return set(pool.map(task, ["one", "two"])) | {POOL.submit(task, "three").result(10)}


def close_all() -> set[str]:
    """Close all connections at a task's end."""
    return _closing(connections.close_all)


def close_old() -> set[str]:
    """Close old connections at a task's end."""
    return _closing(close_old_connections)


ALL: tuple[Callable[[], set[str]], ...] = (
    submit,
    pool_of_its_own,
    map_and_count,
    callbacks,
    nested,
    raising,
    atomic,
    initializer,
    close_all,
    close_old,
)
