"""Settings that are wrong are named, with what would be right, at start-up and when they are needed."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import registry
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_executors import ThreadPoolExecutor, conf, executors
from django_executors.checks import check_servers, check_settings, check_sizes
from tests.projects.testapp.models import Entry
from tests.support.subprocesses import WITH_APP, run_python

MOST = "EXECUTORS_MAX_CONNECTIONS"
TIMEOUT = "EXECUTORS_CONNECTION_WAIT_TIMEOUT"
ENTRY = "EXECUTORS['default']"


class RaisesKeyError(ThreadPoolExecutor):
    """A pool that cannot be made."""

    def __init__(self, size: int = 1) -> None:
        raise KeyError("wrong")


BAD = [
    (MOST, 16, f"{MOST} must be a dict from database aliases to numbers, not 16"),
    (MOST, None, f"{MOST} must be a dict from database aliases to numbers, not None"),
    (MOST, {"nowhere": 16}, f"{MOST} names 'nowhere', which is not in DATABASES: it has 'default', "),
    (MOST, {1: 16}, f"{MOST} names 1, which is not in DATABASES"),
    *[
        (MOST, {"default": most}, f"{MOST}['default'] must be a whole number of 1 or more, not {most!r}")
        for most in (0, -1, 1.5, "16", True, None)
    ],
    *[
        (TIMEOUT, value, f"{TIMEOUT} must be a number of seconds, not {value!r}")
        for value in ("30", None, True)
    ],
    (TIMEOUT, -1, f"{TIMEOUT} must be 0 or more seconds, not -1"),
    (TIMEOUT, float("nan"), f"{TIMEOUT} must be 0 or more seconds, not nan"),
]

BAD_EXECUTORS = [
    (None, "EXECUTORS must be a dict from aliases to dicts, not None"),
    (["default"], "EXECUTORS must be a dict from aliases to dicts, not ['default']"),
    ({1: {}}, "EXECUTORS has the alias 1, which is not a string"),
    ({"default": 8}, f"{ENTRY} must be a dict with 'BACKEND' and 'OPTIONS', not 8"),
    (
        {"default": {"max_workers": 8, "OPTION": {}}},
        f"{ENTRY} has the unknown key 'OPTION', 'max_workers': it takes 'BACKEND' and 'OPTIONS'",
    ),
    ({"default": {1: 2}}, f"{ENTRY} has the unknown key 1: it takes"),
    ({"default": {"OPTIONS": None}}, f"{ENTRY}['OPTIONS'] must be a dict, not None"),
    (
        {"default": {"OPTIONS": {"max_worker": 8}}},
        "ThreadPoolExecutor.__init__() got an unexpected keyword argument 'max_worker'",
    ),
    ({"default": {"OPTIONS": {1: 8}}}, f"{ENTRY}['OPTIONS']: TypeError: keywords must be strings. "),
    (
        {"default": {"OPTIONS": {"max_pendin": 8}}},
        "ThreadPoolExecutor takes 'max_workers', 'thread_name_prefix', 'initializer', 'initargs', ",
    ),
    (
        {"default": {"OPTIONS": {"max_workers": 0}}},
        f"{ENTRY}['OPTIONS']: ValueError: max_workers must be greater than 0. ",
    ),
    (
        {"default": {"OPTIONS": {"max_workers": "8"}}},
        f"{ENTRY}['OPTIONS']: TypeError: max_workers must be an int or None, not '8'. Thread",
    ),
    (
        {"default": {"OPTIONS": {"initializer": 8}}},
        f"{ENTRY}['OPTIONS']: TypeError: initializer must be a callable. Thread",
    ),
    (
        {"default": {"BACKEND": "django_executors.ProcesPoolExecutor"}},
        "has 'django_executors.ThreadPoolExecutor', 'django_executors.ProcessPoolExecutor', ",
    ),
    (
        {"default": {"BACKEND": "django_executors.ImmediateExecutor", "OPTIONS": {"max_workers": 1}}},
        "ImmediateExecutor takes no options",
    ),
    (
        {"default": {"BACKEND": ThreadPoolExecutor}},
        "must be the dotted path of a class, as in 'django_executors.ThreadPoolExecutor', not <class",
    ),
    (
        {"default": {"BACKEND": "django_executors.ThreadPool"}},
        f'{ENTRY}[\'BACKEND\']: ImportError: Module "django_executors" does not define a "ThreadPool"',
    ),
    (
        {"default": {"BACKEND": "nowhere.Pool"}},
        f"{ENTRY}['BACKEND']: ModuleNotFoundError: No module named 'nowhere'",
    ),
    ({"default": {"BACKEND": "."}}, f"{ENTRY}['BACKEND']: ValueError: Empty module name"),
    (
        {"default": {"BACKEND": f"{__name__}.RaisesKeyError"}},
        f"{ENTRY}['OPTIONS']: KeyError: 'wrong'. RaisesKeyError takes 'size'",
    ),
    (
        {"default": {"BACKEND": "concurrent.futures.ThreadPoolExecutor"}},
        "must name an executor of django_executors, or a subclass of one, not <class",
    ),
    (
        {"default": {"BACKEND": "django_executors.release_connections"}},
        "must name an executor of django_executors, or a subclass of one, not <function",
    ),
]


@pytest.mark.parametrize(("value", "says"), BAD_EXECUTORS)
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


def test_each_wrong_executor_is_said() -> None:
    """Two that cannot be made are two errors, and no check of theirs goes on."""
    wrong = {"OPTIONS": {"max_workers": -1}}
    with override_settings(EXECUTORS={"one": wrong, "two": wrong, "three": {}}):
        assert len(check_settings()) == 2
        assert check_sizes() == []
        assert check_servers(databases=["default"]) == []


@pytest.mark.parametrize(("name", "value", "says"), BAD)
def test_wrong_setting(name: str, value: Any, says: str) -> None:
    """A check says it, and a worker that connects raises it."""
    with override_settings(**{name: value}):
        (error,) = check_settings()
        assert error.id == "django_executors.E001"
        assert error.msg.startswith(says)
        with ThreadPoolExecutor(1) as pool:
            raised = pool.submit(Entry.objects.count).exception(10)
            assert isinstance(raised, ImproperlyConfigured)
            assert str(raised) == error.msg
            assert pool.submit(lambda: "no query").result(10) == "no query"


def test_each_wrong_setting_is_said() -> None:
    """Two wrong settings are two errors."""
    with override_settings(EXECUTORS_MAX_CONNECTIONS=1, EXECUTORS_CONNECTION_WAIT_TIMEOUT="1"):
        assert len(check_settings()) == 2


@override_settings(
    EXECUTORS_MAX_CONNECTIONS={"default": 1, "other": 200}, EXECUTORS_CONNECTION_WAIT_TIMEOUT=0
)
def test_right_settings() -> None:
    """Right ones are taken as they are."""
    assert check_settings() == []
    assert conf.current() == conf.Conf(
        max_connections={"default": 1, "other": 200}, connection_wait_timeout=0.0
    )


def test_defaults() -> None:
    """Without settings there is no ceiling, and the wait is 30 seconds."""
    assert conf.current() == conf.Conf(max_connections={}, connection_wait_timeout=30.0)


def test_check_is_registered_with_the_app() -> None:
    """`manage.py check` says it where the app is installed."""
    done = run_python(
        """
        from django.core.management import call_command
        from django.test import override_settings
        with override_settings(EXECUTORS_MAX_CONNECTIONS={"default": -5}):
            call_command("check", "--tag", "executors")
        """,
        settings=WITH_APP,
    )
    assert done.returncode == 1
    assert "(django_executors.E001) EXECUTORS_MAX_CONNECTIONS['default'] must be" in done.stderr


def test_without_the_app_no_check_is_registered() -> None:
    """Importing the package registers nothing."""
    assert check_settings not in registry.registry.get_checks()
