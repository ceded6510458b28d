"""A clock that a test has frozen: connections are let go of, and waits end, as by the real one."""

from __future__ import annotations

import contextlib

import pytest
from freezegun import freeze_time

from django_executors import ThreadPoolExecutor
from django_executors.testing import drain
from tests.support.draining import query
from tests.support.gates import Gate
from tests.support.leaking import count, leaks, message_of, standing
from tests.support.observers import PostgresObserver
from tests.support.opened import assert_none_open
from tests.support.shutting import left

FAR = "2100-01-01"
#: A wait that never ends fails its test here.
bounded = pytest.mark.timeout(60)


@pytest.mark.parametrize("conn_max_age", [0, 600], indirect=True, ids="CONN_MAX_AGE={}".format)
@pytest.mark.usefixtures("conn_max_age")
def test_conn_max_idle(postgres: PostgresObserver) -> None:
    """What a task leaves under a frozen clock is closed in time after the freeze, without a task."""
    with ThreadPoolExecutor(1, conn_max_idle=0.5) as pool:
        with freeze_time(FAR):
            pool.submit(query).result(20)
        assert_none_open(postgres)


@bounded
@pytest.mark.usefixtures("idle_before_and_after")
def test_drain(gate: Gate) -> None:
    """`drain` ends at its timeout, with its error."""
    pool = ThreadPoolExecutor(1)
    pool.submit(gate)
    gate.wait_for()
    with freeze_time(FAR), pytest.raises(TimeoutError, match=r"^not idle after 0.3 seconds:"):
        drain(timeout=0.3)
    gate.open()


@bounded
@leaks
def test_assert_no_open_connections() -> None:
    """`assert_no_open_connections` ends at its timeout, with its error."""
    with contextlib.ExitStack() as stack, freeze_time(FAR):
        assert message_of(lambda: stack.enter_context(standing(count)), timeout=0.3)


@bounded
@pytest.mark.usefixtures("idle_before_and_after")
def test_shutdown(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """`shutdown(timeout=…)` ends at its deadline, with one record of what it has left."""
    pool = ThreadPoolExecutor(1)
    pool.submit(gate)
    gate.wait_for()
    with freeze_time(FAR):
        pool.shutdown(timeout=0.3)
    assert len(left(caplog)) == 1
    gate.open()
