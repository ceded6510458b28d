"""Settings that are wrong are named, with what would be right, at start-up and when they are needed."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_executors import ThreadPoolExecutor, conf, executors
from django_executors.checks import check_settings, check_sizes
from tests.projects.testapp.models import Entry

MOST = "EXECUTORS_MAX_CONNECTIONS"
TIMEOUT = "EXECUTORS_CONNECTION_WAIT_TIMEOUT"
ENTRY = "EXECUTORS['default']"


def names(value: object) -> str:
    """Return a parameter as it is in a test's id."""
    return str(value)[:40]


#: A wrong value, and what is said of it.
WRONG: list[tuple[str, Any, str]] = [
    (MOST, 16, f"{MOST} must be a dict from database aliases to numbers, not 16"),
    (MOST, {"nowhere": 16}, f"{MOST} names 'nowhere', which is not in DATABASES: it has 'default', "),
    *[
        (MOST, {"default": most}, f"{MOST}['default'] must be a whole number of 1 or more, not {most!r}")
        for most in (0, 1.5, "16", True, None)
    ],
    (TIMEOUT, "30", f"{TIMEOUT} must be a number of seconds, not '30'"),
    (TIMEOUT, -1, f"{TIMEOUT} must be 0 or more seconds, not -1"),
]

WRONG_EXECUTORS: list[tuple[Any, str]] = [
    (["default"], "EXECUTORS must be a dict from aliases to dicts, not ['default']"),
    ({1: {}}, "EXECUTORS has the alias 1, which is not a string"),
    ({"default": 8}, f"{ENTRY} must be a dict with 'BACKEND' and 'OPTIONS', not 8"),
]
#: The same of one entry.
WRONG_ENTRIES: list[tuple[dict[Any, Any], str]] = [
    (
        {"max_workers": 8, "OPTION": {}},
        f"{ENTRY} has the unknown key 'OPTION', 'max_workers': it takes 'BACKEND' and 'OPTIONS'",
    ),
    ({1: 2}, f"{ENTRY} has the unknown key 1: it takes"),
    ({"OPTIONS": None}, f"{ENTRY}['OPTIONS'] must be a dict, not None"),
    (
        {"OPTIONS": {"max_worker": 8}},
        ". ThreadPoolExecutor takes 'max_workers', 'thread_name_prefix', 'initializer', 'initargs', ",
    ),
    (
        {"OPTIONS": {"max_workers": "8"}},
        f"{ENTRY}['OPTIONS']: TypeError: max_workers must be an int or None, not '8'. Thread",
    ),
    (
        {"BACKEND": "django_executors.ProcesPoolExecutor"},
        "has 'django_executors.ThreadPoolExecutor', 'django_executors.ProcessPoolExecutor', ",
    ),
    (
        {"BACKEND": "django_executors.ImmediateExecutor", "OPTIONS": {"max_workers": 1}},
        "ImmediateExecutor takes no options",
    ),
    (
        {"BACKEND": ThreadPoolExecutor},
        "must be the dotted path of a class, as in 'django_executors.ThreadPoolExecutor', not <class",
    ),
    (
        {"BACKEND": "django_executors.ThreadPool"},
        f'{ENTRY}[\'BACKEND\']: ImportError: Module "django_executors" does not define a "ThreadPool"',
    ),
    *[
        (
            {"BACKEND": backend},
            "must name an executor of django_executors, or a subclass of one, not <",
        )
        for backend in (
            "concurrent.futures.ThreadPoolExecutor",
            "django_executors.release_connections",
        )
    ],
]
WRONG_EXECUTORS += [({"default": entry}, said) for entry, said in WRONG_ENTRIES]


@pytest.mark.parametrize(("value", "says"), WRONG_EXECUTORS, ids=names)
def test_wrong_executors(value: Any, says: str) -> None:
    """A check says it, and whoever asks for the executor hears it too."""
    with override_settings(EXECUTORS=value):
        (error,) = check_settings()
        assert error.id == "django_executors.E001"
        assert error.msg.startswith("EXECUTORS")
        assert says in error.msg
        with pytest.raises(ImproperlyConfigured) as raised:
            executors["default"]
        assert str(raised.value) == error.msg


def test_each_wrong_setting_is_said() -> None:
    """Two wrong ones are two errors; where one is wrong, the checks of sizes say nothing."""
    wrong = {"OPTIONS": {"max_workers": -1}}
    with override_settings(EXECUTORS={"one": wrong, "two": wrong, "three": {}}):
        assert len(check_settings()) == 2
        assert check_sizes() == []
    with override_settings(EXECUTORS_MAX_CONNECTIONS=1, EXECUTORS_CONNECTION_WAIT_TIMEOUT="1"):
        assert len(check_settings()) == 2


@pytest.mark.parametrize(("name", "value", "says"), WRONG, ids=names)
def test_wrong_setting(name: str, value: Any, says: str) -> None:
    """A check says it, and a worker that connects raises it."""
    with override_settings(**{name: value}):
        (error,) = check_settings()
        assert error.id == "django_executors.E001"
        assert error.msg.startswith(says)
        with ThreadPoolExecutor(1) as pool:
            raised = pool.submit(Entry.objects.count).exception(20)
            assert isinstance(raised, ImproperlyConfigured)
            assert str(raised) == error.msg
            assert pool.submit(lambda: "no query").result(20) == "no query"


def test_right_settings() -> None:
    """Right ones are taken as they are; without any there is no ceiling, and the wait is 30 seconds."""
    assert conf.current() == conf.Conf(
        max_connections={}, connection_wait_timeout=30.0, application_name=None, hold_warning=None
    )
    right = {
        "max_connections": {"default": 1, "other": 200},
        "connection_wait_timeout": 0.0,
        "application_name": "{project}",
        "hold_warning": 30.0,
    }
    with override_settings(**{f"EXECUTORS_{name.upper()}": value for name, value in right.items()}):
        assert check_settings() == []
        assert conf.current() == conf.Conf(**right)  # type: ignore[arg-type]
