"""The command line, and what it starts."""

import argparse
import gc
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from private_servers import ServerFailed

from .circumstances import Circumstances, machine, versions_of
from .contestants import CONTESTANTS, LEAKING, OURS, missing
from .flat import flat
from .live import Live
from .memory import bytes_each
from .page import pages
from .picture import picture
from .profiler import profile
from .ratios import Block, Measured
from .report import report
from .rounds import ONCE, Size, blocks
from .servers import KEYS, Server, running
from .targets import outcomes
from .workloads import NOOP, ONE_QUERY, WORKLOADS, WrongResultError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
PICTURE = ROOT / "docs" / "images" / "benchmark.svg"

FULL = Size(rounds=9)
QUICK = Size(rounds=1, tasks=16)
QUICK_WORKLOADS = (
    *("noop", "one", "insert", "one-by-one", "cpu-noop", "cpu-one", "pools"),
    *("processes-noop", "processes-by-one", "cluster-noop", "cluster-by-one"),
)
PARTS = ("cpu", "pools", "processes", "cluster")
QUEUED, QUEUED_QUICK = 100_000, 5_000
# How many tasks a pool runs, how many idle pools there are, how many batches are measured.
FLAT = (1_000, 10_000, 100_000, 1_000_000), (1, 10, 100, 1_000), 100
FLAT_QUICK = (1_000, 2_000), (1, 10), 2
PROFILED = 2_000


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    gc.collect()
    gc.freeze()  # what is there now need not be looked through between two runs
    try:
        with running(options.server) as (servers, missing_servers):
            if not servers:
                print("\n".join(missing_servers.values()), file=sys.stderr)
                return 2
            if options.profile or options.page:
                show_one_thing(options, servers[0])
                return 0
            circumstances = Circumstances(
                command=shlex.join(["python", "benchmarks/run.py", *told(arguments)]),
                rounds=options.size.rounds,
                versions=versions_of(servers),
                machine=machine(),
                missing=missing_servers | missing(),
            )
            for name, why in circumstances.missing.items():
                print(f"{name} does not run: {why}")
            live = Live(options.size)
            compared: list[Block] = []
            for block in blocks(servers, options.workload, options.size):
                live.show(block)
                compared.append(block)
        measured = Measured(compared, {}, {})
        if any(block.workload is NOOP for block in compared):
            measured.memory.update((each, bytes_each(each, options.queued)) for each in (LEAKING, OURS))
            measured.flat.update(flat(*options.flat))
    except WrongResultError as wrong:
        print(f"Wrong: {wrong}", file=sys.stderr)
        return 1
    except ServerFailed as failed:
        print(failed, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.quick:
        print("\nEvery result was right. With so few tasks the figures say nothing.")
    else:
        show_outcomes(measured)
    write(measured, circumstances, options)
    return 0


def show_one_thing(options: argparse.Namespace, server: Server) -> None:
    if options.profile:
        profile(*options.profile, server, PROFILED)
        return
    for line in pages(server, options.size.rounds):
        print(line)


def show_outcomes(measured: Measured) -> None:
    print("\nTargets")
    for each in outcomes(measured):
        verdict = "" if each.reached else "  missed"
        print(f"  {each.what}: {each.target}, measured {each.measured}{verdict}")
    print("\nEvery result was right.")


def write(measured: Measured, circumstances: Circumstances, options: argparse.Namespace) -> None:
    """Write the page and the picture, where they are wanted."""
    versions = circumstances.versions
    small_print = (
        f"Medians of {circumstances.rounds} rounds, with quartiles; "
        f"Python {versions['Python']}, Django {versions['Django']}. "
        "Versions, command and all figures: benchmarks/RESULTS.md."
    )
    drawing = picture(measured.blocks, ONE_QUERY.key, small_print) if options.svg else ""
    if drawing:
        put(options.svg, drawing)
    if options.out:
        beside = os.path.relpath(options.svg, options.out.parent) if drawing else None
        put(options.out, report(measured, circumstances, beside))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"Written: {os.path.relpath(path)}")


def told(arguments: Sequence[str]) -> list[str]:
    """The arguments without the names of files, which are the machine's."""
    files = {"--out", "--svg"}
    return [
        each
        for before, each in zip(["", *arguments], arguments, strict=False)
        if not ({before, each.partition("=")[0]} & files)
    ]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    contestants = {each.key: each for each in CONTESTANTS}
    workloads = {each.key: each for each in WORKLOADS}
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Compare django-executors with the standard pool and the recipes around it.",
        epilog="It starts servers of its own. It ends with 1 if a result was wrong, never for a time. "
        "A whole run writes benchmarks/RESULTS.md and docs/images/benchmark.svg, a part of one only "
        "what it is told to.",
    )
    parser.add_argument("--quick", action="store_true", help="see that all results are right")
    parser.add_argument("--server", action="append", choices=KEYS, metavar="|".join(KEYS))
    parser.add_argument("--workload", action="append", choices=workloads, metavar="|".join(workloads))
    for part in PARTS:
        parser.add_argument(
            f"--{part}", dest="part", action="store_const", const=part, help="its workloads alone"
        )
    parser.add_argument("--page", action="store_true", help="a page's queries side by side, alone")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default {FULL.rounds}")
    parser.add_argument("--out", type=Path, metavar="PATH", help="where to write the results")
    parser.add_argument("--svg", type=Path, metavar="PATH", help="where to draw the picture")
    parser.add_argument(
        "--profile", nargs=2, metavar=("CONTESTANT", "WORKLOAD"), help=f"of {', '.join(contestants)}"
    )
    options = parser.parse_args(arguments)
    if options.part:
        options.server = options.server or list(ONCE)
        options.workload = [each.key for each in WORKLOADS if each.part == options.part]
    if options.profile:
        contestant, workload = options.profile
        if contestant not in contestants or workload not in workloads:
            parser.error(f"--profile: no such contestant or workload: {contestant} {workload}")
        options.profile = contestants[contestant], workloads[workload]
    one_server = options.profile or options.page
    if not (options.quick or options.server or options.workload or one_server):
        options.out, options.svg = options.out or RESULTS, options.svg or PICTURE
    default_servers = ["tcp"] if one_server else list(KEYS)
    options.server = options.server or default_servers
    chosen = options.workload or (QUICK_WORKLOADS if options.quick else workloads)
    options.workload = [each for each in WORKLOADS if each.key in chosen]
    size = QUICK if options.quick else FULL
    options.size = Size(options.rounds or size.rounds, size.seconds, size.tasks)
    options.queued = QUEUED_QUICK if options.quick else QUEUED
    options.flat = FLAT_QUICK if options.quick else FLAT
    return options
