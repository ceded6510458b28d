"""Break the code in some ninety places, one at a time, and see that the tests notice.

    make mutations                       all of them, each against the tier that has to catch it
    make mutations ARGS="--tier fast"    those of one tier
    make mutations ARGS="--only pooler"  those whose rule has this word
    make mutations ARGS="--near"         only the files that should catch each, not the rest of its tier
    make mutations ARGS="--check"        run nothing: is each text found, and is the change still Python?

A mutation is a rule and one small change that breaks it. The change is a piece of text of the source, in
which any white space stands for any other, so that it survives being moved and formatted anew. It has to
be found exactly once: whoever rewrites that code gives the mutation its new text, and keeps the rule.

A mutation is caught if a test fails, which pytest's report has to say; and if the interpreter crashes.
Whatever else keeps the tests from passing is an error of the run, and is told as one: a server that does
not start, a module that cannot be imported, no test at all, a run that does not end. First the tests run
with nothing changed, and have to pass.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
#: The most seconds that a tier may run, and one of its tests.
LIMITS = {"fast": (600, 60), "servers": (1800, 120), "slow": (3600, 120)}
#: What pytest's exit codes say that are neither 0, all passed, nor 1, some failed.
EXIT_CODES = {
    2: "the run was interrupted, or a file of tests could not be imported",
    3: "pytest had an error of its own, or a server did not start",
    4: "pytest was called wrongly, or conftest.py could not be imported",
    5: "there is no such test",
}
#: How an outcome begins that is as it should be.
PASSES, CAUGHT = "passes", "caught"
#: What nothing but a crash of the interpreter ends in.
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)


@dataclass(frozen=True)
class Mutation:
    """One change, the rule that it breaks, and the tier that has to notice."""

    rule: str
    tier: str
    #: The files below `tests/` that run before the rest of the tier, to be done sooner.
    near: str
    old: str
    new: str

    def place(self, source: Path) -> tuple[Path, re.Match[str]]:
        """Return the file, and where in it the text is that is to be changed.

        Raises:
            LookupError: it is not there, or more than once.
        """
        pattern = re.compile(r"\s+".join(map(re.escape, self.old.split())))
        found = [
            (path, match)
            for path in sorted(source.rglob("*.py"))
            for match in pattern.finditer(path.read_text())
        ]
        if len(found) != 1:
            raise LookupError(f"found {len(found)} times, not once: {self.old}")
        return found[0]

    def changed(self, source: Path) -> tuple[Path, str, str]:
        """Return the file, its text, and that text with the change.

        Raises:
            LookupError: the text is not there, or more than once.
            SyntaxError: what comes of it is no Python.
        """
        path, match = self.place(source)
        before = path.read_text()
        after = before[: match.start()] + self.new + before[match.end() :]
        compile(after, str(path), "exec")
        return path, before, after

    def why_stale(self) -> str | None:
        """Say why this cannot be done to the source as it is now, or None."""
        try:
            self.changed(ROOT / "src")
        except (LookupError, SyntaxError) as error:
            return str(error)
        if missing := [name for name in self.files() if not (ROOT / name).exists()]:
            return f"there is no {missing[0]}"
        return None

    def files(self) -> list[str]:
        return [f"tests/{name}" for name in self.near.split()]


MUTATIONS = [
    # A task lets go before its future resolves, and a worker keeps only what the queue is for.
    Mutation(
        "a task lets go before its future resolves",
        "fast",
        "connections/test_release.py",
        "queue.settle(self, interrupted=error is not None and not isinstance(error, Exception))",
        "pass",
    ),
    Mutation(
        "a task that ends with nothing queued lets go",
        "fast",
        "connections/test_release.py",
        "reserved = self.pending > self._keepers",
        "reserved = True",
    ),
    Mutation(
        "no more workers keep than tasks are queued",
        "fast",
        "connections/test_sessions.py",
        "reserved = self.pending > self._keepers",
        "reserved = self.pending > 0",
    ),
    Mutation(
        "a worker that has its task reserves nothing",
        "fast",
        "connections/test_sessions.py",
        "self._keepers += keeps - worker.keeps",
        "self._keepers += keeps",
    ),
    Mutation(
        "a worker lets go before it waits",
        "fast",
        "connections/test_release.py connections/test_sessions.py",
        "let_go, has_let_go = self._let_go, True release.settle(holder)",
        "let_go, has_let_go = self._let_go, True",
    ),
    Mutation(
        "a task meets nothing that a callback opened",
        "fast",
        "connections/test_release.py",
        'logger.critical("Exception in worker", exc_info=True) if holder.is_touched: queue.settle(self)',
        'logger.critical("Exception in worker", exc_info=True)',
    ),
    Mutation(
        "a task meets nothing that the initializer opened",
        "fast",
        "connections/test_release.py",
        "if self.holder.is_touched: self.queue.settle(self) return True",
        "return True",
    ),
    Mutation(
        "all aliases count",
        "fast",
        "connections/test_release.py",
        "for entry in entries: wrapper = entry.wrapper()",
        "for entry in list(entries)[:1]:\n        wrapper = entry.wrapper()",
    ),
    Mutation(
        "an idle worker closes after conn_max_idle",
        "fast",
        "connections/test_release.py",
        "timeout = until - Clock.monotonic() if until is not None and may_hold else 0.0",
        "timeout = threading.TIMEOUT_MAX if until is not None and may_hold else 0.0",
    ),
    Mutation(
        "an idle worker closes at its connection's max age",
        "fast",
        "connections/test_release.py",
        "min(entry.kept_since + conn_max_idle, entry.expires_at)",
        "entry.kept_since + conn_max_idle",
    ),
    Mutation(
        "idle workers let go when drain asks them to",
        "fast",
        "django/test_testing.py",
        "self._let_go += 1",
        "pass",
    ),
    # Dirty connections are never used again.
    Mutation(
        "an interrupted task's connection is not kept",
        "fast",
        "connections/test_sessions_edge_cases.py connections/test_sessions.py",
        "queue.settle(self, interrupted=error is not None and not isinstance(error, Exception))",
        "queue.settle(self)",
    ),
    Mutation(
        "an interruption is told",
        "fast",
        "connections/test_wrapper.py connections/test_sessions_edge_cases.py",
        'return "an interruption" if interrupted and reason is None and is_open(wrapper) else reason',
        "return reason",
    ),
    Mutation(
        "an open transaction makes a connection dirty",
        "fast",
        "connections/test_wrapper.py",
        "return _TRANSACTION_STATES[driver.pgconn.transaction_status]",
        "return None",
    ),
    Mutation(
        "an open atomic block makes a connection dirty",
        "fast",
        "connections/test_wrapper.py connections/test_release.py",
        'if wrapper.in_atomic_block: return "an open atomic block" driver: Any = wrapper.connection',
        "driver: Any = wrapper.connection",
    ),
    Mutation(
        "an open transaction makes a connection dirty on SQLite",
        "fast",
        "connections/test_wrapper.py connections/test_sessions.py",
        'getattr(driver, "in_transaction", False)',
        "False",
    ),
    Mutation(
        "a changed autocommit makes a connection dirty",
        "fast",
        "connections/test_wrapper.py",
        'return "autocommit changed"',
        "return None",
    ),
    Mutation(
        "an open pipeline makes a connection dirty",
        "fast",
        "connections/test_wrapper.py connections/test_sessions.py",
        "if driver.pgconn.pipeline_status:",
        "if False:",
    ),
    Mutation(
        "a suspended generator makes a connection dirty",
        "fast",
        "connections/test_wrapper.py connections/test_sessions.py",
        "if driver.lock.locked():",
        "if False:",
    ),
    Mutation(
        "what a driver cannot tell makes a connection dirty",
        "fast",
        "connections/test_wrapper.py connections/test_release.py",
        'return "an unknown state"',
        "return None",
    ),
    Mutation(
        "an open server-side cursor makes a connection dirty",
        "fast",
        "connections/test_sessions_edge_cases.py",
        "self._entry.note_cursor(cursor)",
        "pass",
    ),
    Mutation(
        "a server-side cursor that was closed costs no connection",
        "fast",
        "connections/test_sessions_edge_cases.py",
        'getattr(found, "name", None) is not None and not found.closed',
        'getattr(found, "name", None) is not None',
    ),
    Mutation(
        "a dirty connection's wrapper is dropped",
        "fast",
        "connections/test_release.py connections/test_wrapper.py",
        "if reason is not None or error is not None: _drop(entry, wrapper)",
        "if reason is not None or error is not None:\n                pass",
    ),
    Mutation(
        "an error on closing replaces no result",
        "fast",
        "connections/test_wrapper.py",
        "_drop(wrapper, driver) return error",
        "_drop(wrapper, driver)\n        raise",
    ),
    Mutation(
        "what could not be closed is closed behind the wrapper's back",
        "fast",
        "connections/test_wrapper.py",
        "_drop(wrapper, driver) return error",
        "return error",
    ),
    Mutation(
        "what ended amiss is logged",
        "fast",
        "connections/test_wrapper.py",
        "if amiss or thread_end.failures: _log(holder, amiss) # A log handler",
        "if amiss or thread_end.failures:\n        # A log handler",
    ),
    Mutation(
        "what a log handler opened is let go",
        "fast",
        "connections/test_wrapper.py",
        "_release(holder, _used(holder, since), [], keep=keep)",
        "pass",
    ),
    # Django's own pool.
    Mutation(
        "a slot of Django's pool is given back also where closing fails",
        "fast",
        "connections/test_wrapper.py",
        "pool.putconn(driver)",
        "pass",
    ),
    Mutation(
        "a dirty connection of Django's pool is closed first",
        "fast",
        "connections/test_wrapper.py",
        "if dirty and driver is not None: _finish(driver)",
        "",
    ),
    Mutation(
        "a slot of Django's pool is not kept",
        "fast",
        "connections/test_wrapper.py connections/test_sessions.py",
        "or not wrapper.autocommit or is_pooled(wrapper):",
        "or not wrapper.autocommit:",
    ),
    # What a worker did not open.
    Mutation(
        "a task in its caller's thread cannot close the caller's connection",
        "fast",
        "executors/test_immediate.py",
        "if entry.is_shielded() and not has_ended(wrapper):",
        "if False:",
    ),
    Mutation(
        "the caller's connection is shielded",
        "fast",
        "executors/test_immediate.py",
        "holder.set_shield(next_serial()) yield",
        "yield",
    ),
    Mutation(
        "a task in its caller's thread does not connect the caller's connection anew",
        "fast",
        "executors/test_immediate.py",
        "if before is not None and entry.is_shielded(): return",
        "",
    ),
    Mutation(
        "what the server has ended a task may close",
        "fast",
        "executors/test_immediate_edge_cases.py",
        "return _transaction(driver) == _BROKEN",
        "return False",
    ),
    Mutation(
        "a callback in the caller's thread cannot close the caller's connection",
        "fast",
        "executors/test_immediate.py",
        "with callers_connections(): super().add_done_callback(fn)",
        "super().add_done_callback(fn)",
    ),
    Mutation(
        "a connection that is older than the hook is shielded too",
        "fast",
        "executors/test_immediate.py",
        "hook.ensure_watched(wrapper)",
        "pass",
    ),
    Mutation(
        "a lent connection is its lender's",
        "fast",
        "connections/test_release.py",
        "if made_by != holder.thread_ident:",
        "if False:",
    ),
    Mutation(
        "a wrapper that has lost the hook gets it again",
        "fast",
        "connections/test_hook.py executors/test_immediate.py",
        "if found.keys() >= {*_HOOKED}:",
        'if "connect" in found:',
    ),
    # The ends of threads.
    Mutation(
        "what a thread opened is closed when it ends",
        "fast",
        "connections/test_thread_end.py",
        "if wrapper is not None and entry.holds(wrapper) and not wrapper.allow_thread_sharing:",
        "if False:",
    ),
    Mutation(
        "a connection that its thread has lent survives that thread",
        "fast",
        "connections/test_thread_end.py",
        "and entry.holds(wrapper) and not wrapper.allow_thread_sharing:",
        "and entry.holds(wrapper):",
    ),
    Mutation(
        "a guard that another thread drops does nothing",
        "fast",
        "connections/test_thread_end.py",
        "or holder.thread_ident != threading.get_ident()",
        "",
    ),
    Mutation(
        "a forked child's threads close nothing of the parent's",
        "fast",
        "connections/test_fork.py connections/test_thread_end.py",
        "or holder.pid != os.getpid()",
        "",
    ),
    Mutation(
        "an error on closing in a thread that ends is logged by a living one",
        "fast",
        "connections/test_thread_end.py",
        "failures.append((entry.alias, holder.thread_name, error))",
        "pass",
    ),
    Mutation(
        "a worker's thread is watched",
        "fast",
        "connections/test_thread_end.py connections/test_release.py",
        "thread_end.arm(worker.holder)",
        "pass",
    ),
    # Kept connections.
    Mutation(
        "no task meets a connection that the server has closed",
        "fast",
        "connections/test_sessions.py",
        "if idle < BYPASS_WINDOW and is_silent(driver):",
        "if idle < BYPASS_WINDOW:",
    ),
    Mutation(
        "after half a second the server is asked",
        "fast",
        "connections/test_sessions.py",
        "if idle < BYPASS_WINDOW and is_silent(driver):",
        "if is_silent(driver):",
    ),
    Mutation(
        "a session is reset for a minute only",
        "fast",
        "connections/test_sessions.py",
        "until = entry.opened_at + MAX_RESET_AGE",
        'until = float("inf")',
    ),
    Mutation(
        "a connection is kept until its max age",
        "fast",
        "connections/test_sessions.py connections/test_release.py",
        'until = float("inf") if wrapper.close_at is None else wrapper.close_at',
        'until = float("inf")',
    ),
    Mutation(
        "at CONN_MAX_AGE = 0 what cannot be reset is closed",
        "fast",
        "connections/test_sessions.py",
        'elif wrapper.settings_dict["CONN_MAX_AGE"] == 0 or not _is_drivers_own(wrapper):',
        "elif not _is_drivers_own(wrapper):",
    ),
    Mutation(
        "a connection of somebody else's pool is not kept",
        "fast",
        "connections/test_sessions.py",
        'elif wrapper.settings_dict["CONN_MAX_AGE"] == 0 or not _is_drivers_own(wrapper):',
        'elif wrapper.settings_dict["CONN_MAX_AGE"] == 0:',
    ),
    Mutation(
        "the wait for a reset has an end",
        "slow",
        "slow/test_network.py",
        "session.receive_reset(driver, since + RESET_TIMEOUT)",
        "session.receive_reset(driver, since + 100_000)",
    ),
    Mutation(
        "no task's queries are in the next one's log",
        "fast",
        "connections/test_sessions.py",
        "wrapper.queries_log.clear()",
        "pass",
    ),
    Mutation(
        "MySQL's hidden transaction ends before the next task",
        "servers",
        "connections/test_sessions.py",
        "driver.rollback()",
        "pass",
    ),
    # Fresh sessions.
    Mutation(
        "the server resets the session",
        "fast",
        "connections/test_sessions.py",
        '_DISCARD_ALL = b"DISCARD ALL"',
        '_DISCARD_ALL = b"SELECT 1"',
    ),
    Mutation(
        "settings are reset where the server has another time zone",
        "fast",
        "connections/test_sessions.py",
        "RESET ALL;DEALLOCATE ALL;",
        "DEALLOCATE ALL;",
    ),
    Mutation(
        "temporary tables go where the server has another time zone",
        "fast",
        "connections/test_sessions.py",
        "DISCARD TEMP;",
        "",
    ),
    Mutation(
        "advisory locks go where the server has another time zone",
        "fast",
        "connections/test_sessions.py",
        '"SELECT pg_advisory_unlock_all();DISCARD PLANS;',
        '"DISCARD PLANS;',
    ),
    Mutation(
        "each session has Django's time zone",
        "fast",
        "connections/test_sessions.py",
        'if driver.pgconn.parameter_status(b"TimeZone") != self._time_zone:',
        "if False:",
    ),
    Mutation(
        "a refused reset is noticed",
        "fast",
        "connections/test_sessions.py",
        "if result.status not in (_COMMAND_OK, _TUPLES_OK):",
        "if False:",
    ),
    Mutation(
        "what came for the task before is not the next one's",
        "fast",
        "connections/test_sessions.py",
        "while driver.pgconn.notifies():",
        "while False:",
    ),
    Mutation(
        "what a task sets on a wrapper goes",
        "fast",
        "connections/test_sessions.py",
        "entry.made.put_back(wrapper) else: wrapper.queries_log.clear()",
        "pass\n    else:\n        wrapper.queries_log.clear()",
    ),
    Mutation(
        "what a task sets on a wrapper without a query goes",
        "fast",
        "connections/test_sessions.py",
        "if entry.session is not None: entry.made.put_back(wrapper) elif not sessions.park",
        "if entry.session is not None:\n            pass\n    elif not sessions.park",
    ),
    Mutation(
        "what a task adds to a list of the wrapper's goes",
        "fast",
        "connections/test_sessions.py",
        "for name, value in self._changing: now[name] = value.copy()",
        "pass",
    ),
    Mutation(
        "what a task sets on the driver's connection goes",
        "fast",
        "connections/test_sessions.py",
        "made.put_back(part)",
        "pass",
    ),
    Mutation(
        "what a task sets in the driver's map of adapters goes",
        "fast",
        "connections/test_sessions.py",
        "type(driver.adapters)(driver.adapters)",
        "pass",
    ),
    Mutation(
        "what connecting has set on a wrapper comes back",
        "fast",
        "connections/test_sessions.py",
        "self._connected.put_into(vars(wrapper))",
        "pass",
    ),
    Mutation(
        "a role is assumed again",
        "fast",
        "connections/test_sessions.py",
        "elif not self._role and len(connection_created.receivers) <= 1:",
        "elif len(connection_created.receivers) <= 1:",
    ),
    Mutation(
        "receivers of connection_created run for each fresh session",
        "fast",
        "connections/test_sessions.py",
        "elif not self._role and len(connection_created.receivers) <= 1:",
        "elif not self._role:",
    ),
    Mutation(
        "sessions of a subclass are not reset",
        "fast",
        "connections/test_sessions.py",
        "or type(wrapper).__module__ not in _RESETTABLE",
        "",
    ),
    Mutation(
        "a subclass's wrapper is not used by two tasks",
        "fast",
        "connections/test_sessions.py",
        "if holder.executor is not None and is_djangos(wrapper):",
        "if holder.executor is not None:",
    ),
    Mutation(
        "nothing is reset where a setting speaks of a pooler",
        "fast",
        "connections/test_sessions.py",
        'or settings.get("DISABLE_SERVER_SIDE_CURSORS")',
        "",
    ),
    Mutation(
        "nothing is reset where psycopg prepares statements",
        "fast",
        "connections/test_sessions.py",
        "or driver.prepare_threshold is not None ):",
        "):",
    ),
    Mutation(
        "nothing is reset where a task had psycopg prepare statements",
        "fast",
        "connections/test_sessions.py",
        "if driver.prepare_threshold is not None: return False",
        "pass",
    ),
    Mutation(
        "nothing is reset through a pooler",
        "servers",
        "connections/test_sessions.py",
        "if int(told.get_value(0, 0)) != driver.pgconn.backend_pid:",
        "if False:",
    ),
    # No byte goes over a connection without its lock.
    Mutation(
        "a reset is not sent while another thread uses the connection",
        "fast",
        "connections/test_sessions.py",
        "if not driver.lock.acquire(blocking=False): "
        'raise TimeoutError("the connection is in use") '
        "try: driver.pgconn.send_query(sql) finally: driver.lock.release()",
        "driver.pgconn.send_query(sql)",
    ),
    Mutation(
        "a reset's answer is not read while another thread uses the connection",
        "fast",
        "connections/test_sessions.py connections/test_sessions_edge_cases.py",
        "if not driver.lock.acquire(timeout=max(0.0, deadline - Clock.monotonic())): "
        'raise TimeoutError("the connection is in use") '
        "try: _results(driver.pgconn, deadline) finally: driver.lock.release()",
        "_results(driver.pgconn, deadline)",
    ),
    Mutation(
        "a parked connection is not closed while another thread uses it",
        "fast",
        "connections/test_sessions_edge_cases.py",
        "with _alone(driver): driver.close()",
        "driver.close()",
    ),
    Mutation(
        "a connection is not closed while another thread uses it",
        "fast",
        "connections/test_sessions_edge_cases.py",
        "with _alone(driver): wrapper.close()",
        "wrapper.close()",
    ),
    Mutation(
        "closing a connection is reentrant",
        "fast",
        "connections/test_sessions_edge_cases.py",
        "driver.lock = reentrant",
        "pass",
    ),
    Mutation(
        "SQLite in memory is left to Django",
        "fast",
        "connections/test_sessions_edge_cases.py",
        'return wrapper.vendor == "sqlite" and wrapper.is_in_memory_db()',
        "return False",
    ),
    # Connecting, and the ceiling.
    Mutation(
        "a connect that fails half way leaves no socket",
        "fast",
        "connections/test_hook.py",
        "if wrapper.connection is not None and wrapper.connection is not before:",
        "if False:",
    ),
    Mutation(
        "a connect that the server refuses costs no permit",
        "fast",
        "connections/test_ceiling.py",
        "if not is_open(wrapper): entry.closed() with contextlib.suppress(Exception):",
        "with contextlib.suppress(Exception):",
    ),
    Mutation(
        "a full server has the log say who holds what",
        "fast",
        "connections/test_ledger_edge_cases.py",
        "incidents.note(entry.alias, error)",
        "pass",
    ),
    Mutation(
        "the ceiling is not exceeded",
        "fast",
        "connections/test_ceiling.py",
        "len(self._given) < self.most",
        "len(self._given) <= self.most",
    ),
    Mutation(
        "who waits connects in turn",
        "fast",
        "connections/test_ceiling.py",
        "permit = self._waiting.popleft()",
        "permit = self._waiting.pop()",
    ),
    Mutation(
        "a parked connection is closed for whoever waits",
        "fast",
        "connections/test_ceiling.py",
        "parked.close_parked()",
        "pass",
    ),
    Mutation(
        "nothing is kept while somebody waits",
        "fast",
        "connections/test_ceiling.py",
        "if _is_wanted(entry): return False",
        "",
    ),
    Mutation(
        "an idle worker keeps no permit",
        "fast",
        "connections/test_ceiling.py",
        "may_idle = self._conn_max_idle > 0 and not release.is_limited(holder)",
        "may_idle = self._conn_max_idle > 0",
    ),
    Mutation(
        "a permit is given back when its connection closes",
        "fast",
        "connections/test_ceiling.py",
        "if permit is not None: permit.give_back()",
        "pass",
    ),
    Mutation(
        "SQLite in memory takes no permit",
        "fast",
        "connections/test_ceiling_edge_cases.py",
        "if most is None or never_closes(wrapper):",
        "if most is None:",
    ),
    Mutation(
        "a forked child has all permits",
        "fast",
        "connections/test_ceiling.py",
        "os.register_at_fork(after_in_child=_ceilings.clear)",
        "",
    ),
    # The ledger.
    Mutation(
        "what was collected is not listed as open",
        "fast",
        "connections/test_ledger.py connections/test_ledger_edge_cases.py",
        "if not entry.close_parked(): entry.closed()",
        "pass",
    ),
    Mutation(
        "an entry keeps no wrapper alive",
        "fast",
        "connections/test_ledger.py connections/test_release.py",
        "entry.made = entry.session = None",
        "pass",
    ),
    Mutation(
        "what a worker connects again it has touched",
        "fast",
        "connections/test_release.py connections/test_sessions.py",
        "self.holder.touch() self.backend_pid",
        "self.backend_pid",
    ),
    Mutation(
        "what a worker takes up again it has touched",
        "fast",
        "connections/test_release.py connections/test_sessions.py",
        "entry.holder.touch()",
        "pass",
    ),
    # Scopes.
    Mutation(
        "a scope closes what was opened inside",
        "fast",
        "connections/test_scope.py",
        "release_since(holder, start, interrupted=interrupted)",
        "pass",
    ),
    Mutation(
        "a scope leaves what is older",
        "fast",
        "connections/test_scope.py",
        "for entry in self.copied() if entry.serial > serial)",
        "for entry in self.copied())",
    ),
    Mutation(
        "a wrapper that is older than a scope keeps what it has",
        "fast",
        "connections/test_scope.py",
        "elif born is not None and entry.born > born:",
        "elif born is not None:",
    ),
    Mutation(
        "release_connections refuses in a transaction",
        "fast",
        "connections/test_scope.py",
        "(transaction := uncommitted(wrapper)) is not None:",
        "(transaction := None) is not None:",
    ),
    # What a task inherits.
    Mutation(
        "a task has none of asgiref's routes",
        "fast",
        "executors/test_thread_edge_cases.py",
        "if variable not in _ROUTES:",
        "if True:",
    ),
    Mutation(
        "a task has a copy of its submitter's context",
        "fast",
        "executors/test_context.py",
        "copied, changes = context.copy(), context.inherited()",
        "pass",
    ),
    Mutation(
        "a task has its submitter's language and time zone",
        "fast",
        "executors/test_context.py",
        "context.run(_make, changes)",
        "pass",
    ),
    Mutation(
        "Django is asked again when something else is activated",
        "fast",
        "executors/test_context.py",
        "if held != seen:",
        "if not changes:",
    ),
    Mutation(
        "Django is asked again when settings have changed",
        "fast",
        "executors/test_context.py",
        "_variables, _local = None, threading.local()",
        "pass",
    ),
    Mutation(
        "each task has a copy of its worker's context",
        "fast",
        "executors/test_context.py",
        "contextvars.Context() if of_worker is None else of_worker.copy()",
        "contextvars.Context() if of_worker is None else of_worker",
    ),
    Mutation(
        "a task does not have its submitter's cache clients",
        "fast",
        "executors/test_context.py executors/test_context_edge_cases.py",
        "changes = (caches.forget_all, *changes)",
        "pass",
    ),
    Mutation(
        "an event loop does not outlive its task",
        "fast",
        "executors/test_thread_edge_cases.py",
        "loops.clear()",
        "pass",
    ),
    Mutation(
        "async code in a task has a thread of its worker's",
        "fast",
        "executors/test_thread_edge_cases.py",
        "if worker.task is None:",
        "if True:",
    ),
    Mutation(
        "what async code opened is let go before its task's future resolves",
        "fast",
        "executors/test_thread_edge_cases.py",
        "thread.submit(_settle).result()",
        "pass",
    ),
    Mutation(
        "a task's context is let go",
        "fast",
        "executors/test_context_edge_cases.py",
        "del self, fn, args, kwargs, context, changes, of_worker",
        "pass",
    ),
    Mutation(
        "a cancelled task's context is let go",
        "fast",
        "executors/test_context_edge_cases.py",
        "self.drop_call()",
        "pass",
    ),
    Mutation(
        "a pool that inherits nothing starts each task as its initializer left it, inline too",
        "fast",
        "executors/test_context.py",
        "return None if self._inherit_context else self._local.context.copy()",
        "return None if self._inherit_context else self._local.context",
    ),
    Mutation(
        "a cache client made in the caller's thread is closed",
        "fast",
        "executors/test_context_edge_cases.py",
        "caches.let_go(holder, since=start, forget=holder.executor is None)",
        "pass",
    ),
    Mutation(
        "a worker's cache clients are closed",
        "servers",
        "executors/test_context.py",
        "try: _close(backend)",
        "try:\n            pass",
    ),
    Mutation(
        "the connections of Django's Redis clients are closed",
        "servers",
        "executors/test_context.py",
        "pool.disconnect()",
        "pass",
    ),
    Mutation(
        "an interrupted task's cache client is not used by the next one",
        "servers",
        "executors/test_context.py",
        "keep = keep and not interrupted",
        "",
    ),
    Mutation(
        "an idle worker's cache clients are closed after conn_max_idle",
        "servers",
        "executors/test_context.py",
        "if client.kept_since is None: client.kept_since = now",
        "client.kept_since = now",
    ),
    # What a pool says and refuses.
    Mutation(
        "an error that nobody asks for is logged",
        "fast",
        "executors/test_task.py",
        "if self._was_asked:",
        "if True:",
    ),
    Mutation(
        "an error that somebody asks for is not logged",
        "fast",
        "executors/test_task.py",
        "if self._unheard is not None: self._unheard.hear()",
        "",
    ),
    Mutation(
        "a wait that can never end is an error",
        "fast",
        "executors/test_task.py",
        "and all(each in self._waits for each in self.workers)",
        "and False",
    ),
    Mutation(
        "a wait that can end is no error",
        "fast",
        "executors/test_task.py",
        "and all(each in self._waits for each in self.workers)",
        "",
    ),
    Mutation(
        "a cancelled task does not run",
        "fast",
        "executors/test_thread.py executors/test_base.py",
        "except AttributeError: return False",
        "except AttributeError:\n            return True",
    ),
    Mutation(
        "who waits for a cancelled task hears of it",
        "fast",
        "contract/test_standard_behaviour.py executors/test_thread.py",
        "self.set_running_or_notify_cancel() # or `wait` and `as_completed` sleep on "
        "if standard is not None and standard.cancel():",
        "if standard is not None and standard.cancel():",
    ),
    Mutation(
        "a cancelled task is not pending",
        "fast",
        "executors/test_base.py executors/test_thread.py",
        "return len(self._tasks) - self._stale",
        "return len(self._tasks)",
    ),
    Mutation(
        "a cancelled task is counted",
        "fast",
        "executors/test_base.py",
        "super().task_cancelled() self._stale += 1",
        "self._stale += 1",
    ),
    Mutation(
        "a bounded queue is bounded",
        "fast",
        "executors/test_thread.py",
        "while self.pending >= most:",
        "while self.pending > most:",
    ),
    Mutation(
        "a worker never waits for room in its own pool",
        "fast",
        "executors/test_thread.py",
        "elif self.is_mine(): why =",
        "elif False:\n                why =",
    ),
    Mutation(
        "an event loop's thread never waits for room",
        "fast",
        "executors/test_thread.py",
        "elif context.runs_event_loop():",
        "elif False:",
    ),
    Mutation(
        "who waits for room hears of a task that has begun",
        "fast",
        "executors/test_thread.py",
        "if self._max_pending is not None: self._changed.notify_all() worker.begin(task, waited)",
        "worker.begin(task, waited)",
    ),
    Mutation(
        "an initializer that fails fails what is queued",
        "fast",
        "executors/test_task.py executors/test_thread.py",
        "for each in claimed: each.drop_call()",
        "for each in claimed[:0]:\n            each.drop_call()",
    ),
    Mutation(
        "a worker survives what a callback raises",
        "fast",
        "executors/test_base.py",
        "task.resolve(result, error) except BaseException:",
        "task.resolve(result, error)\n            except ZeroDivisionError:",
    ),
    Mutation(
        "at its deadline a shutdown cancels what has not begun",
        "fast",
        "executors/test_base.py",
        "wait(min(seconds, threading.TIMEOUT_MAX)) not_run += books.cancel_pending()",
        "wait(min(seconds, threading.TIMEOUT_MAX))",
    ),
    Mutation(
        "map cancels what nobody will ask for",
        "fast",
        "executors/test_base.py",
        "finally: _cancel(futures)",
        "finally:\n        pass",
    ),
    Mutation(
        "a task that is submitted inside an atomic is warned of",
        "fast",
        "executors/test_on_commit.py",
        "warn_if_in_atomic(holder, fn) return self._submit(fn, args, kwargs)",
        "pass\n        return self._submit(fn, args, kwargs)",
    ),
    Mutation(
        "a test case's own atomic is not warned of",
        "fast",
        "executors/test_on_commit.py executors/test_on_commit_edge_cases.py",
        "return not all(block._from_testcase for block in blocks)",
        "return bool(blocks)",
    ),
    Mutation(
        "a replaced submit of the standard class's is called",
        "fast",
        "executors/test_thread.py",
        "if not _is_original(submit := _Standard.submit):",
        "if (submit := _Standard.submit) is None:",
    ),
    Mutation(
        "what a replaced submit made of a task gets its result",
        "fast",
        "executors/test_thread.py",
        "self.hand_over(standard)",
        "pass",
    ),
    Mutation(
        "a frozen clock stops no deadline",
        "fast",
        "executors/test_clock.py",
        "monotonic = staticmethod(time.monotonic)",
        "@staticmethod\n    def monotonic() -> float:\n        return time.monotonic()",
    ),
    # When the transaction commits.
    Mutation(
        "a rollback cancels what waits for the commit",
        "fast",
        "executors/test_on_commit.py",
        "if self._future is not None: self._future.cancel()",
        "pass",
    ),
    Mutation(
        "the last one of several transactions submits",
        "fast",
        "executors/test_on_commit.py",
        "if self._left or (submit := self._decide()) is None:",
        "if (submit := self._decide()) is None:",
    ),
    Mutation(
        "a wait before the commit is an error",
        "fast",
        "executors/test_on_commit.py",
        "if self._submit is not None and self._thread == threading.get_ident():",
        "if False:",
    ),
    Mutation(
        "a task of a commit has the context of its submitter",
        "fast",
        "executors/test_on_commit.py",
        "partial(context.run, submit, fn, *args, **kwargs)",
        "partial(submit, fn, *args, **kwargs)",
    ),
    Mutation(
        "a test case's other databases are not waited for",
        "fast",
        "executors/test_on_commit_edge_cases.py",
        "return own or sorted(found, key=lambda wrapper: wrapper.alias != DEFAULT_DB_ALIAS)[:1]",
        "return own or found",
    ),
    Mutation(
        "what a replaced submit has returned is cancelled with the task",
        "fast",
        "executors/test_thread.py",
        "if standard is not None and standard.cancel():",
        "if False:",
    ),
    # Operations.
    Mutation(
        "a hold is told of once",
        "fast",
        "connections/test_holds.py",
        "if self._is_told: return self._is_told = True",
        "pass",
    ),
    Mutation(
        "who keeps a connection without a task is not told of",
        "fast",
        "connections/test_holds.py",
        "holder.executor is not None and holder.task is not None:",
        "holder.executor is not None:",
    ),
    Mutation(
        "a forked child watches holds by itself",
        "fast",
        "connections/test_holds.py",
        "_lock, _pid, _thread = threading.Lock(), os.getpid(), None",
        "_lock, _pid = threading.Lock(), os.getpid()",
    ),
    Mutation(
        "a connection has the name that the settings give it",
        "fast",
        "connections/test_attribution.py",
        '"fallback_application_name": cut,',
        '"application_name": cut,',
    ),
    Mutation(
        "queries are cancelled at the deadline",
        "fast",
        "connections/test_cancelling.py",
        "not_run += books.cancel_pending() and_then()",
        "not_run += books.cancel_pending()",
    ),
    Mutation(
        "those that follow are cancelled too",
        "fast",
        "connections/test_cancelling.py",
        "if not cancelling.cancel_queries(holders, deadline): return",
        "cancelling.cancel_queries(holders, deadline)\n            return",
    ),
    Mutation(
        "a connection of Django's pool may be somebody else's",
        "fast",
        "connections/test_cancelling.py",
        "or entry.pooled or entry.holder",
        "or entry.holder",
    ),
    Mutation(
        "other pools' queries are not cancelled",
        "fast",
        "connections/test_cancelling.py",
        "or entry.holder.worker not in holders",
        "or False",
    ),
    # Queries that are seen.
    Mutation(
        "the queries of tasks are seen",
        "fast",
        "django/test_capturing.py",
        "changes += context.watched()",
        "pass",
    ),
    Mutation(
        "those on a wrapper that a task makes itself, too",
        "fast",
        "django/test_capturing.py",
        "for watcher in holder.worker.watchers:",
        "for watcher in ():",
    ),
    Mutation(
        "those of the next task are not",
        "fast",
        "django/test_capturing.py",
        "if holder.watchers: hide(*holder.watchers)",
        "pass",
    ),
    Mutation(
        "what connecting asks itself is not",
        "servers",
        "django/test_capturing.py",
        "if wrapper is not None and not ledger.is_connecting(wrapper):",
        "if wrapper is not None:",
    ),
    Mutation(
        "a capture that is over is not handed on",
        "fast",
        "django/test_capturing.py",
        "found = tuple(each for each in watchers.get() if not each.is_over)",
        "found = watchers.get()",
    ),
    Mutation(
        "a task that has ended keeps no capture",
        "fast",
        "django/test_capturing.py",
        "self._call = self._context = None self._changes = () try:",
        "self._call = self._context = None\n        try:",
    ),
    # Loaded querysets.
    Mutation(
        "whoever holds a permit does not wait for a worker that needs one",
        "fast",
        "executors/test_loading.py",
        "or holds_permit(found.db) or (loading := submit(make)) is None:",
        "or (loading := submit(make)) is None:",
    ),
    Mutation(
        "a worker that runs an initializer is not free",
        "fast",
        "executors/test_loading.py",
        "busy = sum(worker.doing is not WAITING for worker in self.workers)",
        "busy = sum(worker.doing in (TASK, CALLBACKS) for worker in self.workers)",
    ),
    Mutation(
        "a queryset is not loaded from a transaction",
        "fast",
        "executors/test_loading.py",
        "if _is_in_transaction(found) or",
        "if",
    ),
    Mutation(
        "what is prefetched may be from an alias in a transaction",
        "fast",
        "executors/test_loading.py",
        "(queryset.db in aliases or bool(queryset._prefetch_related_lookups))",
        "queryset.db in aliases",
    ),
    Mutation(
        "no two threads have one subquery",
        "fast",
        "executors/test_loading.py",
        'vars(to_run)["_query"] = _own(to_run.query)',
        "pass",
    ),
    Mutation(
        "whoever needs rows that no worker has begun to load runs the query",
        "fast",
        "executors/test_loading.py",
        "if not self.future.done() and self.is_behind(): self.future.cancel() # unless it has begun",
        "pass",
    ),
    Mutation(
        "a query for which a worker is free runs there",
        "fast",
        "executors/test_loading.py",
        "return self.pending > self._live - busy",
        "return True",
    ),
    Mutation(
        "what is derived from a loaded queryset is an ordinary one",
        "fast",
        "executors/test_loading.py",
        "cloned.__class__ = self._plain",
        "pass",
    ),
    Mutation(
        "a worker's own pool loads nothing for it",
        "fast",
        "executors/test_loading.py",
        "is_inline() or queue.is_mine()",
        "is_inline()",
    ),
    Mutation(
        "a full queue loads nothing",
        "fast",
        "executors/test_loading.py",
        "self._submit(task, (), {}, waits=False)",
        "self._submit(task, (), {})",
    ),
    # In the caller's thread.
    Mutation(
        "run_inline holds for a pool of threads",
        "fast",
        "django/test_testing.py",
        "if is_inline(): return self._submit_inline(fn, (fn, args, kwargs)) task =",
        "task =",
    ),
    Mutation(
        "an initializer runs once in each thread",
        "fast",
        "executors/test_immediate.py",
        'if not hasattr(self._local, "context"):',
        "if True:",
    ),
    # Forks.
    Mutation(
        "a forked child leaves its parent's connections alone",
        "fast",
        "connections/test_fork.py",
        "os.register_at_fork(before=_before, after_in_parent=_after_in_parent, "
        "after_in_child=_after_in_child)",
        "",
    ),
    Mutation(
        "a forked child collects nothing of its parent's",
        "fast",
        "connections/test_fork.py",
        "so that the child has it, too _held.append(_find())",
        "so that the child has it, too\n    _held.append([])",
    ),
    Mutation(
        "nothing that a forked child does reaches the server by its parent's sockets",
        "fast",
        "connections/test_fork.py",
        "os.dup2(ours.fileno(), fileno, inheritable=False)",
        "pass",
    ),
    Mutation(
        "a thread that forks is no worker in the child, and connects there again",
        "fast",
        "connections/test_fork.py",
        "holder.begin_anew()",
        "pass",
    ),
    Mutation(
        "a worker's own connection is not used in the child",
        "fast",
        "connections/test_fork.py",
        "if (wrapper := entry.wrapper()) is not None and not never_closes(wrapper): _forget(wrapper)",
        "pass",
    ),
    Mutation(
        "a caller's connection is not used in the child of a task that ran inline",
        "fast",
        "executors/test_immediate_edge_cases.py",
        "elif entry.is_shielded() and wrapper is not None: wrapper.connection = None",
        "",
    ),
    Mutation(
        "a forked child has nothing of its parent's pool of Django's",
        "fast",
        "connections/test_fork.py",
        "_forget_pools() if _is_workers(holder):",
        "if _is_workers(holder):",
    ),
    Mutation(
        "a forked child's pool has threads of its own",
        "fast",
        "connections/test_fork.py",
        "executor._begin_anew()",
        "pass",
    ),
    Mutation(
        "what a parent's workers do is not waited for in the child",
        "fast",
        "connections/test_fork.py",
        "if each is not None and each.queue is not None: # neither cancelled nor done each.abandon()",
        "pass",
    ),
    Mutation(
        "a fork in C is noticed",
        "fast",
        "connections/test_fork_edge_cases.py",
        "if getpid() != fork.pid:",
        "if False:",
    ),
    Mutation(
        "a child that is forked in a task ends when the task's function returns",
        "fast",
        "connections/test_fork_edge_cases.py",
        "if self.is_forked: end_forked_process(error) context.end(holder)",
        "context.end(holder)",
    ),
    Mutation(
        "a child that is forked in a callback ends where its worker asks for work",
        "fast",
        "connections/test_fork_edge_cases.py",
        "if worker.is_forked: # in a callback end_forked_process(None)",
        "",
    ),
    Mutation(
        "a child that is forked in an initializer ends with it",
        "fast",
        "connections/test_fork_edge_cases.py",
        "if self.is_forked: end_forked_process(error) if error is not None:",
        "if error is not None:",
    ),
    Mutation(
        "a forked child waits for its own tasks",
        "fast",
        "connections/test_fork_edge_cases.py",
        "executor.shutdown(timeout=seconds, cancel_queries=deadline is not None)",
        "pass",
    ),
    # Processes and clusters.
    Mutation(
        "a worker process that keeps lets go before it waits",
        "servers",
        "executors/test_process.py",
        "return call release.settle(holder) return self._get()",
        "return call\n        return self._get()",
    ),
    Mutation(
        "a worker process keeps only while tasks are queued",
        "servers",
        "executors/test_process.py",
        "keep = self._tasks_left != 0 and (may_idle or self._is_more_to_come())",
        "keep = self._tasks_left != 0",
    ),
    Mutation(
        "a process that is replaced keeps nothing",
        "servers",
        "executors/test_process.py",
        "keep = self._tasks_left != 0 and (may_idle",
        "keep = (may_idle",
    ),
    Mutation(
        "an idle worker process closes after conn_max_idle",
        "servers",
        "executors/test_process.py",
        "return self._get(timeout=max(0.0, until - Clock.monotonic()))",
        "return self._get()",
    ),
    Mutation(
        "a task in another process lets go before its report is sent",
        "servers",
        "executors/test_process.py executors/test_dask.py",
        "if holder.is_holding: self.settle(interrupted=error is not None and not "
        "isinstance(error, Exception)) if error is not None: result",
        "if error is not None:\n            result",
    ),
    Mutation(
        "what an error queries as it is pickled is let go",
        "servers",
        "executors/test_remote.py",
        "result = _dump_error(dumps, holder.task, error) if holder.is_touched: self.settle()",
        "result = _dump_error(dumps, holder.task, error)",
    ),
    Mutation(
        "a worker process has none of its parent's connections",
        "servers",
        "executors/test_process.py executors/test_process_edge_cases.py",
        "fork.leave_all()",
        "pass",
    ),
    Mutation(
        "a worker process uses its parent's databases",
        "servers",
        "executors/test_process.py",
        "here[alias].update(zip(_WHERE, where, strict=True))",
        "pass",
    ),
    Mutation(
        "a worker process lets go of other databases before it uses these",
        "servers",
        "executors/test_process_edge_cases.py",
        "release.settle(self.holder) remote.set_up(setup, may_move=True)",
        "remote.set_up(setup, may_move=True)",
    ),
    Mutation(
        "a worker of a cluster is not moved to other databases",
        "servers",
        "executors/test_dask_edge_cases.py",
        "if others and not may_move:",
        "if False:",
    ),
    Mutation(
        "what a callback of another process's task opens is closed",
        "servers",
        "executors/test_remote.py contract/test_contract.py",
        "with books.settling(), connection_scope():",
        "with books.settling():",
    ),
    Mutation(
        "a callback that waits for its own thread is an error",
        "servers",
        "executors/test_remote.py",
        "if not self.done() and self._books.is_settling():",
        "if False:",
    ),
    Mutation(
        "a pool that nobody refers to runs its tasks",
        "servers",
        "executors/test_process_edge_cases.py",
        "self._kept = self.executor()",
        "pass",
    ),
    Mutation(
        "a task that cannot be sent is counted",
        "servers",
        "executors/test_remote.py",
        "self._books.ended(0.0, 0.0, failed=True)",
        "pass",
    ),
    Mutation(
        "what the scheduler knows of a cancelled task is released",
        "servers",
        "executors/test_dask.py",
        "remote_future.release()",
        "pass",
    ),
    Mutation(
        "a thread of a cluster closes what no task came for",
        "servers",
        "executors/test_dask.py",
        "release.close_parked(holder)",
        "pass",
    ),
    Mutation(
        "a report that is there already is not loaded in the submitter's thread",
        "servers",
        "executors/test_remote.py",
        "elif self._submitter == threading.get_ident():",
        "elif False:",
    ),
    Mutation(
        "a shutdown in a done-callback does not wait for itself",
        "servers",
        "executors/test_remote.py",
        "would_wait_for_itself = wait and books.is_settling()",
        "would_wait_for_itself = False",
    ),
    Mutation(
        "a pool of Django's is closed with the databases that it is for",
        "servers",
        "executors/test_process_edge_cases.py",
        "pooled.close_pool()",
        "pass",
    ),
    Mutation(
        "a process is replaced by one that is set up as it was",
        "servers",
        "executors/test_process_edge_cases.py",
        "self._start.be_for(setup)",
        "pass",
    ),
    Mutation(
        "what a worker process has submitted runs before it ends",
        "servers",
        "executors/test_process_edge_cases.py",
        "multiprocessing.util.Finalize(None, shut_all_down, exitpriority=100)",
        "pass",
    ),
    Mutation(
        "the child of an initializer that forks is no worker",
        "servers",
        "executors/test_process_edge_cases.py",
        "worker.end_if_forked(error) if error is not None:",
        "if error is not None:",
    ),
    Mutation(
        "what others have open in a thread of a cluster is put aside",
        "servers",
        "executors/test_dask.py",
        "del connections[wrapper.alias] def end",
        "pass\n\n    def end",
    ),
    Mutation(
        "a task that is cancelled is none that a worker process keeps for",
        "servers",
        "contract/test_contract.py",
        "super().task_cancelled() self.add_waiting(-1)",
        "super().task_cancelled()",
    ),
    # What is named in the settings.
    Mutation(
        "an executor that broke is replaced",
        "fast",
        "django/test_registry.py",
        "while (why := executor._why_useless()) is not None:",
        "while False:",
    ),
    Mutation(
        "a receiver's error costs no Django Task its result",
        "fast",
        "django/test_backends.py",
        '"task=%(task)s a receiver of its signals raised", exc_info=True, task=self.result.task.name, )',
        '"", )\n            raise',
    ),
    Mutation(
        "an asynchronous test's ORM works in the test's own thread, as the plugin counts",
        "slow",
        "django/test_pytest_plugin.py",
        "[ident_of_process_wide_thread()] if inspect.iscoroutinefunction(test) else []",
        "[]",
    ),
    # Tasks that a coroutine submits.
    Mutation(
        "a task of a coroutine runs inline where the coroutine's ORM calls run",
        "fast",
        "executors/test_immediate.py",
        "AwaitedFuture(named) if runs_event_loop() else InlineFuture()",
        "InlineFuture()",
    ),
    Mutation(
        "a task of a coroutine runs inline before the coroutine's next ORM call, awaited or not",
        "fast",
        "executors/test_immediate.py",
        "context.run(coroutine.send, None) context.run(coroutine.close)",
        "asyncio.get_running_loop().create_task(coroutine)",
    ),
    Mutation(
        "a wait for a task of a coroutine that runs inline does not block the loop",
        "fast",
        "executors/test_immediate.py",
        "if not self.done() and runs_event_loop():",
        "if False:",
    ),
    Mutation(
        "callbacks of a coroutine's task that runs inline cannot close what is not theirs",
        "fast",
        "executors/test_immediate.py",
        "with callers_connections(): # for callbacks too",
        "if True:",
    ),
    # The ASGI application.
    Mutation(
        "the loop of an ASGI server uses the named executor",
        "slow",
        "slow/test_asgi_servers.py",
        "loop.set_default_executor(_LoopsExecutor())",
        "pass",
    ),
    Mutation(
        "the end of an ASGI server's lifespan waits for named executors",
        "slow",
        "slow/test_asgi_servers.py",
        "executors.shutdown(timeout=seconds, cancel_queries=True)",
        "pass",
    ),
    Mutation(
        "the end of an ASGI server's lifespan waits for the site's own executors",
        "slow",
        "slow/test_asgi_servers.py",
        "shut_all_down(deadline, but=named)",
        "pass",
    ),
    Mutation(
        "the end of an ASGI server's lifespan does not block its loop",
        "fast",
        "django/test_asgi.py",
        "await asyncio.get_running_loop().run_in_executor(thread, _end, seconds)",
        "_end(seconds)",
    ),
    Mutation(
        "an executor of an ASGI server says once what it left",
        "fast",
        "django/test_asgi.py",
        "if executor not in but:",
        "if True:",
    ),
    Mutation(
        "what callbacks open at the end of an ASGI server's lifespan is closed",
        "fast",
        "django/test_asgi.py",
        "@connection_scope # callbacks of what is cancelled may use the ORM",
        "",
    ),
    Mutation(
        "an ASGI server that starts again has executors that take tasks",
        "fast",
        "django/test_asgi.py",
        "executors._open_again()",
        "pass",
    ),
    Mutation(
        "the end of an ASGI server's loop waits for what it has submitted",
        "fast",
        "django/test_asgi.py",
        "concurrent.futures.wait(list(self._futures))",
        "pass",
    ),
    Mutation(
        "the end of an ASGI server's loop does not end the named executor",
        "fast",
        "django/test_asgi.py",
        "loop.set_default_executor(_LoopsExecutor())",
        "loop.set_default_executor(_default())",
    ),
    # `manage.py connections` shows what the server has, and nothing of a query's values.
    Mutation(
        "the connections command shows no literals",
        "fast",
        "django/test_connections_command.py",
        "without_literals(row[-1], vendor)",
        "row[-1]",
    ),
    Mutation(
        "the connections command leaves out the rest where a string may not have ended",
        "fast",
        "django/test_connections_command.py",
        r'''_STRING = r"'(?:[^'\\]|''|\\(?!'))*+'|'.*"''',
        r'''_STRING = r"'(?:[^']|'')*+'|'.*"''',
    ),
    Mutation(
        "the connections command lists sessions that it may not see",
        "fast",
        "django/test_connections_command.py",
        "AND coalesce(backend_type, 'client backend') = 'client backend'",
        "AND backend_type = 'client backend'",
    ),
    Mutation(
        "the connections command leaves its own connection out",
        "fast",
        "django/test_connections_command.py",
        "WHERE pid <> pg_backend_pid() AND datid",
        "WHERE datid",
    ),
    Mutation(
        "the connections command takes no connection of a pool",
        "fast",
        "django/test_connections_command.py",
        'in alias.settings_dict["OPTIONS"].items() if name != "pool"',
        'in alias.settings_dict["OPTIONS"].items()',
    ),
    Mutation(
        "the connections command closes its connections",
        "fast",
        "django/test_connections_command.py",
        "stack.callback(server.close)",
        "pass",
    ),
    Mutation(
        "the connections command connects anew after an error",
        "fast",
        "django/test_connections_command.py",
        "except Error: self.close() raise",
        "except Error:\n            raise",
    ),
    Mutation(
        "the connections command sees the list as it is now",
        "fast",
        "django/test_connections_command.py",
        "wrapper.set_autocommit(True)",
        "pass",
    ),
    Mutation(
        "the connections command ends no connection that came later",
        "fast",
        "django/test_connections_command.py",
        "if (pid, client.host) not in ((each.pid, each.host) for each in server.report().clients):",
        "if False:",
    ),
    Mutation(
        "worker processes count against the server's limit",
        "fast",
        "django/test_connections_command.py",
        "own + processes if pooled is None",
        "own if pooled is None",
    ),
    # Metrics.
    Mutation(
        "an exporter that raises is no task's affair",
        "fast",
        "django/test_metrics.py",
        "except Exception: # noqa: BLE001 - of an exporter's own, of whatever class",
        "except KeyboardInterrupt:",
    ),
    Mutation(
        "no more than a batch of ended tasks waits to be counted",
        "fast",
        "django/test_metrics.py",
        "if len(ended) >= _BATCH: self._count()",
        "pass",
    ),
    Mutation(
        "a task's end is told to exporters before its future resolves",
        "fast",
        "django/test_metrics.py",
        "observer.task_ended(queue.name, self.fn, error is not None, self.waited, ran)",
        "pass",
    ),
    Mutation(
        "what a task has waited is told with its end",
        "fast",
        "django/test_metrics.py",
        "worker.begin(task, waited)\n                    return",
        "worker.begin(task, 0.0)\n                    return",
    ),
    Mutation(
        "a connection that Django closes is no use of an executor's",
        "fast",
        "django/test_metrics.py",
        "self.used_since = Clock.monotonic() if self.holder.has_an_end else None",
        "self.used_since = Clock.monotonic()",
    ),
    Mutation(
        "a kept connection is in use no longer",
        "fast",
        "django/test_metrics.py",
        "self.state = PARKED wrapper.connection = None self.end_use()",
        "self.state = PARKED\n        wrapper.connection = None",
    ),
    Mutation(
        "each task that takes a kept connection uses it",
        "fast",
        "django/test_metrics.py",
        "entry.begin_use() entry.holder.touch()",
        "entry.holder.touch()",
    ),
    Mutation(
        "a turn that did not come is told",
        "fast",
        "django/test_metrics.py",
        "observer.had_no_turn(entry.alias) raise",
        "pass\n        raise",
    ),
    Mutation(
        "several exporters are told",
        "fast",
        "django/test_metrics.py",
        "observer = _All(*(() if observer is None else observer.observers), another)",
        "observer = _All(another)",
    ),
    Mutation(
        "executors without a name share a label",
        "fast",
        "django/test_metrics.py",
        "return executor if found is None else found[1]",
        "return executor",
    ),
    Mutation(
        "a forked child counts from 0",
        "fast",
        "django/test_metrics.py",
        "os.register_at_fork(after_in_child=self._clear)",
        "pass",
    ),
    Mutation(
        "a process without tasks writes no metrics",
        "fast",
        "django/test_metrics.py",
        "if not self._values and not self._collector.has_tasks(): return",
        "pass",
    ),
    Mutation(
        "metrics of an executor that is gone are 0",
        "fast",
        "django/test_metrics.py",
        "value.set(before) def _value(",
        "pass\n\n    def _value(",
    ),
    Mutation(
        "the last numbers are written as a process exits",
        "fast",
        "django/test_metrics.py",
        "atexit.register(self.write)",
        "pass",
    ),
    Mutation(
        "a bucket in a file is without those below it",
        "fast",
        "django/test_metrics.py",
        "number, below = number - below, number",
        "pass",
    ),
]


@dataclass(frozen=True)
class Report:
    """How one run of pytest ended."""

    #: None: it did not, within the tier's limit.
    code: int | None
    #: The first test that failed, and with what; None: there is none in the report.
    failed: str | None
    #: What pytest said last.
    said: str

    @classmethod
    def read(cls, code: int | None, report: Path, output: Path) -> Report:
        lines = output.read_text(errors="replace").strip().splitlines()
        return cls(code, cls._failed(report), lines[-1] if lines else "")

    @staticmethod
    def _failed(report: Path) -> str | None:
        try:
            tests = ElementTree.parse(report).iter("testcase")
        except (OSError, ElementTree.ParseError):
            return None
        for test in tests:
            for found in test:
                if found.tag in ("failure", "error"):
                    name = f"{test.get('classname', '').rpartition('.')[2]}::{test.get('name')}"
                    return f"{name}: {found.get('message', '')}".partition("\n")[0][:120]
        return None

    @property
    def error(self) -> str | None:
        """Why nothing can be learned from this run, or None."""
        if self.code is None:
            return "the run did not end in time"
        if self.failed is not None and re.search(r"\b(MissingServer|ServerFailed)\b", self.failed):
            return self.failed
        if self.code in EXIT_CODES:
            return EXIT_CODES[self.code]
        if self.code == 1 and self.failed is None:
            return "pytest failed, and its report names no test"
        if self.code in (0, 1) or -self.code in CRASHES:
            return None
        return f"pytest ended with {self.code}"


class Copy:
    """The files of this checkout, in a folder of their own, in which one thing can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self._report, self._output = folder / "report.xml", folder / "output"
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)

    def unchanged(self, tier: str, files: Sequence[str]) -> str:
        """Run these tests, or all of the tier, with nothing changed, and say how they ended."""
        report = self._run(tier, files)
        if report.code == 0:
            return f"{PASSES}: {report.said}"
        return f"ERROR: {report.error or report.failed or 'the interpreter crashed'}: {report.said}"

    def outcome(self, mutation: Mutation, *, near: bool) -> str:
        """Run the tests with this change: caught, SURVIVED, or an ERROR from which nothing is learned.

        Args:
            near: only those files that should catch it.
        """
        path, before, after = mutation.changed(self.folder / "src")
        try:
            self._write(path, after)
            report = self._run(mutation.tier, mutation.files())
            if report.code == 0 and not near:
                report = self._run(mutation.tier, [])
        finally:
            self._write(path, before)
        if report.code == 0:
            return f"SURVIVED: {report.said}"
        if report.error is not None:
            return f"ERROR: {report.error}: {report.said}"
        return f"{CAUGHT}: {report.failed or 'the interpreter crashed'}"

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()

    def _run(self, tier: str, files: Sequence[str]) -> Report:
        limit, of_one_test = LIMITS[tier]
        self._report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", tier, f"--junitxml={self._report}"]
        variables = os.environ | {"PYTHONPATH": str(self.folder / "src")}
        code: int | None = None
        with self._output.open("w") as output:
            run = subprocess.Popen(
                [*command, "-o", f"timeout={of_one_test}", *files],
                cwd=self.folder,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = run.wait(limit)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if run.returncode is None:
                    os.killpg(run.pid, signal.SIGKILL)
                    run.wait()
        return Report.read(code, self._report, self._output)


def run_all(mutations: Sequence[Mutation], jobs: int, *, near: bool) -> list[bool]:
    """Run these, so many at a time, and return of each whether it was caught.

    The tests run with nothing changed first. If they do not pass, nothing else runs, and the list is
    empty.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            copies.put(Copy(Path(folder, str(number))))

        def told(tier: str, rule: str, run: Callable[[Copy], str]) -> bool:
            copy, began = copies.get(), time.monotonic()
            try:
                outcome = run(copy)
            finally:
                copies.put(copy)
            print(f"{time.monotonic() - began:5.0f} s  {tier:8} {rule}\n         {outcome}", flush=True)
            return outcome.startswith((PASSES, CAUGHT))

        for tier in LIMITS:
            of_tier = [each for each in mutations if each.tier == tier]
            files = sorted({name for each in of_tier for name in each.files()}) if near else []
            unchanged = partial(Copy.unchanged, tier=tier, files=files)
            if of_tier and not told(tier, "nothing is changed", unchanged):
                return []
        return list(
            pool.map(
                lambda each: told(each.tier, each.rule, lambda copy: copy.outcome(each, near=near)),
                mutations,
            )
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tier", choices=LIMITS, help="those of one tier")
    parser.add_argument("--only", default="", metavar="WORD", help="those whose rule has this word")
    parser.add_argument("--near", action="store_true", help="not the rest of the tier")
    parser.add_argument("--check", action="store_true", help="only see that each text is found once")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    arguments = parser.parse_args()
    mutations = [
        each for each in MUTATIONS if arguments.tier in (None, each.tier) and arguments.only in each.rule
    ]
    if not mutations:
        print(f"no rule has {arguments.only!r} in it", file=sys.stderr)
        return 2
    stale = [f"STALE: {each.rule}: {why}" for each in mutations if (why := each.why_stale()) is not None]
    if stale:
        print("\n".join(stale), file=sys.stderr)
        return 2
    if arguments.check:
        print(f"{len(mutations)} texts, each found once")
        return 0
    caught = run_all(mutations, arguments.jobs, near=arguments.near)
    if not caught:
        print("The tests fail already: nothing can be learned from that", file=sys.stderr)
        return 1
    print(f"\n{sum(caught)} of {len(caught)} caught")
    for each, is_caught in zip(mutations, caught, strict=True):
        if not is_caught:
            print(f"not caught: {each.rule}")
    return 0 if all(caught) else 1


if __name__ == "__main__":
    sys.exit(main())
