"""What a type checker sees of the public names. Checked by mypy, never run."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from typing import assert_type

from django_executors import (
    ConnectionInfo,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)


def repeat(text: str, times: int = 1) -> str:
    return text * times


pool = ThreadPoolExecutor(4, "reports", initializer=release_connections, initargs=())
standard: concurrent.futures.ThreadPoolExecutor = pool

assert_type(pool.submit(repeat, "a", times=2), "concurrent.futures.Future[str]")
pool.submit(repeat, 5)  # type: ignore[arg-type]
assert_type(pool.map(repeat, ["a"], [1]), Iterator[str])

assert_type(connection_scope(repeat)("a", times=2), str)
assert_type(connection_scope()(repeat)("a", times=2), str)
with connection_scope():
    pass

assert_type(all_connections(), tuple[ConnectionInfo, ...])
assert_type(all_connections()[0].backend_pid, "int | None")
