"""A backend whose connections are a pool's, as django-db-connection-pool's: `close` gives one back."""

from __future__ import annotations

from typing import Any

from django.db.backends.mysql import base

#: The connections that nobody has borrowed, and how often one was.
free: list[Any] = []
borrowed: list[Any] = []


class Borrowed:
    """What a pool of SQLAlchemy's hands out: the driver's connection in all else."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def close(self) -> None:
        driver, self._driver = self._driver, None
        free.append(driver)


class DatabaseWrapper(base.DatabaseWrapper):
    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        driver = free.pop() if free else super().get_new_connection(conn_params)
        borrowed.append(driver)
        return Borrowed(driver)
