"""RESULTS.md: what was measured, on what, by which command."""

from collections.abc import Iterator, Sequence

from .cell import JOBS, NEW_POOL
from .circumstances import Circumstances
from .contestants import CONTESTANTS, LEAKING, OURS, PROCESSES
from .flat import BATCH
from .ratios import Block, Measured
from .rounds import SEED
from .servers import WORKERS
from .targets import outcomes

MEASURED = f"""\
Speed against the standard pool that leaks = 1.00: higher is faster. {WORKERS} workers. A figure is the
median of the ratios within a round, with the quartiles of the rounds in brackets. In each round each
contestant runs once; the order is shuffled (seed {SEED}). The clock starts when each worker has
connected and has run one task of the kind, for every contestant, so the leaking pool's own connecting
is not counted; what is connected after that is. It stops when the last result is there. Every result
is checked. All contestants run in one process, with `django_executors` imported and not installed as
an app. Contestants that are more than four times as slow get fewer tasks. CONN_MAX_AGE is 0 where
nothing else is said.

The floor is the least that a fresh session for each task costs: the standard pool that leaks, with one
bare `pgconn.exec_(b"DISCARD ALL")` after each task.
"""
# The parts that are measured otherwise: their titles, and what a reader has to know.
CPU = """\
The processor time of the whole process, including the thread that submits, without the server's. The
least of the rounds, against the standard pool that leaks = 1.00: lower is better."""
POOLS = f"""\
A new pool of {NEW_POOL} for {JOBS} tasks of one query each, until it has ended; then the next one. Speed
against connection.close() after each task = 1.00, whose time for one task is shown: higher is faster."""
PARTS = {
    "cpu": ("CPU of one worker", CPU),
    "pools": ("new pools", POOLS),
    "processes": ("processes", f"{PROCESSES} workers."),
    "cluster": ("cluster", f"{PROCESSES} workers."),
}


def report(measured: Measured, circumstances: Circumstances, picture: str | None) -> str:
    """Write the page; `picture` is where the picture lies, seen from it."""
    parts = [
        ["# Benchmark", "", f"Made by `{circumstances.command}`. Do not edit."],
        [f"![Speed of each way on each server]({picture})"] if picture else [],
        [MEASURED.rstrip()],
        ["## Made on", "", *made_on(circumstances)],
        ["## Targets", "", *target_lines(measured)],
        *(["## " + part[0], "", *part[1:]] for part in server_parts(measured.blocks)),
        ["## Cost of a no-op, late and among many", "", *flat_lines(measured)] if measured.flat else [],
        ["## Memory", "", *memory_lines(measured)] if measured.memory else [],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def made_on(circumstances: Circumstances) -> Iterator[str]:
    yield f"- {circumstances.machine}; {circumstances.rounds} rounds"
    yield "- " + ", ".join(f"{name} {version}" for name, version in circumstances.versions.items())
    for name, why in circumstances.missing.items():
        yield f"- {name} did not run: {why}"


def target_lines(measured: Measured) -> Iterator[str]:
    yield "| | target | measured | |"
    yield "|---|---|---|---|"
    for each in outcomes(measured):
        yield f"| {each.what} | {each.target} | {each.measured} | {'' if each.reached else 'missed'} |"


def server_parts(blocks: Sequence[Block]) -> Iterator[list[str]]:
    parts = dict.fromkeys((block.server.key, block.workload.part) for block in blocks)
    for key, part in parts:
        here = [each for each in blocks if (each.server.key, each.workload.part) == (key, part)]
        note, title = here[0].server.note, here[0].server.title
        if part in PARTS:
            of_part, how = PARTS[part]
            note, title = f"{how} {note}".rstrip(), f"{title}: {of_part}"
        yield [title, *([note, ""] if note else []), *table(here)]


def table(blocks: Sequence[Block]) -> Iterator[str]:
    yield "| | " + " | ".join(block.workload.title for block in blocks) + " |"
    yield "|---" * (len(blocks) + 1) + "|"
    for each in CONTESTANTS:
        figures = [block.compare(each) for block in blocks]
        if any(figures):
            cells = ["" if figure is None else str(figure) for figure in figures]
            if each is blocks[0].base:
                cells = [f"1.00 = {block.microseconds():.0f} µs" for block in blocks]
            yield f"| {each.title} | " + " | ".join(cells) + " |"


def flat_lines(measured: Measured) -> Iterator[str]:
    yield f"Processor time of {OURS.title}, against {LEAKING.title}, with one worker each, in turn, a"
    yield f"batch of {BATCH} at a time: lower is better. Medians of the batches, with their quartiles."
    for what, figures in measured.flat.items():
        yield from ("", "| " + what + " | |", "|---|---|")
        for number, figure in figures.items():
            yield f"| {number:,} | {figure} |"


def memory_lines(measured: Measured) -> Iterator[str]:
    for each, size in measured.memory.items():
        yield f"- {each.title}: {size:.0f} bytes for each queued no-op, its future included"
