"""What `manage.py check` says of sizes that do not fit, and of patched processes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connections
from django.test import override_settings

from django_executors.checks import check_greenlets, check_settings, check_sizes
from tests.support.subprocesses import WITH_APP, run_python

PROCESSES = "django_executors.ProcessPoolExecutor"


def of(backend: str = "django_executors.ThreadPoolExecutor", **workers: int) -> dict[str, Any]:
    """Return a setting with these aliases, which have so many workers."""
    return {
        alias: {"BACKEND": backend, "OPTIONS": {"max_workers": number}}
        for alias, number in workers.items()
    }


@contextlib.contextmanager
def pool_of(alias: str, options: Any) -> Iterator[None]:
    """Have this database's connections come from such a pool of Django's."""
    settings: dict[str, Any] = connections[alias].settings_dict
    before = copy.copy(settings["OPTIONS"])
    settings["OPTIONS"]["pool"] = options
    try:
        yield
    finally:
        settings["OPTIONS"] = before


def test_above_the_ceiling() -> None:
    """All executors together have more threads than EXECUTORS_MAX_CONNECTIONS."""
    with override_settings(EXECUTORS=of(default=4, mails=3) | of(PROCESSES, reports=60)):
        with override_settings(EXECUTORS_MAX_CONNECTIONS={"default": 7, "other": 50}):
            assert check_sizes() == []
        with override_settings(EXECUTORS_MAX_CONNECTIONS={"default": 6, "other": 50}):
            (found,) = check_sizes()
    assert found.id == "django_executors.W001"
    assert found.msg == (
        "The executors of EXECUTORS have 7 workers together, and "
        "EXECUTORS_MAX_CONNECTIONS['default'] is 6."
    )


@pytest.mark.parametrize(
    ("pool", "most"),
    [
        ({"max_size": 7}, 7),
        ({"min_size": 3}, 3),
        ({"min_size": 2, "max_size": None}, 2),
        (True, 4),  # psycopg's default
    ],
    ids=str,
)
def test_above_the_pool(pool: Any, most: int) -> None:
    """One executor has more workers than the pool of a database gives out connections."""
    with pool_of("pooled", pool):
        with override_settings(EXECUTORS=of(default=most)):
            assert check_sizes() == []
        with override_settings(EXECUTORS=of(fits=most, default=most + 1) | of(PROCESSES, far=60)):
            (found,) = check_sizes()
            assert found.id == "django_executors.W002"
            assert found.msg == (
                f"EXECUTORS['default'] has max_workers={most + 1}, and the pool of "
                f"DATABASES['pooled'] gives out at most {most} connections."
            )
            # With a ceiling no more than that ask the pool.
            with override_settings(EXECUTORS_MAX_CONNECTIONS={"pooled": most}):
                assert [str(each.id) for each in check_sizes()] == ["django_executors.W001"]


def test_nothing_to_say() -> None:
    """Without EXECUTORS, or of executors without workers."""
    immediate = {"BACKEND": "django_executors.ImmediateExecutor"}
    for setting in ({}, {"a": immediate}):
        with override_settings(EXECUTORS=setting, EXECUTORS_MAX_CONNECTIONS={"default": 1}):
            assert check_sizes() == []


@pytest.mark.slow
def test_the_app_registers_them() -> None:
    """`check` finds wrong settings, where the app is installed."""
    code = """
        from django.core.management import call_command
        from django.core.management.base import SystemCheckError
        from django.test import override_settings
        with override_settings(EXECUTORS={"default": {"OPTIONS": {"max_workers": 0}}}):
            try:
                call_command("check", "--tag", "executors")
            except SystemCheckError as error:
                print("(django_executors.E001) EXECUTORS['default']['OPTIONS']" in str(error))
        """
    done = run_python(code, settings=WITH_APP)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@pytest.mark.slow
def test_patched_process() -> None:
    """Threads that are greenlets are refused by `manage.py check`, whoever has patched them."""
    patches = {
        "from gevent import monkey; monkey.patch_all()": "gevent",
        "from gevent import monkey; monkey.patch_thread()": "gevent",
        "from gevent import monkey; monkey.patch_socket()": "",
        "import eventlet; eventlet.monkey_patch()": "eventlet",
        "import eventlet; eventlet.monkey_patch(socket=True)": "",
        "import gevent, eventlet": "",
    }
    check = "import django; django.setup(); from django.core.management import call_command\n"
    check += "call_command('check', '--tag', 'executors')"
    for patch, said in patches.items():
        done = run_python(
            patch, check, settings=None, warnings="ignore", DJANGO_SETTINGS_MODULE=WITH_APP
        )
        assert done.returncode == bool(said), (patch, done.stderr)
        assert f"(django_executors.E002) {said} has patched the threads" in done.stderr or not said


def test_this_process_is_not_patched() -> None:
    """Nor is anything wrong with the suite's own settings."""
    assert check_greenlets() == []
    assert check_settings() == []
    assert not [each for each in run_checks(tags=["executors"]) if each.id is not None]
