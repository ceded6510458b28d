"""Ask a server something, and wait for its answer no longer than until a deadline.

The drivers' own calls wait for as long as the network makes them. Where one lets us send and receive
apart, nothing waits for a network that has stalled: not a result, and no worker for ever.

psycopg serialises what threads do with one connection by its `lock`; libpq, below it, does not, and
crashes the process. So nothing here, or elsewhere in this library, uses a `PGconn` without that lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

# psycopg's ExecStatus and DiagnosticField, by number: no driver is imported here.
_COMMAND_OK, _TUPLES_OK = 1, 2
_SQLSTATE = 67
# «Operator intervention» and a time limit of the task's own making: no refusal to reset.
_INTERFERENCE = (b"57", b"25P")

# Looks into a socket without a wait, and so without giving the interpreter's lock away as `select`
# does: with eight busy workers, getting it back costs more than all else between two tasks.
_recv: Any = None
try:
    _recv = ctypes.PyDLL(None, use_errno=True).recv
    _recv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
except (AttributeError, OSError, TypeError):  # Windows
    pass
_byte = ctypes.create_string_buffer(1)  # nobody reads what is peeked at


def is_silent(fileno: int) -> bool:
    """Tell whether this socket is open and has nothing to read; False where nobody can tell."""
    return (
        _recv is not None
        and _recv(fileno, _byte, 1, _PEEK) < 0
        and ctypes.get_errno() in (errno.EAGAIN, errno.EWOULDBLOCK)
    )


def can_ask(driver: Any) -> bool:
    """Tell whether this driver can send and receive apart: psycopg 3 and mysqlclient can."""
    return hasattr(driver, "pgconn") or hasattr(driver, "send_query")


@contextlib.contextmanager
def locked(driver: Any, seconds: float) -> Iterator[None]:
    """Hold the lock of a psycopg connection.

    Raises:
        TimeoutError: another thread, or a suspended generator, has not let go of it in that time.
    """
    if not driver.lock.acquire(timeout=max(0.0, seconds)):
        raise TimeoutError("the connection is in use")
    try:
        yield
    finally:
        driver.lock.release()


def send(driver: Any, sql: bytes) -> None:
    """Send one statement, and do not wait.

    Raises:
        TimeoutError: another thread uses the connection.
    """
    if hasattr(driver, "pgconn"):
        with locked(driver, 0):
            driver.pgconn.send_query(sql)
            driver.pgconn.flush()
    else:
        driver.send_query(sql)


def receive(driver: Any, deadline: float) -> None:
    """Wait for the answer, until `deadline` by `time.monotonic()`.

    Raises:
        Exception: there was none, or it was an error.
    """
    if hasattr(driver, "pgconn"):
        with locked(driver, deadline - time.monotonic()):
            results(driver.pgconn, deadline)
        return
    _wait(driver.fileno(), select.POLLIN, deadline)
    driver.read_query_result()
    driver.store_result()


def results(pgconn: Any, deadline: float) -> list[Any]:
    """Wait for all results of what was sent, until the deadline; raise if one is an error.

    The caller has the connection's lock.
    """
    results: list[Any] = []
    unsent = pgconn.flush()
    pgconn.consume_input()  # most often all of it is there already
    while True:
        while pgconn.is_busy():
            _wait(pgconn.socket, select.POLLIN | (select.POLLOUT if unsent else 0), deadline)
            unsent = unsent and pgconn.flush()
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        if result.status not in (_COMMAND_OK, _TUPLES_OK):
            message = result.error_message.decode(errors="replace").strip()
            interfered = (result.error_field(_SQLSTATE) or b"").startswith(_INTERFERENCE)
            raise (ConnectionError if interfered else RuntimeError)(message)
        results.append(result)


def _wait(fileno: int, events: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(fileno, events)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError("the server did not answer in time")
