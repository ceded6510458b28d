"""`manage.py connections`, on real servers: full ones, ordinary users, literals, one that is ended."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import jsonschema
import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

from django_executors import all_connections, servers
from django_executors.connections.wrapper import backend_pid
from django_executors.management.commands.connections import Command
from django_executors.servers import Server, by_server, without_literals
from tests.support.observers import MariaDBObserver, PostgresObserver
from tests.support.subprocesses import ROOT, WITH_APP, environment, python
from tests.support.waiting import wait_until

PASSWORD = "swordfish-7731"
#: Of the aliases on PostgreSQL, the first is asked.
POSTGRES = "postgresql at 127.0.0.1:"


def run(*options: str) -> str:
    """Return what the command prints; nothing is left of its own connections."""
    output = io.StringIO()
    call_command(Command(), *options, stdout=output)
    assert PASSWORD not in output.getvalue()
    return output.getvalue()


def read(*options: str) -> dict[str, Any]:
    """Return what it says of one server."""
    (found,) = json.loads(run("--json", *options))["servers"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(autouse=True)
def no_pool(nothing_is_left: None, postgres: PostgresObserver) -> None:
    """Have no client of PostgreSQL but the suite's observer: a pool fills in the background."""
    connections["pooled"].close_pool()  # type: ignore[attr-defined]
    assert not postgres.left("pooled")


@pytest.fixture(autouse=True)
def noticed(
    request: pytest.FixtureRequest, postgres: PostgresObserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have the server notice that the command has closed its connection, so that a test may count."""
    of_postgres = partial(postgres.execute, "SELECT FROM pg_stat_activity WHERE pid = %s")
    lists: dict[str, Callable[[int | None], object]] = {"postgresql": of_postgres}
    if "mariadb" in request.fixturenames:
        mariadb: MariaDBObserver = request.getfixturevalue("mariadb")
        sql = "SELECT 1 FROM information_schema.processlist WHERE id = %s"
        lists["mysql"] = partial(mariadb.execute, sql)
    close = Server.close

    def close_and_wait(server: Server) -> None:
        pid = server._wrapper and backend_pid(server._wrapper)
        close(server)
        if pid is not None and server.vendor in lists:
            assert wait_until(lambda: not lists[server.vendor](pid))

    monkeypatch.setattr(Server, "close", close_and_wait)


@pytest.fixture
def plain(postgres: PostgresObserver, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An alias whose user is no superuser."""
    postgres.execute(f"CREATE ROLE plain LOGIN PASSWORD '{PASSWORD}'")
    entry = {**connections.settings["default"], "USER": "plain", "PASSWORD": PASSWORD}
    monkeypatch.setitem(connections.settings, "plain", entry)
    connections["plain"]  # whose end is the same where the test has not come so far
    yield "plain"
    del connections["plain"]
    assert not postgres.left()
    postgres.execute("DROP ROLE plain")


@contextlib.contextmanager
def client(alias: str = "default", name: str = "", **options: Any) -> Iterator[psycopg.Connection]:
    """Connect to PostgreSQL as this alias does, outside Django."""
    entry = connections.settings[alias]
    with contextlib.closing(
        psycopg.connect(
            host=entry["HOST"],
            port=entry["PORT"],
            user=entry["USER"],
            password=entry["PASSWORD"],
            dbname=entry["NAME"],
            application_name=name,
            **options,
        )
    ) as connection:
        yield connection


@contextlib.contextmanager
def filled(alias: str) -> Iterator[None]:
    """Take every connection that the server gives to this alias's user."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(client(alias))
        yield


def test_who_holds_what(postgres: PostgresObserver) -> None:
    """A line each, with the state and the times; first how many there are, and may be."""
    with client(name="shop-web") as web, client(name="shop-jobs", autocommit=True) as jobs:
        pid = web.info.backend_pid
        web.execute("SELECT 1 AS one")
        jobs.execute("SELECT  2,\n 'a secret' AS two")
        said = run("--database=default")
        listed = read("--database=default")
    lines = said.splitlines()
    # The suite's observer has one too.
    assert lines[0].startswith(f"3 of 97 usable (3 reserved), 94 left: {POSTGRES}")
    assert lines[0].endswith("DATABASES['default']")
    assert "1 idle in transaction" in lines[1]
    assert re.search(rf"longest idle in transaction \d+\.\d s \(pid {pid}\)", lines[1])
    heading, _, of_jobs, of_web = lines[-4:]
    assert re.fullmatch("application +host +pid +state +age +idle in transaction +query", heading)
    words = re.split("  +", of_web)
    assert words[0] == "shop-web"
    assert words[1].startswith("127.0.0.1:")
    assert words[2:4] == [str(pid), "idle in transaction"]
    assert words[6] == "SELECT ? AS one"
    words = re.split("  +", of_jobs)
    assert (words[3], words[5], words[6]) == ("idle", "-", "SELECT ?, ? AS two")
    assert (listed["used"], listed["usable"], listed["reserved"], listed["hidden"]) == (3, 97, 3, 0)
    of_web_too = listed["clients"][-1]
    assert of_web_too["user"] == connections["default"].settings_dict["USER"]
    assert (of_web_too["database"], of_web_too["application"]) == ("app", "shop-web")
    assert 0 <= of_web_too["idle"] <= of_web_too["age"]


def test_its_own_connection(postgres: PostgresObserver) -> None:
    """It uses neither the alias's connection nor its pool, and none is left, whatever happens."""
    wrapper = connections["default"]
    wrapper.ensure_connection()
    driver = wrapper.connection
    with wrapper.execute_wrapper(lambda *_: pytest.fail("the command has used Django's connection")):
        found = read("--database=default")
    assert wrapper.connection is driver
    assert [each["pid"] for each in found["clients"] if each["database"] == "app"] == [
        driver.info.backend_pid
    ]
    assert len(all_connections()) == 1
    wrapper.close()
    run("--database=pooled")
    assert not postgres.left("pooled")
    with (
        mock.patch("django_executors.servers._POSTGRES_CLIENTS", "SELECT 1/0"),
        pytest.raises(CommandError, match=r"^no answer: postgresql at .*, DATABASES\['default'\]$"),
    ):
        run("--database=default")
    assert not postgres.left()


def test_an_error_of_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    """Where one server cannot be asked the others are shown, and the command fails."""
    entry = {**connections.settings["default"], "PORT": "1", "PASSWORD": PASSWORD}
    with mock.patch.dict(connections.settings, {"away": entry}):
        output = io.StringIO()
        with pytest.raises(CommandError, match=r"no answer: .*127.0.0.1:1, DATABASES\['away'\]$"):
            call_command(Command(), stdout=output)
        found = io.StringIO()
        with pytest.raises(CommandError):
            call_command(Command(), "--json", stdout=found)
        del connections["away"]
    assert "of 97 usable" in output.getvalue()
    assert "refused" in output.getvalue()
    assert PASSWORD not in output.getvalue() + found.getvalue()
    away = next(each for each in json.loads(found.getvalue())["servers"] if each["aliases"] == ["away"])
    assert "refused" in away["error"]
    assert "used" not in away


def test_a_full_server(plain: str) -> None:
    """Where only reserved connections are left, it still answers a superuser, and no other."""
    with filled(plain):
        found = read("--database=default")
        assert (found["used"], found["usable"]) == (97, 97)
        assert run("--database=default").startswith("97 of 97 usable (3 reserved), 0 left: ")
        output = io.StringIO()
        with override_settings(EXECUTORS={"default": {"OPTIONS": {"max_workers": 5}}}):
            with pytest.raises(CommandError, match=r"no answer: .*DATABASES\['plain'\]") as refused:
                call_command(Command(), "--database=plain", stdout=output)
            assert refused.value.returncode == 1
        said = output.getvalue()
        assert "no connection is left: " in said
        assert "remaining connection slots are reserved" in said
        assert "EXECUTORS allow 5 in each process (plain 5)" in said
        assert PASSWORD not in said
        with filled("default"), pytest.raises(CommandError):  # 100 of 100
            call_command(Command(), "--database=default", stdout=output)
        assert "too many clients" in output.getvalue()


def test_a_user_who_may_not_see(plain: str) -> None:
    """Connections of other users are counted and listed, without what is hidden."""
    with client(name="boss") as boss, client("plain", "mine"):
        found = read("--database=plain")
        said = run("--database=plain")
        by_name = {each["application"]: each for each in found["clients"]}
        assert (found["used"], found["hidden"]) == (3, 2)
        assert by_name["mine"]["state"] == "idle"
        assert by_name["boss"]["pid"] == boss.info.backend_pid
        assert {by_name["boss"][name] for name in ("state", "age", "idle", "host")} == {None}
        assert "2 of other users are hidden: grant pg_read_all_stats" in said
        assert re.search(r"boss +- +\d+ +hidden +- +- +<insufficient privilege>", said)
        with pytest.raises(CommandError, match=f"^pid={boss.info.backend_pid} was not ended: must be"):
            run("--database=plain", f"--terminate={boss.info.backend_pid}", "--no-input")


def test_each_server_once() -> None:
    """Aliases on one server are one block, those on another have their own; SQLite has a sentence."""
    entry = {**connections.settings["default"], "HOST": "localhost"}
    with mock.patch.dict(connections.settings, {"again": entry}):
        said = run()
        listed = json.loads(run("--json"))["servers"]
        del connections["again"]
    assert said.count("of 97 usable") == 2
    assert "DATABASES['default'], DATABASES['other'], DATABASES['pooled']\n" in said
    assert "\n\nno server to ask: sqlite, DATABASES['sqlite']\n" in said
    assert listed[0]["aliases"] == ["default", "other", "pooled"]
    assert run("--database=sqlite") == "no server to ask: sqlite, DATABASES['sqlite']\n"
    services = {
        name: {**connections.settings["default"], "OPTIONS": {"service": service}}
        for name, service in (("one", "a"), ("two", "b"), ("three", "a"))
    }
    with mock.patch.dict(connections.settings, services):
        assert [each.aliases for each in by_server(services)] == [["one", "three"], ["two"]]
        del connections["one"], connections["two"], connections["three"]


def test_an_alias_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are shown; the command fails, and says why."""
    broken = {
        "driver": {**connections.settings["default"], "ENGINE": "no_such_backend"},
        "nameless": {**connections.settings["default"], "NAME": "", "HOST": "localhost"},
    }
    for name, entry in broken.items():
        monkeypatch.setitem(connections.settings, name, entry)
    out = io.StringIO()
    with pytest.raises(CommandError, match=r"^no answer: .*'driver'.*'nameless'"):
        call_command(Command(), stdout=out)
    assert "of 97 usable" in out.getvalue()
    assert "no_such_backend" in out.getvalue()
    assert "ImproperlyConfigured: " in out.getvalue()
    with contextlib.suppress(AttributeError):
        del connections["nameless"]


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for longer than some seconds."""
    monkeypatch.setitem(servers._PATIENCE, "postgresql", {"connect_timeout": 1})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = {"HOST": "127.0.0.1", "PORT": str(listener.getsockname()[1])}
        monkeypatch.setitem(connections.settings, "silent", connections.settings["default"] | address)
        with pytest.raises(CommandError, match=r"^no answer: .*'silent'"):
            call_command(Command(), "--database=silent", stdout=io.StringIO())


def test_files_that_name_servers() -> None:
    """Aliases whose servers stand in different files are not one."""
    files = {
        name: {**connections.settings["default"], "HOST": "", "OPTIONS": {"read_default_file": name}}
        for name in ("one", "two")
    }
    with mock.patch.dict(connections.settings, files):
        assert [each.aliases for each in by_server(files)] == [["one"], ["two"]]
        del connections["one"], connections["two"]


def test_by_vendor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass of Django's wrapper is asked; one of another vendor is not."""
    for name, backend in (("ours", "subclassed_backend"), ("roach", "cockroach_backend")):
        entry = {**connections.settings["default"], "ENGINE": f"tests.projects.{backend}"}
        monkeypatch.setitem(connections.settings, name, entry)
    try:
        assert read("--database=ours")["usable"] == 97
        assert run("--database=roach").startswith("no server to ask: cockroachdb, ")
    finally:
        del connections["ours"], connections["roach"]


def test_what_the_settings_allow() -> None:
    """Workers, worker processes, ceilings and pools of each alias add up, against the server's limit."""
    processes = {
        "BACKEND": "django_executors.ProcessPoolExecutor",
        "OPTIONS": {"max_workers": 3},
    }
    executors = {"default": {"OPTIONS": {"max_workers": 10}}, "reports": processes}
    with override_settings(EXECUTORS=executors, EXECUTORS_MAX_CONNECTIONS={"other": 6}):
        said = run()
        # The pool has four for the workers, and four for each process.
        assert read("--database=pooled")["allowed"] == {"pooled": 4 + 12}
    assert (
        "EXECUTORS allow 38 in each process (default 13, other 9, pooled 16); 97 usable are enough for 2"
        in said
    )
    assert "too few" not in said
    with override_settings(EXECUTORS={"default": {"OPTIONS": {"max_workers": 97}}}):
        said = run("--database=default")
    assert "97 usable are enough for 1 process(es); 96 left are too few for one more" in said
    with override_settings(EXECUTORS={"default": {"OPTIONS": {"max_workers": 0}}}):
        assert "EXECUTORS['default']['OPTIONS']" in run("--database=default")
        assert "allowed" not in read("--database=default")


def test_idle_over() -> None:
    """Only what has been idle for longer is listed, and everything is counted."""
    with client() as one, client() as other:
        one.execute("SELECT 1")
        wait_until(lambda: read("--database=default")["clients"][0]["idle"])
        pid = other.info.backend_pid
        idle = {each["pid"]: each["idle"] for each in read("--database=default")["clients"]}
        found = read("--database=default", f"--idle-over={idle[pid]}")
        assert pid in {each["pid"] for each in found["clients"]}
        found = read("--database=default", "--idle-over=1000")
    assert (found["used"], found["clients"]) == (3, [])


def test_fail_over() -> None:
    """More in use than so many percent is an exit status of its own, after everything is shown."""
    with client(), client():
        assert read("--database=default", "--fail-over=4")["used"] == 3
        output = io.StringIO()
        with pytest.raises(CommandError, match=r"^3 of 97 usable .*DATABASES\['default'\]$") as failed:
            call_command(Command(), "--database=default", "--fail-over=3", stdout=output)
    assert failed.value.returncode == 3
    assert "application" in output.getvalue()


def test_the_schema_on_the_page() -> None:
    """What --json prints is what the page says: of a server that answers, and of one that does not."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (schema,) = re.findall(r"^```json\n(\{\n  \"\$schema.*?)^```", page, re.MULTILINE | re.DOTALL)
    validator = jsonschema.Draft202012Validator(json.loads(schema))
    with client():
        validator.validate(json.loads(run("--json")))
    entry = {**connections.settings["default"], "PORT": "1"}
    output = io.StringIO()
    with mock.patch.dict(connections.settings, {"away": entry}), pytest.raises(CommandError):
        call_command(Command(), "--json", "--database=away", stdout=output)
    del connections["away"]
    validator.validate(json.loads(output.getvalue()))


class Watching(Command):
    """Is interrupted in its third pause."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.output = io.StringIO()
        super().__init__(stdout=self.output)
        self.pauses: list[float] = []
        self.output.isatty = lambda: is_terminal  # type: ignore[method-assign]

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) == 3:
            raise KeyboardInterrupt


def test_watch(postgres: PostgresObserver) -> None:
    """Each reading is a block, as things are then, with a sparkline of all; Ctrl-C ends it in peace."""
    with contextlib.ExitStack() as stack:

        class Filling(Watching):
            def pause(self, seconds: float) -> None:
                for _ in range(30):
                    stack.enter_context(client())
                super().pause(seconds)

        watching = Filling(is_terminal=False)
        call_command(watching, "--database=default", "--watch=2.5")
    said = watching.output.getvalue()
    assert watching.pauses == [2.5] * 3
    assert re.findall(r"^(\d+) of 97 usable", said, re.MULTILINE) == ["1", "31", "61"]
    assert re.findall("^[▁▂▃▄▅▆▇█]+$", said, re.MULTILINE) == ["▁", "▁▃", "▁▃▆"]
    assert "\x1b" not in said
    assert not postgres.left()
    call_command(watching := Watching(is_terminal=False), "--database=default", "--watch=1", "--json")
    lines = watching.output.getvalue().splitlines()
    assert [json.loads(line)["servers"][0]["used"] for line in lines] == [1, 1, 1]


def test_watch_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is redrawn in place, cut to what fits."""
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("LINES", "4")
    call_command(watching := Watching(is_terminal=True), "--database=default", "--watch=1")
    empty, *frames = watching.output.getvalue().split("\x1b[2J\x1b[H")
    assert (empty, len(frames)) == ("", 3)
    for frame in frames:
        lines = frame.splitlines()
        assert (len(lines), max(map(len, lines))) == (3, 30)
        assert lines[0].startswith("1 of 97 usable")


def test_watch_over_a_restart() -> None:
    """A server that ends the command's connection is asked over a new one the next time."""

    class Killed(Watching):
        def pause(self, seconds: float) -> None:
            super().pause(seconds)
            if len(self.pauses) == 1:
                with client(autocommit=True) as boss:
                    boss.execute(
                        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                        "WHERE datname = 'app' AND pid <> pg_backend_pid()"
                    )

    call_command(watching := Killed(is_terminal=False), "--database=default", "--watch=1")
    said = watching.output.getvalue()
    assert (said.count("no answer: "), said.count("of 97 usable")) == (1, 2)


def test_terminate(postgres: PostgresObserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows the one connection and asks; told to, it ends that one and says which it was."""
    with client(name="stuck") as stuck, client(name="well") as well:
        stuck.execute("SELECT 'a secret'")
        pid = stuck.info.backend_pid
        for answer in ("n", "", "yep"):
            monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
            with pytest.raises(CommandError, match=f"^pid={pid} was not ended$"):
                run("--database=default", f"--terminate={pid}")
        monkeypatch.setattr("builtins.input", mock.Mock(side_effect=EOFError))
        with pytest.raises(CommandError, match=f"^pid={pid} was not ended$"):
            run(f"--terminate={pid}")
        assert pid in postgres.backends()
        monkeypatch.setattr("builtins.input", lambda _: "Y")
        first, second = run(f"--terminate={pid}").splitlines()
        assert second == f"ended {first}"
        assert first.startswith(f"pid={pid} application=stuck user=")
        assert first.endswith("state=idle in transaction query=SELECT ?")
        assert postgres.backends() == {well.info.backend_pid}
        assert "ended" in run(f"--terminate={well.info.backend_pid}", "--no-input")
    assert not postgres.left()


def test_terminate_is_refused(postgres: PostgresObserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no client of the server is not ended, nor what has come under the same number since."""
    (checkpointer,) = postgres.execute(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
    )
    for pid in (*checkpointer, 0, -1):
        with pytest.raises(CommandError, match=rf"^pid={pid} is no client: postgresql at .*'pooled'\]"):
            run(f"--terminate={pid}", "--no-input")
    with pytest.raises(CommandError, match=r"is no client: no server to ask$"):
        run("--database=sqlite", "--terminate=1", "--no-input")
    with client(name="gone") as gone:
        pid = gone.info.backend_pid

        def answer(_: str) -> str:
            gone.close()
            assert wait_until(lambda: pid not in postgres.backends())
            return "y"

        monkeypatch.setattr("builtins.input", answer)
        with pytest.raises(CommandError, match=f"^pid={pid} has ended meanwhile$"):
            run(f"--terminate={pid}")
    with client() as one:
        pid = one.info.backend_pid
        entry = {**connections.settings["default"], "HOST": "localhost"}
        with mock.patch.dict(connections.settings, {"again": entry}):
            with pytest.raises(
                CommandError, match="is a client of each, name one by --database: postgres"
            ):
                run(f"--terminate={pid}", "--no-input")
            with (
                mock.patch.object(Server, "end", return_value=False),
                pytest.raises(CommandError, match=f"^pid={pid} .* was told to end, and has not yet$"),
            ):
                run("--database=again", f"--terminate={pid}", "--no-input")
            del connections["again"]
        assert pid in postgres.backends()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--watch=0"], "argument --watch: must be a number from 0.1 to 86400, not '0'"),
        (["--watch=nan"], "argument --watch: must be a number"),
        (["--watch=often"], "argument --watch: must be a number"),
        (["--idle-over=-1"], "argument --idle-over: must be a number from 0 to 1000000000, not '-1'"),
        (["--fail-over=101"], "argument --fail-over: must be a number from 0 to 100, not '101'"),
        (["--terminate=all"], "argument --terminate: invalid int value: 'all'"),
        (["--database=nowhere"], "argument --database: invalid choice: 'nowhere'"),
        (
            ["--terminate=1", "--json"],
            "--terminate requires that only --database and --no-input are given",
        ),
        (["--terminate=1", "--fail-over=0"], "--terminate requires that only"),
    ],
    ids=str,
)
def test_wrong_options(options: list[str], why: str) -> None:
    """They are refused, each by a sentence that names it."""
    with pytest.raises(CommandError, match=re.escape(why)):
        run(*options)


TWICE = ["postgresql", "mysql"]
BACKSLASH = "\\"
LITERALS = [
    (TWICE, "SELECT 1, 'it''s', t1.c2 FROM t1 -- secret", "SELECT ?, ?, t1.c2 FROM t1"),
    (TWICE, "a = -1.5e-3 OR b = .5 OR c=0xFE", "a = -? OR b = ? OR c=?"),
    (["mysql"], "SELECT ? --\x01 '\n, 'secret'", "SELECT ? , ?"),
    (TWICE, "a/* secret */b /* unterminated secret", "a b"),
    (TWICE, "a /* /* secret */ secret */ secret", "a"),
    (TWICE, "a = 'unterminated secret", "a = ?"),
    (TWICE, "a = 'unterminated ''secret'' \n secret", "a = ?"),
    (TWICE, f"a = '{BACKSLASH}', secret', 'secret'", "a = ?"),
    (TWICE, f"a LIKE '%{BACKSLASH}_secret%' AND b", "a LIKE ? AND b"),
    (TWICE, "a\n\t b\x1b[2Jc 'sec\x1bret'", "a b?[? ?"),
    (["postgresql"], 'SELECT "a""b 1"."c" FROM "unterminated', 'SELECT "a""b 1"."c" FROM ?'),
    (["postgresql"], "a = $1 AND f$1b = $2", "a = $1 AND f$1b = $2"),
    (["postgresql"], f"E'it{BACKSLASH}'s secret{BACKSLASH}{BACKSLASH}', b", "?, b"),
    (["postgresql"], f"e'it''s{BACKSLASH}'secret', b", "?, b"),
    (["postgresql"], f"E'cut {BACKSLASH}", "?"),
    (["postgresql"], f"LIKE'%{BACKSLASH}%' AND LIKE'{BACKSLASH}', secret'", "LIKE? AND LIKE?"),
    (["postgresql"], f"\U0001f600e'{BACKSLASH}', 'secret'", "\U0001f600e?"),
    (["postgresql"], "$$it's $ secret$$, $a1$ $$ ' secret$a1$ b", "?, ? b"),
    (["postgresql"], "$unterminated$ secret $$ 'secret", "?"),
    (["postgresql"], "a -- it's\r'secret\nsecret' b", "a ? b"),
    (["postgresql"], "U&'secret' UESCAPE '!', B'01', N'secret'", "U&? UESCAPE ?, B?, N?"),
    (["postgresql"], "ALTER ROLE a PASSWORD 'secret'", "ALTER ROLE a PASSWORD ?"),
    (["postgresql"], "<insufficient privilege>", "<insufficient privilege>"),
    (["mysql"], 'SELECT `a``1`, "it""s", b FROM `cut', "SELECT `a``1`, ?, b FROM ?"),
    (["mysql"], f'a = "{BACKSLASH}", secret"', "a = ?"),
    (["mysql"], f"a = 'it{BACKSLASH}'s secret', b", "a = ?"),
    (["mysql"], "a # it's secret\nb -- it's secret\nc 5--3 d", "a b c ?--? d"),
    (["mysql"], "_utf8mb4'secret' /*!50000 secret */ $a", "_utf8mb4? $a"),
]


@pytest.mark.parametrize(
    ("vendor", "query", "shown"),
    [(vendor, query, shown) for vendors, query, shown in LITERALS for vendor in vendors],
)
def test_without_literals(vendor: str, query: str, shown: str) -> None:
    """No literal, and no comment, is ever shown, however the text is cut off."""
    assert without_literals(query, vendor) == shown
    for end in range(len(query)):
        assert "secret" not in without_literals(query[:end], vendor)


def test_literals_that_the_server_knows(postgres: PostgresObserver) -> None:
    """PostgreSQL agrees on where literals end: each text runs, and none of its values is shown."""
    for query in (
        f"SELECT 'secret{BACKSLASH}', 'secret'",
        f"SELECT E'secret{BACKSLASH}', secret', $q$'secret$q$, $$'secret$$",
        "SELECT 1 /* /* secret */ ' */, 'secret'",
        "SELECT 1 -- '\r, 'secret\nsecret'",
        'SELECT 7 AS "a""\'b", \'secret\', 123456789, 1e5',
    ):
        postgres.execute(query)
        (shown,) = [
            each["query"]
            for each in read("--database=default")["clients"]
            if each["database"] == "postgres"
        ]
        assert shown.startswith("SELECT ?")
        assert not re.search("secret|[0-9]", shown)


@pytest.mark.slow
def test_an_installed_command() -> None:
    """`manage.py` finds it where the app is installed, and exits with its status."""
    found = environment(WITH_APP)
    command = ["-m", "django", "connections", "--database=default"]
    with client():
        done = python(*command, "--fail-over=50", variables=found)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("2 of 97 usable (3 reserved), 95 left: postgresql at ")
        done = python(*command, "--fail-over=1", variables=found)
    assert done.returncode == 3
    assert done.stderr.startswith("CommandError: 2 of 97 usable")
    done = python(*command, "--watch=no", variables=found)
    assert done.returncode == 2


# MariaDB


@contextlib.contextmanager
def mariadb_client(alias: str = "mariadb") -> Iterator[Any]:
    """Connect to MariaDB as this alias does, outside Django."""
    import MySQLdb

    entry = connections.settings[alias]
    with contextlib.closing(
        MySQLdb.connect(
            host=entry["HOST"],
            port=int(entry["PORT"]),
            user=entry["USER"],
            password=entry["PASSWORD"],
            database=entry["NAME"],
        )
    ) as connection:
        connection.autocommit(True)
        yield connection


@pytest.fixture
def plain_on_mariadb(mariadb: MariaDBObserver, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An alias whose user may use its tables, and nothing else."""
    mariadb.execute(f"CREATE USER plain@'%' IDENTIFIED BY '{PASSWORD}'")
    mariadb.execute("GRANT SELECT, INSERT ON app.* TO plain@'%'")
    entry = {**connections.settings["mariadb"], "USER": "plain", "PASSWORD": PASSWORD}
    monkeypatch.setitem(connections.settings, "plain", entry)
    connections["plain"]  # whose end is the same where the test has not come so far
    yield "plain"
    del connections["plain"]
    assert not mariadb.left()
    mariadb.execute("DROP USER plain@'%'")


def test_mariadb(mariadb: MariaDBObserver, plain_on_mariadb: str) -> None:
    """It shows users, hosts, states and transactions, and to an ordinary user those of its own."""
    with mariadb_client() as web, mariadb_client(plain_on_mariadb):
        cursor = web.cursor()
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO testapp_entry (name) VALUES ('a secret')")
        found = wait_until(
            lambda: read("--database=mariadb"),
            lambda found: any(each["state"] == "idle in transaction" for each in found["clients"]),
        )
        by_pid = {each["pid"]: each for each in found["clients"]}
        assert (found["used"], found["usable"], found["reserved"], found["hidden"]) == (3, 500, 1, 0)
        of_web = by_pid[web.thread_id()]
        assert (of_web["state"], of_web["database"]) == ("idle in transaction", "app")
        assert of_web["user"] == connections["mariadb"].settings_dict["USER"]
        assert of_web["host"].startswith("127.0.0.1:")
        assert (of_web["age"], of_web["idle"]) == (None, 0)
        assert sorted(each["state"] for each in found["clients"]) == [
            "idle",
            "idle",
            "idle in transaction",
        ]
        assert run("--database=mariadb").startswith("3 of 500 usable (1 reserved), 497 left: mysql at ")
        found = read("--database=plain")
        assert (found["used"], found["hidden"], len(found["clients"])) == (3, 2, 1)
        assert "2 of other users are hidden" in run("--database=plain")
        assert f"ended pid={web.thread_id()} " in run(f"--terminate={web.thread_id()}", "--no-input")
        wait_until(lambda: mariadb.backends() - {web.thread_id()}, lambda pids: len(pids) == 1)
        with pytest.raises(CommandError, match="is no client"):
            run(f"--terminate={web.thread_id()}", "--no-input")
    assert not mariadb.left()


def test_queries_of_mariadb(mariadb: MariaDBObserver) -> None:
    """A query that runs is shown without its literals."""
    with mariadb_client() as web, mariadb_client() as locker:
        locker.cursor().execute("SELECT GET_LOCK('a', 0)")
        pid = web.thread_id()
        thread = threading.Thread(target=lambda: web.cursor().execute("SELECT GET_LOCK('a', 20)"))
        thread.start()
        try:
            found = wait_until(
                lambda: {each["pid"]: each for each in read("--database=mariadb")["clients"]},
                lambda found: found[pid]["state"] == "active",
            )
        finally:
            locker.cursor().execute("SELECT RELEASE_LOCK('a')")
            thread.join(20)
    assert found[pid]["query"] == "SELECT GET_LOCK(?, ?)"
    assert found[pid]["idle"] is None


def test_a_full_mariadb(mariadb: MariaDBObserver, plain_on_mariadb: str) -> None:
    """Where only the administrator's connection is left, it still answers one, and no other."""
    import MySQLdb

    mariadb.execute("SET GLOBAL max_connections = 10")
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(MySQLdb.OperationalError):
                while True:
                    stack.enter_context(mariadb_client(plain_on_mariadb))
            # The one that was refused has the administrator's for a moment.
            connected = "SHOW GLOBAL STATUS LIKE 'Threads_connected'"
            assert wait_until(lambda: mariadb.execute(connected)[0][1] == "10")
            assert run("--database=mariadb").startswith("10 of 10 usable (1 reserved), 0 left: ")
            output = io.StringIO()
            with pytest.raises(CommandError, match="no answer"):
                call_command(Command(), "--database=plain", stdout=output)
            assert "no connection is left: " in output.getvalue()
            assert PASSWORD not in output.getvalue()
    finally:
        mariadb.execute("SET GLOBAL max_connections = 500")
