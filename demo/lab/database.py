"""The server that the experiment runs on, and a database of its own there."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import sql

from private_servers import django_database, start_postgres

APPLICATION = "django-executors experiment"


class UnusableServerError(Exception):
    """The server cannot be used; the message says why in one line, and what mends it."""


@contextlib.contextmanager
def server_url() -> Iterator[str]:
    """The server of DATABASE_URL, or a private one that lives as long as the experiment."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    with start_postgres(settings={"max_connections": "100"}) as server:
        yield server.url


@contextlib.contextmanager
def own_database(url: str) -> Iterator[str]:
    """Make a database for the experiment beside that of `url`; yield its URL; drop it at the end.

    Raises:
        UnusableServerError: there is no such server, or its user may not make a database.
    """
    name = f"django_executors_demo_{os.getpid()}"
    create = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    # Kept open all the time: at the end the server may be full.
    with connect(url) as connection:
        try:
            try:
                connection.execute(create)
            except psycopg.errors.InsufficientPrivilege:
                user = connection.info.user
                raise UnusableServerError(
                    f"The experiment needs a database of its own, and {user} may not make one: "
                    f"run `ALTER ROLE {user} CREATEDB`, or unset DATABASE_URL for a private server"
                ) from None
            yield urlsplit(url)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(drop)


def connect(url: str) -> psycopg.Connection[Any]:
    """Connect without Django, as Django would.

    Raises:
        UnusableServerError: the URL is wrong, or no PostgreSQL answers there.
    """
    try:
        settings = django_database(url)
    except ValueError as error:
        raise UnusableServerError(f"DATABASE_URL: {error}") from None
    if not settings["ENGINE"].endswith("postgresql"):
        raise UnusableServerError("DATABASE_URL: the experiment asks pg_stat_activity, a PostgreSQL's")
    names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "NAME"}
    given = {name: settings[key] for name, key in names.items() if settings[key]}
    try:
        return psycopg.connect(
            autocommit=True, **given, **(settings["OPTIONS"] | {"application_name": APPLICATION})
        )
    except psycopg.Error as error:
        raise UnusableServerError(f"DATABASE_URL: {str(error).strip().splitlines()[0]}") from None


def with_application(url: str, application: str) -> str:
    """The same database by a URL whose connections pg_stat_activity can tell apart."""
    parts = urlsplit(url)
    query = f"{parts.query}&application_name={quote(application)}".lstrip("&")
    return parts._replace(query=query).geturl()
