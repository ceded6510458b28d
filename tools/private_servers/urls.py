"""From a database URL to an entry of Django's DATABASES."""

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

ENGINES = {
    "postgresql": "django.db.backends.postgresql",
    "postgres": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
}


def django_database(url: str) -> dict[str, Any]:
    """Make the DATABASES entry that `url` describes.

    User, password, host and name are percent-decoded. The query string becomes OPTIONS, where
    whole numbers become ints, since mysqlclient takes no "10" for a time-out.

    Raises:
        ValueError: it says what is wrong, never what the password is.
    """
    parts = urlsplit(url)
    if parts.scheme not in ENGINES:
        raise ValueError(
            f"The database URL has the scheme {parts.scheme!r}; use one of {', '.join(ENGINES)}, "
            "as in postgresql://user:password@host:5432/name"
        )
    name = unquote(parts.path.removeprefix("/"))
    if not name:
        raise ValueError(
            f"The database URL names no database; write {parts.scheme}://user:password@host/name"
        )
    try:
        port = parts.port
    except ValueError:
        raise ValueError("The port in the database URL is no number from 0 to 65535") from None
    return {
        "ENGINE": ENGINES[parts.scheme],
        "NAME": name,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(_host(parts.netloc)),
        "PORT": "" if port is None else str(port),
        "OPTIONS": {
            key: int(value) if value.isdecimal() else value
            for key, value in parse_qsl(parts.query, keep_blank_values=True)
        },
    }


def _host(netloc: str) -> str:
    """The host as written: urlsplit's `hostname` lower-cases it, and a socket's folder with it."""
    host = netloc.rpartition("@")[2]
    if host.startswith("["):  # IPv6
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
