"""The whole experiment: a server, all ways through all variants, what came of it."""

import os
import platform
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import django
import psycopg

from private_servers import MissingServer, ServerFailed

from . import report
from .chart import chart
from .child import LostChildError
from .database import UnusableServerError, connect, own_database, server_url
from .measure import Run, measure
from .svg import picture
from .terminal import Terminal
from .ways import WAYS
from .workload import variants

SALES = 5_000

#: What may go wrong without a mistake in this code: the message is all that is needed.
FORESEEN = (UnusableServerError, LostChildError, MissingServer, ServerFailed)


def run(*, quick: bool, collector: bool, svg: Path, json: Path | None, readme: Path | None) -> None:
    """Run the experiment and show it.

    Args:
        quick: use few pools and callers.
        collector: leave Python's cyclic garbage collector on.
        svg: where to draw the picture.
        json: where to write the numbers, if anywhere.
        readme: the page whose table to write anew, if any.
    """
    terminal = Terminal.detect()
    with server_url() as server, own_database(server) as url, connect(url) as connection:
        circumstances: dict[str, Any] = {
            "command": _command(" --quick" * quick + " --no-gc" * (not collector)),
            "python": platform.python_version(),
            "django": django.get_version(),
            "postgresql": _version(connection),
            "max_connections": _max_connections(connection),
        }
        whose = "the server of DATABASE_URL" if os.environ.get("DATABASE_URL") else "a private server"
        print(f"PostgreSQL {circumstances['postgresql']}, {whose}", flush=True)
        runs = _measure_all(url, connection, terminal, quick=quick, collector=collector)
    _show(runs, circumstances, terminal)
    small_print = (
        "Made by {command} on Python {python}, Django {django}, PostgreSQL {postgresql}."
    ).format_map(circumstances)
    _write(svg, picture(runs, circumstances["max_connections"], small_print))
    print(f"\nThe same as a picture: {svg}")
    if json:
        _write(json, report.as_json(runs, circumstances))
        print(f"The numbers: {json}")
    if readme:
        _write(readme, report.with_table(readme.read_text(encoding="utf-8"), runs, circumstances))
        print(f"The table: {readme}")


def _measure_all(
    url: str,
    connection: psycopg.Connection[Any],
    terminal: Terminal,
    *,
    quick: bool,
    collector: bool,
) -> list[Run]:
    right = _prepare(url)
    runs = []
    for variant in variants(quick=quick):
        print(f"\n{variant.title}", flush=True)
        for way in WAYS:
            with terminal.bar(f"  {way.title}", of=variant.pools) as on_progress:
                run = measure(
                    way,
                    variant,
                    url=url,
                    connection=connection,
                    right=right,
                    collector=collector,
                    on_progress=on_progress,
                )
            print(f"  {way.title:<18} {run.seconds:4.1f} s, {run.left} connections left", flush=True)
            runs.append(run)
    return runs


def _command(options: str) -> str:
    return f'make demo ARGS="{options.strip()}"' if options else "make demo"


def _prepare(url: str) -> dict[str, Decimal]:
    """Make the tables and the rows; return the totals that the jobs must come to."""
    os.environ.update(DATABASE_URL=url, DJANGO_SETTINGS_MODULE="settings")
    django.setup()
    from django.core.management import call_command
    from django.db import connections

    from shop.seed import sow

    call_command("migrate", verbosity=0)
    right = sow(SALES)
    connections.close_all()
    return right


def _max_connections(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SHOW max_connections").fetchone()
    assert row is not None
    return int(row[0])


def _version(connection: psycopg.Connection[Any]) -> str:
    major, minor = divmod(connection.info.server_version, 10_000)
    return f"{major}.{minor}"


def _show(runs: Sequence[Run], circumstances: dict[str, Any], terminal: Terminal) -> None:
    limit = circumstances["max_connections"]
    print(f"\n{report.tables(runs, terminal)}\n\n{report.verdict(runs)}")
    print(*(f"{way.title}: {way.note}" for way in WAYS if way.note), sep="\n")
    print(f"The server allows {limit}. The experiment's own two connections are not counted.")
    print(f"\nConnections over time\n\n{chart(runs, limit, terminal)}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
