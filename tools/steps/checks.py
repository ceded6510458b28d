"""The checks that `test` runs: what each says, and the summary at the end."""

import contextlib
import os
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from .environments import ROOT, say
from .stopping import Stopped

INTERRUPT_SECONDS = 30.0  # above the longest wait of a test


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Result:
    """One line of the summary. `passed` and `failed` count tests; a plain check is one."""

    name: str
    outcome: Outcome
    detail: str = ""
    passed: int = 0
    failed: int = 0


def run_check(name: str, command: Sequence[str | Path]) -> Result:
    """Run one command and show its output; it passes if the command does."""
    ok = run_shown(name, command)
    if ok:
        return Result(name, Outcome.PASSED, passed=1)
    return Result(name, Outcome.FAILED, detail=" ".join(map(_shown, command)), failed=1)


def run_pytests(commands: Mapping[str, Sequence[str | Path]]) -> Iterable[Result]:
    """Run them side by side, and take the counts and the reasons of skips from their reports.

    What the first prints is shown as it comes, and what each other printed after that one's end.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        first, *others = [
            (name, [*command, f"--junitxml={Path(folder, name)}.xml"])
            for name, command in commands.items()
        ]
        started = []
        for name, command in others:
            log = Path(folder, f"{name}.log")
            process = stack.enter_context(_started(command, stack.enter_context(log.open("wb"))))
            started.append((name, process, log))
        name, command = first
        yield _of_pytest(name, run_shown(name, command), Path(folder, f"{name}.xml"))
        for name, process, log in started:
            ended_well = process.wait() == 0
            say(f"\n== {name}\n{log.read_text(errors='replace')}")
            yield _of_pytest(name, ended_well, Path(folder, f"{name}.xml"))


def run_shown(name: str, command: Sequence[str | Path]) -> bool:
    say(f"\n== {name}")
    with _started(command) as process:
        return process.wait() == 0


@contextlib.contextmanager
def _started(
    command: Sequence[str | Path], output: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is stopped when the block raises, as by the signal that stops this one."""
    process = subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=output, stderr=output)
    try:
        yield process
    except BaseException as error:
        if isinstance(error, Stopped):
            process.send_signal(error.args[0])
        elif not isinstance(error, KeyboardInterrupt):  # which the whole group has got
            process.terminate()
        try:  # let it clean up
            process.wait(INTERRUPT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def missing(name: str, why: str, *, required: bool) -> Result:
    """Something that cannot run on this machine, which is a failure where it is required."""
    if required:
        return Result(name, Outcome.FAILED, why, failed=1)
    return Result(name, Outcome.NOT_RUN, why)


def summarize(results: Sequence[Result]) -> bool:
    """Print what passed, failed and was not run, and why; True if nothing failed."""
    say("\n== Summary")
    width = max(len(result.name) for result in results)
    for result in results:
        first, *rest = result.detail.splitlines() or [""]
        say(f"{result.name:{width}}  {result.outcome:7}  {first}".rstrip())
        for line in rest:
            say(" " * (width + 11) + line)
    failed = sum(result.failed for result in results)
    say(f"\n{sum(result.passed for result in results)} passed, {failed} failed")
    return failed == 0


def _environment() -> Mapping[str, str]:
    """Ours, without what would choose other settings or other modules than the checkout's.

    The suite's settings import `private_servers`; mypy's Django plugin looks for it here.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("DJANGO_SETTINGS_MODULE", "PYTHONHOME")}
    return {**kept, "PYTHONPATH": str(ROOT / "tools")}


def _of_pytest(name: str, ok: bool, report: Path) -> Result:
    counts, skips = _read_report(report)
    failed = counts["failed"] or (0 if ok else 1)  # it may have ended before any test
    parts = [f"{counts['passed']} passed"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{sum(skips.values())} skipped"] if skips else []
    reasons = [f"  {count} skipped: {reason}" for reason, count in skips.most_common()]
    return Result(
        name,
        Outcome.PASSED if ok else Outcome.FAILED,
        detail="\n".join([", ".join(parts), *reasons]),
        passed=counts["passed"],
        failed=failed,
    )


def _read_report(report: Path) -> tuple[Counter[str], Counter[str]]:
    """Counts of tests by how they ended, and of skipped ones by their reason."""
    counts: Counter[str] = Counter()
    skips: Counter[str] = Counter()
    if not report.exists():
        return counts, skips
    for case in ET.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
        elif skipped is not None:
            skips[skipped.get("message", "")] += 1
        else:
            counts["passed"] += 1
    return counts, skips


def _shown(part: str | Path) -> str:
    """A path as the reader would type it, from the checkout's folder."""
    text = str(part)
    return text.removeprefix(f"{ROOT}/")
