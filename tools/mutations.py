"""Break the code in some sixty places, one at a time, and see that the tests notice.

    make mutations                       all of them, each against the tier that has to catch it
    make mutations ARGS="--tier fast"    those of one tier
    make mutations ARGS="--only pooler"  those whose rule has this word

A mutation is a rule and one small change that breaks it. The change is a piece of text of the source, in
which any white space stands for any other, so that it survives being moved and formatted anew. It has to
be found exactly once: whoever rewrites that code gives the mutation its new text, and keeps the rule.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
#: For how many seconds a tier may run until it counts as hung, which is noticed too.
LIMITS = {"fast": 400, "servers": 1200, "slow": 2400}


@dataclass(frozen=True)
class Mutation:
    """One change, the rule that it breaks, and the tier that has to notice."""

    rule: str
    tier: str
    #: The test file that is run before the rest of the tier, to be done sooner.
    near: str
    old: str
    new: str

    def place(self, source: Path) -> tuple[Path, re.Match[str]]:
        """Return the file, and where in it the text is that is to be changed."""
        pattern = re.compile(r"\s+".join(map(re.escape, self.old.split())))
        found = [
            (path, match)
            for path in sorted(source.rglob("*.py"))
            for match in pattern.finditer(path.read_text())
        ]
        if len(found) != 1:
            raise LookupError(f"found {len(found)} times, not once: {self.old}")
        return found[0]


CONNECTIONS, EXECUTORS, DJANGO = "tests/connections/", "tests/executors/", "tests/django/"

MUTATIONS = [
    # A task lets go before its future resolves, and a worker keeps only what the queue is for.
    Mutation(
        "a task that ends with nothing queued lets go",
        "fast",
        CONNECTIONS + "test_release.py",
        "reserved = self.qsize() - len(self._markers) > len(self._keepers)",
        "reserved = True",
    ),
    Mutation(
        "no more workers keep than tasks are queued",
        "fast",
        CONNECTIONS + "test_sessions.py",
        "> len(self._keepers)",
        "> 0",
    ),
    Mutation(
        "a task lets go before its future resolves",
        "fast",
        CONNECTIONS + "test_release.py",
        "queue.settle(holder, interrupted=interrupted)",
        "pass",
    ),
    Mutation(
        "all aliases count",
        "fast",
        CONNECTIONS + "test_release.py",
        "for entry in entries: wrapper = entry.wrapper() if wrapper is None or entry.is_borrowed():",
        "for entry in list(entries)[:1]:\n        wrapper = entry.wrapper()\n"
        "        if wrapper is None or entry.is_borrowed():",
    ),
    Mutation(
        "an idle worker closes after conn_max_idle",
        "fast",
        CONNECTIONS + "test_release.py",
        "return _take(self, True, min(timeout, threading.TIMEOUT_MAX))",
        "return _take(self)",
    ),
    Mutation(
        "an idle worker closes at its connection's max age",
        "fast",
        CONNECTIONS + "test_release.py",
        "min(one.since + conn_max_idle, one.expires_at)",
        "one.since + conn_max_idle",
    ),
    Mutation(
        "what a callback opened is let go before the worker waits",
        "fast",
        CONNECTIONS + "test_release.py",
        "self.unreserve(holder) until = kept_until(holder, self._conn_max_idle)",
        "return _take(self)\n            until = None",
    ),
    # Dirty connections are never used again.
    Mutation(
        "an interrupted task's connection is not kept",
        "fast",
        CONNECTIONS + "test_sessions.py",
        "if ( interrupted or (permit is not None",
        "if (\n        (permit is not None",
    ),
    Mutation(
        "an open transaction makes a connection dirty",
        "fast",
        CONNECTIONS + "test_release.py",
        'if wrapper.vendor == "postgresql": return _transaction_state(driver)',
        'if wrapper.vendor == "postgresql":\n        return None',
    ),
    Mutation(
        "a changed autocommit makes a connection dirty",
        "fast",
        CONNECTIONS + "test_wrapper.py",
        'return "autocommit changed"',
        "return None",
    ),
    Mutation(
        "an open pipeline makes a connection dirty",
        "fast",
        CONNECTIONS + "test_sessions.py",
        'return "an open pipeline"',
        "return None",
    ),
    Mutation(
        "an open server-side cursor makes a connection dirty",
        "fast",
        CONNECTIONS + "test_sessions_edge_cases.py",
        "wrapper.connection is not None and any(map(is_open_on_server, self.cursors))",
        "False",
    ),
    Mutation(
        "a dirty connection's wrapper is dropped",
        "fast",
        CONNECTIONS + "test_release.py",
        "not _is_as_made(entry, wrapper))): _drop(entry, wrapper)",
        "not _is_as_made(entry, wrapper))):\n            pass",
    ),
    Mutation(
        "an error on closing replaces no result",
        "fast",
        CONNECTIONS + "test_wrapper.py",
        "_drop(wrapper, driver) return error",
        "_drop(wrapper, driver)\n        raise",
    ),
    Mutation(
        "what could not be closed is closed behind the wrapper's back",
        "fast",
        CONNECTIONS + "test_wrapper.py",
        "_drop(wrapper, driver) return error",
        "return error",
    ),
    # Django's own pool.
    Mutation(
        "a slot of Django's pool is given back also where closing fails",
        "fast",
        CONNECTIONS + "test_wrapper.py",
        "pool.putconn(driver)",
        "pass",
    ),
    Mutation(
        "a dirty connection of Django's pool is closed first",
        "fast",
        CONNECTIONS + "test_wrapper.py",
        "if dirty and driver is not None: _finish(driver)",
        "",
    ),
    # What a worker did not open.
    Mutation(
        "a task in its caller's thread cannot close the caller's connection",
        "fast",
        EXECUTORS + "test_immediate.py",
        "if entry.is_borrowed() and not has_ended(wrapper):",
        "if False:",
    ),
    Mutation(
        "a lent connection is its lender's",
        "fast",
        CONNECTIONS + "test_release.py",
        "if made_by != holder.thread_ident:",
        "if False:",
    ),
    Mutation(
        "a connection that its thread has lent survives that thread",
        "fast",
        CONNECTIONS + "test_thread_end.py",
        "and entry.holds(wrapper) and not wrapper.allow_thread_sharing",
        "and entry.holds(wrapper)",
    ),
    # The ends of threads.
    Mutation(
        "what a thread opened is closed when it ends",
        "fast",
        CONNECTIONS + "test_thread_end.py",
        "if wrapper is not None and entry.holds(wrapper) and not wrapper.allow_thread_sharing:",
        "if False:",
    ),
    Mutation(
        "a worker's thread is watched",
        "fast",
        CONNECTIONS + "test_thread_end.py",
        "guard.arm(holder) worker = queue.work.add_worker(holder)",
        "worker = queue.work.add_worker(holder)",
    ),
    # Kept connections.
    Mutation(
        "no task meets a connection that the server has closed",
        "fast",
        CONNECTIONS + "test_sessions.py",
        "now - kept.since < BYPASS_WINDOW and not _is_readable(kept.driver)",
        "now - kept.since < BYPASS_WINDOW",
    ),
    Mutation(
        "after half a second the server is asked",
        "slow",
        "tests/slow/test_network.py",
        "BYPASS_WINDOW = 0.5",
        "BYPASS_WINDOW = 1e9",
    ),
    Mutation(
        "a session is reset for a minute only",
        "fast",
        CONNECTIONS + "test_sessions.py",
        "expires_at = entry.opened_at + sessions.MAX_RESET_AGE",
        'expires_at = float("inf")',
    ),
    Mutation(
        "a connection is kept until its max age",
        "fast",
        CONNECTIONS + "test_sessions.py",
        'expires_at = float("inf") if wrapper.close_at is None else wrapper.close_at',
        'expires_at = float("inf")',
    ),
    Mutation(
        "the wait for a reset has an end",
        "slow",
        "tests/slow/test_network.py",
        "return False entry.kept = kept = Kept(wrapper.connection, now,",
        "return False\n    entry.kept = kept = Kept(wrapper.connection, now + 100_000,",
    ),
    # Fresh sessions.
    Mutation(
        "settings are reset",
        "fast",
        CONNECTIONS + "test_sessions.py",
        '"RESET ALL;"',
        "",
    ),
    Mutation(
        "temporary tables go",
        "fast",
        CONNECTIONS + "test_sessions.py",
        '"DISCARD TEMP;"',
        "",
    ),
    Mutation(
        "advisory locks go",
        "fast",
        CONNECTIONS + "test_sessions.py",
        '"SELECT pg_advisory_unlock_all();"',
        "",
    ),
    Mutation(
        "what a task sets on a wrapper goes",
        "fast",
        CONNECTIONS + "test_sessions.py",
        "if entry.made is None or not entry.made.still_hold(wrapper): return False",
        "",
    ),
    Mutation(
        "what a task sets on the driver's connection goes",
        "fast",
        CONNECTIONS + "test_sessions.py",
        "self._attributes.still_hold(driver) and self._adapters.still_hold(driver.adapters)",
        "True",
    ),
    Mutation(
        "receivers of connection_created run for each fresh session",
        "fast",
        CONNECTIONS + "test_sessions.py",
        "type(wrapper).connect(wrapper) except BaseException:",
        "wrapper.connection = kept.driver\n    except BaseException:",
    ),
    Mutation(
        "sessions of a subclass are not reset",
        "fast",
        CONNECTIONS + "test_sessions.py",
        "return _strategies.get(_name(wrapper))",
        "return next(iter(_strategies.values()))",
    ),
    Mutation(
        "nothing is reset where a setting speaks of a pooler",
        "fast",
        CONNECTIONS + "test_sessions.py",
        'or settings.get("DISABLE_SERVER_SIDE_CURSORS")',
        "",
    ),
    Mutation(
        "nothing is reset through a pooler",
        "servers",
        CONNECTIONS + "test_sessions.py",
        "if int(told.get_value(0, 0)) != pgconn.backend_pid:",
        "if False:",
    ),
    Mutation(
        "MySQL's hidden transaction ends before the next task",
        "servers",
        CONNECTIONS + "test_sessions.py",
        'if wrapper.vendor != "mysql": return True if not',
        "if True:\n        return True\n    if not",
    ),
    Mutation(
        "closing a connection is reentrant",
        "fast",
        CONNECTIONS + "test_sessions_edge_cases.py",
        "driver.lock = reentrant",
        "pass",
    ),
    # Connecting, and the ceiling.
    Mutation(
        "a connect that fails half way leaves no socket",
        "fast",
        CONNECTIONS + "test_hook.py",
        "if wrapper.connection is not None and wrapper.connection is not before:",
        "if False:",
    ),
    Mutation(
        "the ceiling is not exceeded",
        "fast",
        CONNECTIONS + "test_ceiling.py",
        "len(self._given) < self.most",
        "len(self._given) <= self.most",
    ),
    Mutation(
        "a parked connection is closed for whoever waits",
        "fast",
        CONNECTIONS + "test_ceiling.py",
        "self._reclaim_one() if not permit.wait(timeout)",
        "if not permit.wait(timeout)",
    ),
    Mutation(
        "a permit is given back when its connection closes",
        "fast",
        CONNECTIONS + "test_ceiling.py",
        "self.permit = None permit.give_back()",
        "self.permit = None",
    ),
    # The ledger, and what a task inherits.
    Mutation(
        "what was collected is not listed as open",
        "fast",
        CONNECTIONS + "test_ledger.py",
        "close_driver(kept.driver) entry.note_closed()",
        "close_driver(kept.driver)",
    ),
    Mutation(
        "a task has none of asgiref's routes",
        "fast",
        EXECUTORS + "test_thread_edge_cases.py",
        "if variable not in _routes:",
        "if True:",
    ),
    Mutation(
        "a task has a copy of its submitter's context",
        "fast",
        EXECUTORS + "test_context.py",
        "inherited = context.inherit() if self._inherit_context else None work = self._work",
        "inherited = None\n        work = self._work",
    ),
    Mutation(
        "a worker's cache clients are closed",
        "servers",
        EXECUTORS + "test_context.py",
        "try: _close(backend)",
        "try:\n            pass",
    ),
    Mutation(
        "django-redis has a pool of the worker's own",
        "servers",
        EXECUTORS + "test_context.py",
        'vars(factory)["_pools"] = {}',
        "pass",
    ),
    # What a pool says and refuses.
    Mutation(
        "an error that nobody asks for is logged",
        "fast",
        EXECUTORS + "test_task.py",
        "self._unheard = _Unheard(fn, exception, self._failed_with(exception)) if self._was_asked:",
        "if False:",
    ),
    Mutation(
        "a wait that can never end is an error",
        "fast",
        EXECUTORS + "test_task.py",
        "if self._are_all_stuck(work) or self._is_ring(work, worker):",
        "if False:",
    ),
    Mutation(
        "a bounded queue is bounded",
        "fast",
        EXECUTORS + "test_thread.py",
        "if len(self._places) >= self._most: raise NoRoom",
        "if len(self._places) > self._most:\n            raise NoRoom",
    ),
    Mutation(
        "at its deadline a shutdown cancels what has not begun",
        "fast",
        EXECUTORS + "test_base.py",
        "work.cancel_pending(not_run) running = work.running()",
        "running = work.running()",
    ),
    Mutation(
        "map cancels what nobody will ask for",
        "fast",
        EXECUTORS + "test_base.py",
        "finally: _cancel(futures)",
        "finally:\n        pass",
    ),
    Mutation(
        "a rollback cancels what waits for the commit",
        "fast",
        EXECUTORS + "test_on_commit.py",
        "if self._told: self._told.pop()[1]()",
        "pass",
    ),
    Mutation(
        "run_inline holds for a pool of threads",
        "fast",
        DJANGO + "test_testing.py",
        "if inline.switched_on: return self._immediate.submit(self._in_callers_threads.prepared(fn), "
        "*args, **kwargs) if (holder := current_holder()).entries: warn_if_open(holder, fn) around",
        "if (holder := current_holder()).entries:\n            warn_if_open(holder, fn)\n        around",
    ),
    # Forks, processes and clusters.
    Mutation(
        "a forked child leaves its parent's connections alone",
        "fast",
        CONNECTIONS + "test_fork.py",
        "os.register_at_fork(before=_before, after_in_parent=_after_in_parent, "
        "after_in_child=_after_in_child)",
        "",
    ),
    Mutation(
        "a forked child's pool has threads of its own",
        "fast",
        CONNECTIONS + "test_fork.py",
        "for executor in executors(): executor._begin_anew()",
        "pass",
    ),
    Mutation(
        "a child that is forked in a task ends when the task's function returns",
        "fast",
        CONNECTIONS + "test_fork_edge_cases.py",
        "if holder.executor is None: # a forked child end_process(sys.exc_info()[1])",
        "",
    ),
    Mutation(
        "a worker process lets go before it waits",
        "servers",
        EXECUTORS + "test_process.py",
        "self._unreserve(holder) release(holder)",
        "self._unreserve(holder)",
    ),
    Mutation(
        "a task in a worker process lets go before its outcome is sent",
        "servers",
        EXECUTORS + "test_process.py",
        "release(holder, keep=worker.keeps, interrupted=interrupted)",
        "pass",
    ),
    Mutation(
        "a worker process uses its parent's databases",
        "servers",
        EXECUTORS + "test_process.py",
        "held.update(database)",
        "pass",
    ),
    Mutation(
        "a task on a cluster lets go",
        "servers",
        EXECUTORS + "test_dask.py",
        "with connection_scope(): fn, args, kwargs = pickling.load_call(call)",
        "if True:\n            fn, args, kwargs = pickling.load_call(call)",
    ),
    Mutation(
        "passwords do not travel to a cluster",
        "servers",
        EXECUTORS + "test_dask_edge_cases.py",
        "return Withheld() if value and hides else value",
        "return value",
    ),
    # Real servers, and the end of the process.
    Mutation(
        "an executor that broke is replaced",
        "fast",
        DJANGO + "test_registry.py",
        "while (why := executor._why_useless()) is not None:",
        "while False:",
    ),
    Mutation(
        "a receiver's error costs no Django Task its result",
        "fast",
        DJANGO + "test_backends.py",
        'logger.exception("task=%s a receiver of its signals raised", self.result.task.name)',
        "raise",
    ),
]


class Copy:
    """The files of this checkout, in a folder of their own, in which one thing can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)

    def outcome(self, mutation: Mutation | None, tier: str) -> str:
        """Run the tier with this change: "caught", "SURVIVED", or what is wrong with the mutation."""
        if mutation is None:
            return "failed" if self._fails(tier, []) else "passes"
        try:
            path, match = mutation.place(self.folder / "src")
        except LookupError as error:
            return f"STALE: {error}"
        before = path.read_text()
        try:
            self._write(path, before[: match.start()] + mutation.new + before[match.end() :])
            compile(path.read_text(), path, "exec")
            is_caught = self._fails(tier, [mutation.near]) or self._fails(tier, [])
        except SyntaxError as error:
            return f"STALE: {error}"
        finally:
            self._write(path, before)
        return "caught" if is_caught else "SURVIVED"

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()

    def _fails(self, tier: str, files: Sequence[str]) -> bool:
        """Tell whether a test of this tier fails, a process crashes, or nothing ends."""
        if not all((self.folder / each).exists() for each in files):
            return False
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", tier, *files]
        variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(self.folder / "src")])}
        run = subprocess.Popen(
            command,
            cwd=self.folder,
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = run.wait(LIMITS[tier])
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            return True
        return code not in (0, 5)  # 5: no test of this tier is in these files


def run(chosen: Sequence[tuple[Mutation | None, str]], jobs: int) -> Iterator[str]:
    """Run these, so many at a time, and say of each how it ended."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            copies.put(Copy(Path(folder, str(number))))

        def one(mutation: Mutation | None, tier: str) -> str:
            copy, began = copies.get(), time.monotonic()
            try:
                outcome = copy.outcome(mutation, tier)
            finally:
                copies.put(copy)
            rule = "nothing is changed" if mutation is None else mutation.rule
            print(f"{outcome:9} {time.monotonic() - began:5.0f} s  {tier:8} {rule}", flush=True)
            return outcome

        yield from pool.map(lambda each: one(*each), chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tier", choices=LIMITS, help="those of one tier")
    parser.add_argument("--only", default="", metavar="WORD", help="those whose rule has this word")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    arguments = parser.parse_args()
    mutations = [
        each for each in MUTATIONS if arguments.tier in (None, each.tier) and arguments.only in each.rule
    ]
    if not mutations:
        print(f"no rule has {arguments.only!r} in it", file=sys.stderr)
        return 2
    tiers = sorted({each.tier for each in mutations}, key=list(LIMITS).index)
    unchanged = list(run([(None, tier) for tier in tiers], jobs=1))
    if set(unchanged) != {"passes"}:
        print("The tests fail already: nothing can be learned from that", file=sys.stderr)
        return 1
    outcomes = list(run([(each, each.tier) for each in mutations], arguments.jobs))
    caught = outcomes.count("caught")
    print(f"\n{caught} of {len(outcomes)} caught")
    return 0 if caught == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
