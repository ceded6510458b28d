"""What travels to a cluster and what does not, who may, and what a worker refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from django_executors import ExecutorError, remote
from django_executors.dask import DaskExecutor
from tests.support import certificates
from tests.support import process_tasks as tasks
from tests.support.clusters import cluster
from tests.support.proxy import Recorder
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")


@contextlib.contextmanager
def used(alias: str, **changes: Any) -> Iterator[None]:
    """Use another database than the settings have, as a test does."""
    entry = connections.settings[alias]
    before = dict(entry)
    connections.close_all()
    entry.update(changes)
    try:
        yield
    finally:
        entry.clear()
        entry.update(before)


REFUSED = "the worker {} could not be set up for Django: it has other databases than the tasks are for: "


def test_what_travels_and_what_is_refused(tmp_path: Path) -> None:
    """Where the databases are does, without passwords; a worker that has others never runs a task."""
    password = connections.settings["default"]["PASSWORD"]
    assert password
    with cluster(tmp_path) as found, distributed.Client(found.address, set_as_default=False) as client:
        old = found.start_workers(1, 1, nanny=False)
        host, _, port = found.address.removeprefix("tcp://").partition(":")
        with (
            used("default", NAME="other"),
            Recorder(host, int(port)) as recorder,
            DaskExecutor(f"tcp://127.0.0.1:{recorder.port}") as executor,
        ):
            assert executor.submit(tasks.database).result(60) == "other"
            said = bytes(recorder.said)
        assert b"tests.settings" in said
        assert password.encode() not in said
        (address,) = client.scheduler_info()["workers"]
        with DaskExecutor(found.address) as executor:
            error = executor.submit(tasks.database).exception(60)
            assert isinstance(error, ExecutorError)
            assert str(error) == REFUSED.format(address) + "['default']"
            found.start_workers(1, 1)  # nobody's, and takes tasks
            old.terminate()
            old.wait(60)
            assert wait_until(lambda: {*client.scheduler_info()["workers"]} - {address}, within=60)
            assert set(executor.map(tasks.database_of, range(20))) == {"app"}


def test_the_settings_of_others() -> None:
    """A process that has the settings of others already runs no task with them."""
    used = remote.used_here()
    assert used is not None
    with pytest.raises(ImproperlyConfigured) as raised:
        remote.set_up(used._replace(module="tests.settings_with_app"), may_move=False)
    assert str(raised.value) == (
        "it has the settings of tests.settings, and the tasks are to run with tests.settings_with_app"
    )


def test_missing_databases() -> None:
    """An alias that the worker's settings have not is named."""
    used = remote.used_here()
    assert used is not None
    with pytest.raises(ImproperlyConfigured, match=r"^its DATABASES has no 'elsewhere'$"):
        remote.set_up(used._replace(databases={"elsewhere": ("", "", "")}), may_move=True)


def test_a_worker_without_the_library(tmp_path: Path) -> None:
    """Its tasks have the error, and it goes on."""
    (tmp_path / "django_executors").mkdir()
    broken = tmp_path / "django_executors" / "__init__.py"
    broken.write_text("raise ModuleNotFoundError('not here')")
    with cluster(tmp_path) as found, distributed.Client(found.address, set_as_default=False) as client:
        found.start_workers(1, 1, PYTHONPATH=str(tmp_path))
        client.wait_for_workers(1)
        with DaskExecutor(found.address) as executor:
            error = executor.submit(tasks.database).exception(60)
            assert isinstance(error, ModuleNotFoundError)
            assert str(error) == "not here"


def test_a_local_cluster() -> None:
    """When DATABASES changes there is another one; it takes the certificates that Dask makes for it."""
    security = distributed.Security.temporary()
    with DaskExecutor(n_workers=1, threads_per_worker=1, security=security) as executor:
        assert executor.submit(tasks.database).result(60) == "app"
        with used("default", NAME="other"):
            assert executor.submit(tasks.database).result(60) == "other"
        assert executor._links[-1]._client.scheduler.address.startswith("tls://127.0.0.1:")


def test_tls(tmp_path: Path) -> None:
    """Who has a certificate of the authority's may submit; nobody else gets in."""
    ours, others = certificates.make(tmp_path / "ours"), certificates.make(tmp_path / "others")
    files = {"ca-file": "ca", "cert": "cert", "key": "key"}
    options = [f"--tls-{name}={ours[key]}" for name, key in files.items()]
    with cluster(tmp_path, "--protocol=tls", *options) as found:
        assert found.address.startswith("tls://")
        found.start_workers(1, 1)
        with DaskExecutor(found.address, security=_security(ours)) as executor:
            assert executor.submit(tasks.names).result(60) == []
        for address, security in (
            (found.address, _security(others)),
            (found.address.replace("tls:", "tcp:"), None),
        ):
            with (
                dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
                DaskExecutor(address, security=security) as executor,
                pytest.raises(OSError),
            ):
                executor.submit(tasks.names)


def _security(files: Mapping[str, str]) -> dict[str, Any]:
    return {
        "tls_ca_file": files["ca"],
        "tls_client_cert": files["cert"],
        "tls_client_key": files["key"],
        "require_encryption": True,
    }
