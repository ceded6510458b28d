"""Three ways to run the same jobs."""

import concurrent.futures
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db import connection

import django_executors


class RecipeExecutor(concurrent.futures.ThreadPoolExecutor):
    """The usual recipe: the standard pool, and `connection.close()` after each task."""

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        def task() -> Any:
            try:
                return fn(*args, **kwargs)
            finally:
                connection.close()

        return super().submit(task)


@dataclass(frozen=True)
class Way:
    """One kind of pool, what it is called in tables and pictures, and what the title does not say.

    With `knows_ceiling` it keeps to that of a variant.
    """

    key: str
    title: str
    executor: type[concurrent.futures.ThreadPoolExecutor]
    note: str = ""
    knows_ceiling: bool = False


WAYS = (
    Way("standard", "standard pool", concurrent.futures.ThreadPoolExecutor),
    Way("recipe", "usual recipe", RecipeExecutor, note="connection.close() after each task"),
    Way(
        "ours",
        "django-executors",
        django_executors.ThreadPoolExecutor,
        note="the ceiling is its setting EXECUTORS_MAX_CONNECTIONS",
        knows_ceiling=True,
    ),
)
