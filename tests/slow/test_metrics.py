"""The multiprocess mode of Prometheus's client, under a real gunicorn."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.projects import metrics_config
from tests.support.observers import PostgresObserver
from tests.support.serving import ask, ask_all, gunicorn
from tests.support.waiting import wait_until

REQUESTS, TASKS = 40, 25
EXECUTOR = (("executor", "default"),)
COMPLETED = (*EXECUTOR, ("outcome", "completed"))
POOL = ("db_client_connection_pool_name", "default")
Metrics = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(port: int) -> Metrics:
    """Return what one of the processes answers, by name and labels."""
    families = text_string_to_metric_families(ask(port, "/metrics")[1])
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("way", ["config", "ready", "ready and preload"])
def test_two_workers(way: str, postgres: PostgresObserver, tmp_path: Path) -> None:
    """Whichever process is asked tells the sum of both, and nothing of the master's."""
    log, folder = tmp_path / "log", tmp_path / "metrics"
    folder.mkdir()
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    if way == "config":
        options = [f"--config={metrics_config.__file__}"]
    else:
        options, variables["TEST_REGISTER"] = ["--preload"] * ("preload" in way), "yes"
    options += ["--workers=2", "--threads=2"]
    with gunicorn(log, *options, site="tests.projects.metrics_site", **variables) as port:
        answers = ask_all(port, [f"/submit/{TASKS}"] * REQUESTS, clients=4)
        assert {status for status, _ in answers} == {200}
        assert len({pid for _, pid in answers}) == 2  # both have worked

        def told() -> Metrics:
            found = scrape(port)
            assert found.get(("executor_pool_max", EXECUTOR), 0) in (0, 4, 8)
            return found

        everything = REQUESTS * TASKS
        found = wait_until(
            told,
            lambda found: (
                found.get(("executor_completed_total", COMPLETED)) == everything
                and found["executor_active", EXECUTOR] == 0
            ),
            within=30,
        )
        assert found["executor_completed_total", COMPLETED] == everything
        assert found["executor_pool_max", EXECUTOR] == 8
        assert found["executor_queue_wait_seconds_count", COMPLETED] == everything
        last = (*COMPLETED[:1], ("le", "+Inf"), *COMPLETED[1:])
        assert found["executor_run_seconds_bucket", last] == everything
        uses = found["db_client_connection_use_time_seconds_count", (POOL,)]
        assert uses >= found["db_client_connection_create_time_seconds_count", (POOL,)] > 0
        assert not postgres.left()
    assert "Traceback" not in log.read_text()
    left = [path.name for path in folder.iterdir()]
    assert any(name.startswith("histogram_") for name in left)
    if way == "config":
        assert not any(name.startswith("gauge_live") for name in left)
