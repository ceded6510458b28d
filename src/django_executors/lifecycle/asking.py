"""Ask a server something, and wait for its answer no longer than until a deadline.

The drivers' own calls wait for as long as the network makes them. Where one lets us send and receive
apart, nothing waits for a network that has stalled: not a result, and no worker for ever.
"""

from __future__ import annotations

import select
import time
from typing import Any

from .postgresql import results


def can_ask(driver: Any) -> bool:
    """Tell whether this driver can send and receive apart: psycopg 3 and mysqlclient can."""
    return hasattr(driver, "pgconn") or hasattr(driver, "send_query")


def send(driver: Any, sql: bytes) -> None:
    """Send one statement, and do not wait."""
    if hasattr(driver, "pgconn"):
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
        results(driver.pgconn, deadline)
        return
    poll = select.poll()
    poll.register(driver.fileno(), select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError("the server did not answer in time")
    driver.read_query_result()
    driver.store_result()
