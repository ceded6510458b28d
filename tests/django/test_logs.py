"""Each record of this library carries its fields as attributes, and stands in docs/operations.md."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import Any

import pytest

import django_executors
from django_executors.naming import log
from tests.support.pages import TUTORIAL

SOURCE = Path(django_executors.__file__).parent
PAGE = TUTORIAL.with_name("operations.md")

FIELD = re.compile(r"%\((\w+)\)s")
ROW = re.compile(r"^\| `(django_executors\.[\w.]+)` \| `(\w+)` \| (.+?) \|", re.MULTILINE)


def text_of(node: ast.expr) -> str:
    return "".join(
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )


def logged() -> dict[tuple[str, str], set[frozenset[str]]]:
    """Return, by logger and level, which fields each call of `log` has."""
    found: dict[tuple[str, str], set[frozenset[str]]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = "django_executors." + ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id != "log" or path.name == "naming.py":
                continue
            level = node.args[1]
            assert isinstance(level, ast.Attribute)
            keywords = {each.arg for each in node.keywords if each.arg != "exc_info"}
            if None in keywords:  # of `holds`: its fields are in a dict
                keywords = {"alias", "backend_pid", "executor", "task", "seconds"}
            else:
                assert {*FIELD.findall(text_of(node.args[2]))} == keywords, (name, node.lineno)
            fields = frozenset(each for each in keywords if each is not None)
            found.setdefault((name, level.attr), set()).add(fields)
    return found


def test_all_records_are_documented() -> None:
    """The page's table has each logger, its level, and the fields of its records."""
    documented: dict[tuple[str, str], set[frozenset[str]]] = {}
    for name, level, fields in ROW.findall(PAGE.read_text()):
        documented.setdefault((name, level), set()).add(
            frozenset(re.findall(r"`(\w+)`", fields.partition(" (and")[0]))
        )
    assert documented == logged()


def test_fields(caplog: pytest.LogCaptureFixture) -> None:
    """They are in the message, in `args` for who formats it, and on the record."""
    logger = logging.getLogger("django_executors.of_this_test")
    with caplog.at_level(logging.WARNING, logger.name):
        log(logger, logging.WARNING, "alias=%(alias)s has %(held)s", alias="default", held=3)
    (record,) = caplog.records
    assert record.getMessage() == "alias=default has 3"
    assert (vars(record)["alias"], vars(record)["held"]) == ("default", 3)
    assert record.funcName == "test_fields"


def test_a_record_factory_of_the_projects(caplog: pytest.LogCaptureFixture) -> None:
    """One that sets a field by itself keeps its own, and the record is there."""
    logger = logging.getLogger("django_executors.of_this_test")
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        vars(record)["executor"] = "of the project"
        return record

    logging.setLogRecordFactory(factory)
    try:
        with caplog.at_level(logging.WARNING, logger.name):
            log(logger, logging.WARNING, "executor=%(executor)s", executor="jobs")
    finally:
        logging.setLogRecordFactory(before)
    (record,) = caplog.records
    assert record.getMessage() == "executor=jobs"
