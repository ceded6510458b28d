"""Where the cluster is."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import distributed
from distributed.comm.addressing import get_address_host_port

from django_executors.execution.remotework import check_may_start_processes

#: For how many seconds a task of an own cluster waits when all workers have died, and none comes back.
_NO_WORKERS_TIMEOUT = 30.0

#: A client, and its own cluster.
Connected = tuple[distributed.Client, distributed.LocalCluster | None]


class Place:
    """The address of a scheduler, or what an own cluster is to have.

    Raises:
        TypeError, ValueError: as `DaskExecutor` does.
    """

    def __init__(self, address: object, security: object, own: Mapping[str, Any]) -> None:
        if address is not None:
            _check_address(address)
            for name, value in own.items():
                if value is not None:
                    raise ValueError(f"{name}={value!r} is for an own cluster, without an address")
        _check_own(own)
        self._address = address
        self._security = _security(security)
        self._own = own

    def connect(self, name: str) -> Connected:
        """Return a client of the cluster, which is started if it is an own one, with that name."""
        cluster = None if self._address is not None else self._start(name)
        try:
            client = _Client(cluster or self._address, security=self._security, set_as_default=False)
        except BaseException:
            if cluster is not None:
                cluster.close()
            raise
        return client, cluster

    def _start(self, name: str) -> distributed.LocalCluster:
        check_may_start_processes()
        dashboard = self._own["dashboard_address"]
        # Dask has a server for its metrics there even without a dashboard: at whatever port is free.
        own = {**self._own, "dashboard_address": dashboard or "127.0.0.1:0"}
        try:
            cluster = distributed.LocalCluster(
                host="127.0.0.1",
                security=self._security,
                name=name,
                scheduler_kwargs={"dashboard": dashboard is not None},
                **own,
            )
        except RuntimeError as error:
            raise RuntimeError(
                f"the own cluster did not start: {error} Its workers import the main module: has it the "
                'line `if __name__ == "__main__":`?'
            ) from error
        scheduler: Any = cluster.scheduler
        scheduler.no_workers_timeout = _NO_WORKERS_TIMEOUT
        return cluster


class _Client(distributed.Client):
    """One that closes what there is of it when it cannot be made.

    Its thread would stay, and at exit the process would wait for ever.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        except BaseException:
            with contextlib.suppress(Exception):
                self.close()  # type: ignore[no-untyped-call]
            # A private name of Dask's: where nobody listens, it is closed, and its thread runs.
            if (runner := vars(self).get("_loop_runner")) is not None:
                runner.stop()
            raise


def _check_address(address: object) -> None:
    expected = "address must be a string, as in 'tcp://10.0.0.1:8786', or None, not"
    if not isinstance(address, str):
        raise TypeError(f"{expected} {address!r}")
    try:
        get_address_host_port(address)
    except ValueError as error:
        raise ValueError(f"{expected} {address!r}: {error}") from None


def _security(found: object) -> distributed.Security | None:
    if found is None or isinstance(found, distributed.Security):
        return found
    if not isinstance(found, Mapping):
        raise TypeError(
            f"security must be a distributed.Security, a dict of its arguments, or None, not {found!r}"
        )
    if unknown := found.keys() - {*distributed.Security.__slots__}:
        raise TypeError(
            f"security has the unknown key {', '.join(map(repr, sorted(unknown)))}: it takes "
            f"{', '.join(map(repr, distributed.Security.__slots__))}"
        )
    return distributed.Security(**found)


def _check_own(own: Mapping[str, object]) -> None:
    for name, value in own.items():
        if value is None:
            continue
        if name == "dashboard_address":
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a string, as in '127.0.0.1:8787', not {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int or None, not {value!r}")
        elif value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value!r}")
