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

from django_executors import ExecutorError
from django_executors.dask import DaskExecutor
from django_executors.execution import databases
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


def test_what_travels_and_what_is_refused(tmp_path: Path) -> None:
    """The submitter's databases do, without passwords; a worker that has others never runs a task."""
    password = connections.settings["default"]["PASSWORD"]
    assert password
    with cluster(tmp_path) as found:
        found.start_workers(1, 1)
        host, _, port = found.address.removeprefix("tcp://").partition(":")
        with used("default", NAME="other"):
            with (
                Recorder(host, int(port)) as recorder,
                DaskExecutor(f"tcp://127.0.0.1:{recorder.port}") as executor,
            ):
                assert executor.submit(tasks.database).result(60) == "other"
                said = bytes(recorder.said)
            assert b"tests.settings" in said
            assert password.encode() not in said
            with DaskExecutor(found.address) as executor:
                options = {**connections.settings["default"]["OPTIONS"], "sslpassword": "x"}
                for changes, refusal in (
                    ({"NAME": "app"}, r"it has other databases than the tasks are for: \['default'\]"),
                    ({"OPTIONS": options}, r"DATABASES\['default'\]\['OPTIONS'\]\['sslpassword'\] is n"),
                ):
                    with used("default", **changes), pytest.raises(ExecutorError, match=refusal):
                        executor.submit(tasks.database)
                assert executor.submit(tasks.database).result(60) == "other"
                found.start_workers(1, 1)  # it is set up before it runs a task
                assert set(executor.map(tasks.database_of, range(20))) == {"other"}


def test_what_others_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that others have set up is named; one that joins later is nobody's, and takes tasks."""
    with cluster(tmp_path) as found, distributed.Client(found.address, set_as_default=False) as client:
        old = found.start_workers(1, 1, nanny=False)
        with used("default", NAME="other"), DaskExecutor(found.address) as executor:
            assert executor.submit(tasks.database).result(60) == "other"
        (address,) = client.scheduler_info()["workers"]
        found.start_workers(1, 1)
        client.wait_for_workers(2)
        with DaskExecutor(found.address) as executor:
            answers = [executor.submit(tasks.database) for _ in range(20)]
            errors = {str(answer.exception(60)) for answer in answers} - {"None"}
            assert {answer.result() for answer in answers if not answer.exception()} <= {"app"}
            (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
            said = f"the worker {address} could not be set up for Django: it has other databases than"
            assert said in record.getMessage()
            assert all(error.startswith(said) for error in errors)
            old.terminate()
            old.wait(60)
            assert wait_until(lambda: len(client.scheduler_info()["workers"]) == 1, within=60)
            assert set(executor.map(tasks.database_of, range(20))) == {"app"}


def test_the_settings_of_others() -> None:
    """A process that has the settings of others already runs no task with them."""
    with pytest.raises(ImproperlyConfigured) as raised:
        databases.set_up_once("tests.settings_with_app", lambda: connections.settings)
    assert str(raised.value) == (
        "it has the settings of tests.settings, and the tasks are to run with tests.settings_with_app"
    )


def test_a_worker_without_the_library(tmp_path: Path) -> None:
    """Whoever submits reads what its machine needs."""
    (tmp_path / "django_executors").mkdir()
    broken = tmp_path / "django_executors" / "__init__.py"
    broken.write_text("raise ModuleNotFoundError('not here')")
    with cluster(tmp_path) as found, distributed.Client(found.address, set_as_default=False) as client:
        found.start_workers(1, 1, PYTHONPATH=str(tmp_path))
        client.wait_for_workers(1)
        with (
            DaskExecutor(found.address) as executor,
            pytest.raises(ExecutorError, match=r"ModuleNotFoundError\('not here'\)\. They need"),
        ):
            executor.submit(tasks.database)


def test_a_local_cluster() -> None:
    """When DATABASES changes there is another one; it takes the certificates that Dask makes for it."""
    security = distributed.Security.temporary()
    with DaskExecutor(n_workers=1, threads_per_worker=1, security=security) as executor:
        assert executor.submit(tasks.database).result(60) == "app"
        with used("default", NAME="other"):
            assert executor.submit(tasks.database).result(60) == "other"
        link = executor._link
        assert link is not None
        assert link._client.scheduler.address.startswith("tls://127.0.0.1:")


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
