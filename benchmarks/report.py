"""RESULTS.md: what was measured, on what, by which command."""

from collections.abc import Iterator, Sequence

from .circumstances import Circumstances
from .contestants import CONTESTANTS, KEY_TO_TITLES, PROCESSES, Contestant
from .ratios import Block
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
an app. Contestants that are more than four times as slow get fewer tasks.

{KEY_TO_TITLES}
"""


def report(
    blocks: Sequence[Block],
    memory: dict[Contestant, float],
    circumstances: Circumstances,
    picture: str | None,
) -> str:
    """Write the page; `picture` is where the picture lies, seen from it."""
    parts = [
        ["# Benchmark", "", f"Made by `{circumstances.command}`. Do not edit."],
        [f"![Speed of each way on each server]({picture})"] if picture else [],
        [MEASURED.rstrip()],
        ["## Made on", "", *made_on(circumstances)],
        ["## Targets", "", *target_lines(blocks, memory)],
        *(["## " + part[0], "", *part[1:]] for part in server_parts(blocks)),
        ["## Memory", "", *memory_lines(memory)] if memory else [],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def made_on(circumstances: Circumstances) -> Iterator[str]:
    yield f"- {circumstances.machine}; {circumstances.rounds} rounds"
    yield "- " + ", ".join(f"{name} {version}" for name, version in circumstances.versions.items())
    for name, why in circumstances.missing.items():
        yield f"- {name} did not run: {why}"


def target_lines(blocks: Sequence[Block], memory: dict[Contestant, float]) -> Iterator[str]:
    yield "| | target | measured | |"
    yield "|---|---|---|---|"
    for each in outcomes(blocks, memory):
        yield f"| {each.what} | {each.target} | {each.measured} | {'' if each.reached else 'missed'} |"


def server_parts(blocks: Sequence[Block]) -> Iterator[list[str]]:
    parts = dict.fromkeys((block.server.key, block.workload.place) for block in blocks)
    for key, place in parts:
        here = [each for each in blocks if (each.server.key, each.workload.place) == (key, place)]
        note, title = here[0].server.note, here[0].server.title
        if place != "threads":
            note, title = f"{PROCESSES} workers. {note}".rstrip(), f"{title}: {place}"
        yield [title, *([note, ""] if note else []), *table(here)]


def table(blocks: Sequence[Block]) -> Iterator[str]:
    yield "| | " + " | ".join(block.workload.title for block in blocks) + " |"
    yield "|---" * (len(blocks) + 1) + "|"
    for each in CONTESTANTS:
        speeds = [block.speed(each) for block in blocks]
        if any(speeds):
            cells = ["" if speed is None else str(speed) for speed in speeds]
            if each is blocks[0].base:
                cells = [f"1.00 = {block.microseconds().median:.0f} µs" for block in blocks]
            yield f"| {each.title} | " + " | ".join(cells) + " |"


def memory_lines(memory: dict[Contestant, float]) -> Iterator[str]:
    for each, size in memory.items():
        yield f"- {each.title}: {size:.0f} bytes for each queued no-op, its future included"
