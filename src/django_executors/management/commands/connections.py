"""`manage.py connections`: who holds the connections of the database servers."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, connections

from django_executors.servers import Report, Server, allowed, by_server, why

#: The exit status where --fail-over finds a server too full. Any other failure has Django's, 1.
TOO_FULL = 3
HEADINGS = ("application", "host", "pid", "state", "age", "idle in transaction", "query")
SHOWN_OF_QUERY = SHOWN_OF_HISTORY = 60
BLOCKS = "▁▂▃▄▅▆▇█"
CLEAR = "\x1b[2J\x1b[H"


class Command(BaseCommand):
    """Show what the servers of `settings.DATABASES` list as their clients, or end one of these."""

    help = "Shows who holds the connections of the database servers, as the servers list them."
    requires_system_checks = ()  # in an incident, nothing else needs to work

    def add_arguments(self, parser: CommandParser) -> None:
        add = parser.add_argument
        add("--database", choices=tuple(connections), help="Ask this alias's server only, as its user.")
        add("--json", action="store_true", dest="as_json", help="Print each reading as a line of JSON.")
        kind = _number(0.1, 86_400)
        add("--watch", type=kind, metavar="SECONDS", help="Ask again and again, until Ctrl-C.")
        text = "List only what has been idle for longer than this, in a transaction or not."
        add("--idle-over", type=_number(0, 10**9), metavar="SECONDS", help=text)
        text = f"Exit with status {TOO_FULL} if more of a server's usable connections are in use."
        add("--fail-over", type=_number(0, 100), metavar="PERCENT", help=text)
        text = "Have the server end the connection with this number."
        add("--terminate", type=int, metavar="PID", help=text)
        text = "Do not ask before --terminate."
        add("--no-input", "--noinput", action="store_false", dest="interactive", help=text)

    def handle(self, **options: Any) -> None:
        """Show every server once, or until Ctrl-C; or end one connection."""
        servers = by_server([options["database"]] if options["database"] else connections)
        with contextlib.ExitStack() as stack:
            for server in servers:
                stack.callback(server.close)
            if options["terminate"] is not None:
                self._terminate([each for each in servers if each.is_known], options)
                return
            history: dict[Server, list[int]] = {server: [] for server in servers}
            try:
                failed = self._show(history, options)
                while options["watch"] is not None:
                    self.pause(options["watch"])
                    self._show(history, options)
            except KeyboardInterrupt:
                if options["watch"] is None:
                    raise
                return
        if failed:
            raise CommandError(f"no answer: {', '.join(map(_name, failed))}")

    def pause(self, seconds: float) -> None:
        """Wait between two readings."""
        threading.Event().wait(seconds)

    def _show(self, history: dict[Server, list[int]], options: dict[str, Any]) -> list[Server]:
        """Ask each server, print what it says, and return those that gave no answer."""
        lines: list[str] = []
        found, failed, too_full = [], [], []
        for server, used in history.items():
            if not server.is_known:
                lines += [f"no server to ask: {_name(server)}", ""]
                continue
            entry = {"aliases": server.aliases, "vendor": server.vendor, "address": server.address}
            found.append(entry)
            try:
                report = server.report()
            except Error as error:
                failed.append(server)
                entry["error"] = why(error)
                lines += [f"no answer: {_name(server)}", why(error), *_settings(entry, None), ""]
                continue
            used[:] = [*used, report.used][-SHOWN_OF_HISTORY:]
            lines += [f"{_numbers(report)}: {_name(server)}", *_summary(report)]
            lines += [_sparkline(used, report.usable)] if options["watch"] is not None else []
            if report.used * 100 > report.usable * (options["fail_over"] or 0):
                too_full.append(f"{_numbers(report)}: {_name(server)}")
            if (seconds := options["idle_over"]) is not None:
                clients = [
                    each for each in report.clients if each.idle is not None and each.idle > seconds
                ]
                report = dataclasses.replace(report, clients=tuple(clients))
            entry.update(dataclasses.asdict(report))
            lines += [*_settings(entry, report), *_table(report), ""]
        self._print([json.dumps({"servers": found})] if options["as_json"] else lines, options["watch"])
        if too_full and options["fail_over"] is not None:
            raise CommandError("; ".join(too_full), returncode=TOO_FULL)
        return failed

    def _print(self, lines: list[str], watch: float | None) -> None:
        """Print one reading. Where it is redrawn, on a terminal, it is cut to what fits."""
        if watch is not None and self.stdout.isatty():
            columns, rows = shutil.get_terminal_size()
            lines = [line[:columns] for line in lines[: rows - 1]]
            self.stdout.write(CLEAR, ending="")
        text = "\n".join(lines).rstrip("\n")
        encoding = getattr(self.stdout, "encoding", None) or "utf-8"
        self.stdout.write(text.encode(encoding, "replace").decode(encoding))
        self.stdout.flush()

    def _terminate(self, servers: list[Server], options: dict[str, Any]) -> None:
        """Have that server end the connection that lists its number."""
        pid = options["terminate"]
        given = [options[name] for name in ("as_json", "watch", "idle_over", "fail_over")]
        if not all(each is None or each is False for each in given):
            raise CommandError("--terminate requires that only --database and --no-input are given")
        try:
            found = [
                (server, each)
                for server in servers
                for each in server.report().clients
                if each.pid == pid
            ]
            if len(found) != 1:
                where = "; ".join(map(_name, [server for server, _ in found] or servers))
                where = where or "no server to ask"
                said = (
                    f"a client of each, name one by --database: {where}"
                    if found
                    else f"no client: {where}"
                )
                raise CommandError(f"pid={pid} is {said}")
            ((server, client),) = found
            what = (
                f"pid={pid} application={client.application} user={client.user} host={client.host} "
                f"state={client.state} query={client.query[:SHOWN_OF_QUERY]}"
            )
            if options["interactive"]:
                self.stdout.write(what)
                if not _confirmed():
                    raise CommandError(f"pid={pid} was not ended")
                # The server may have given the number to another one.
                if (pid, client.host) not in ((each.pid, each.host) for each in server.report().clients):
                    raise CommandError(f"pid={pid} has ended meanwhile")
            if not server.end(pid):
                raise CommandError(f"{what} was told to end, and has not yet")
        except Error as error:
            raise CommandError(f"pid={pid} was not ended: {why(error)}") from error
        self.stdout.write(f"ended {what}")


def _confirmed() -> bool:
    with contextlib.suppress(EOFError):
        return input("End this connection? [y/N] ").strip().lower() in ("y", "yes")
    return False


def _number(least: float, most: float) -> Callable[[str], float]:
    """Return what reads the number of an option."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= (number := float(text)) <= most:
                return number
        raise argparse.ArgumentTypeError(f"must be a number from {least} to {most}, not {text!r}")

    return read


def _name(server: Server) -> str:
    aliases = ", ".join(f"DATABASES[{alias!r}]" for alias in server.aliases)
    return (
        f"{server.vendor} at {server.address}, {aliases}"
        if server.is_known
        else f"{server.vendor}, {aliases}"
    )


def _numbers(report: Report) -> str:
    return f"{report.used} of {report.usable} usable ({report.reserved} reserved), {report.left} left"


def _settings(entry: dict[str, Any], report: Report | None) -> list[str]:
    """Enter what EXECUTORS allow, and say for how many processes the server has enough."""
    try:
        each = entry["allowed"] = allowed(entry["aliases"])
    except ImproperlyConfigured as error:
        return [str(error)]
    except Exception:  # noqa: BLE001 - of an alias without a driver nothing can be said
        return []
    if not (total := sum(each.values())):
        return []
    said = f"EXECUTORS allow {total} in each process ({', '.join(f'{a} {n}' for a, n in each.items())})"
    if report is not None:
        said += f"; {report.usable} usable are enough for {report.usable // total} process(es)"
        if total > report.left:
            said += f"; {report.left} left are too few for one more"
    return [said]


def _summary(report: Report) -> list[str]:
    """Say how many there are in each state, which is the oldest, and which idles longest."""
    states = Counter(each.state or "hidden" for each in report.clients)
    said = [", ".join(f"{number} {state}" for state, number in states.most_common())]
    for what, name in (("oldest", "age"), ("longest idle in transaction", "idle_in_transaction")):
        known = [each for each in report.clients if getattr(each, name) is not None]
        if known:
            most = max(known, key=lambda each: getattr(each, name))
            said.append(f"{what} {_duration(getattr(most, name))} (pid {most.pid})")
    hint = f"{report.hidden} of other users are hidden: grant pg_read_all_stats, or PROCESS on MySQL"
    return ["; ".join(said)] * bool(states) + [hint] * bool(report.hidden)


def _sparkline(used: list[int], usable: int) -> str:
    return "".join(BLOCKS[min(len(BLOCKS) - 1, each * len(BLOCKS) // max(usable, 1))] for each in used)


def _table(report: Report) -> list[str]:
    rows = [HEADINGS] if report.clients else []
    for each in report.clients:
        age, idle = _duration(each.age), _duration(each.idle_in_transaction)
        who, host, query = each.application or each.user, each.host or "-", each.query[:SHOWN_OF_QUERY]
        rows.append((who, host, str(each.pid), each.state or "hidden", age, idle, query))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
