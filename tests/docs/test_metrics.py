"""`docs/metrics.md`: its table, its dashboard, its alert rules and its code."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from django.test import RequestFactory

from django_executors import metrics
from tests.projects.metrics_view import metrics as view
from tests.support.pages import TUTORIAL
from tests.support.subprocesses import run_python

DOCS = TUTORIAL.parent
PAGE = DOCS / "metrics.md"
GRAFANA = DOCS / "grafana"
ALL = [each for each in vars(metrics).values() if isinstance(each, metrics.Metric)]
LABELS = {label.replace(".", "_") for each in ALL for label in each.labels} | {"executor", "outcome"}

IN_PROMETHEUS = {each.name.replace(".", "_") + "_seconds" * (each.unit == "s") for each in ALL}


def unknown(expression: str) -> set[str]:
    """Return the metrics that this expression has, and that are none of ours."""
    named = {
        re.sub("_(total|bucket)$", "", name)
        for name in re.findall(r"\b(?:executor|db_client)_\w+", expression)
    }
    return named - IN_PROMETHEUS - LABELS


def test_table() -> None:
    """Each metric is in it, by both names."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    found = {tuple(re.findall(r"`([\w.]+)`", row)[:2]) for row in rows}
    assert len(ALL) == 14
    for each in ALL:
        name = each.name.replace(".", "_") + "_seconds" * (each.unit == "s")
        suffix = "_total" * (each in (metrics.COMPLETED, metrics.TIMEOUTS))
        assert (each.name, name + suffix) in found


def test_dashboard() -> None:
    """It can be loaded, and asks for nothing that is not there."""
    found = json.loads((GRAFANA / "django-executors.json").read_text())
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == 9
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert [unknown(expression) for expression in expressions] == [set()] * len(expressions)
    asked = {name for name in IN_PROMETHEUS for each in expressions if name in each}
    assert asked == IN_PROMETHEUS - {"executor_pool_size"}


def test_alerts() -> None:
    """There are two, of metrics that there are."""
    (group,) = yaml.safe_load((GRAFANA / "alerts.yml").read_text())["groups"]
    expressions = [rule["expr"] for rule in group["rules"]]
    assert len(expressions) == 2
    assert [unknown(expression) for expression in expressions] == [set(), set()]


def test_raw_series() -> None:
    """What the page shows of a run are series that there are."""
    shown = re.findall(
        r"^((?:executor|db_client)_\w+?)(?:_bucket|_count|_sum|_total)?\{", PAGE.read_text(), re.M
    )
    assert {*shown, "db_client_connection_count"} - {"db_client_connection"} <= IN_PROMETHEUS


def test_view() -> None:
    """It answers in Prometheus's own format."""
    answer = view(RequestFactory().get("/metrics"))
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert b"python_info" in answer.content


@pytest.mark.parametrize("which", ["prometheus", "opentelemetry"])
def test_app(which: str) -> None:
    """The code that registers the exporters has them tell of a task."""
    done = run_python(
        "from tests.projects import metrics_app",
        f"""
        if {which!r} == "prometheus":
            metrics_app.ShopConfig("shop", metrics_app).ready()
        from django_executors import ThreadPoolExecutor
        with ThreadPoolExecutor(1, "reports") as pool:
            pool.submit(int).result()
        from prometheus_client import generate_latest
        if {which!r} == "prometheus":
            print(generate_latest().decode())
        """,
        settings="tests.settings",
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = {
        "prometheus": r'executor_completed_total\{executor="reports",outcome="completed"\} 1.0',
        "opentelemetry": r'"name": "executor.completed"',
    }
    assert re.search(told[which], done.stdout)
