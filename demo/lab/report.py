"""The runs as tables, as JSON, and as the README's table."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from .measure import Run
from .terminal import Terminal
from .workload import CEILING, WORKERS

COLUMNS = "{:<16}{:>6}{:>6}{:>9}{:>13}{:>12}{:>18}"
HEAD = (
    ("", "peak", "left", "seconds", "failures", "connections", "all_connections()"),
    ("", "", "", "", "", ".all()", ""),
)

#: What the README's table stands between.
MARKS = ("<!-- measured: begin -->\n", "<!-- measured: end -->\n")
MARKDOWN = """
| `{command}`: pools of {workers} workers | | peak | left | seconds | failed jobs |
|---|---|---:|---:|---:|---:|
{lines}

Connections as `pg_stat_activity` counts them, at most and at the end. The usual recipe is
`connection.close()` after each task. The ceiling, of django-executors alone, is
`EXECUTORS_MAX_CONNECTIONS = {{"default": {ceiling}}}`. Python {python}, Django {django}, and a
PostgreSQL {postgresql} that allows {max_connections}. The numbers differ from run to run, those of the
leaking ways most, as the garbage collector comes and goes; the zeros of django-executors do not, and
its ceiling holds.

"""


def tables(runs: Sequence[Run], terminal: Terminal) -> str:
    """One table for each variant: what the server counted, and what the process itself knew."""
    return "\n\n".join(
        "\n".join(_table([run for run in runs if run.variant == variant], terminal))
        for variant in dict.fromkeys(run.variant for run in runs)
    )


def _table(runs: Sequence[Run], terminal: Terminal) -> Iterator[str]:
    yield terminal.bold(f"{runs[0].variant.title} ({WORKERS} workers)")
    for words in HEAD:
        yield COLUMNS.format(*words).rstrip()
    for run in runs:
        line = COLUMNS.format(
            run.way.title,
            run.peak,
            run.left,
            f"{run.seconds:.1f}",
            f"{run.failures} of {run.jobs}",
            run.connections_all,
            run.all_connections,
        )
        yield terminal.paint(line, run.way.key)
    for run in runs:
        if run.failures:
            yield f"{run.way.title}, the first failure: {run.first_failure}"
        if (wrong := wrong_rows(run)) is not None:
            yield f"{run.way.title}: {wrong}"


def wrong_rows(run: Run) -> str | None:
    """What is wrong with the rows that the jobs wrote, if anything."""
    if run.rows == run.right_rows == run.jobs - run.failures:
        return None
    succeeded = run.jobs - run.failures
    return f"{succeeded} jobs succeeded and wrote {run.rows} rows, {run.right_rows} of them right"


def verdict(runs: Sequence[Run]) -> str:
    """Whether the rows are right, and whether the ceiling held."""
    return "\n".join([_on_rows(runs), *(_on_ceiling(run, run.ceiling) for run in runs if run.ceiling)])


def _on_rows(runs: Sequence[Run]) -> str:
    if any(wrong_rows(run) for run in runs):
        return "Some rows are wrong: see above."
    rows = sum(run.rows for run in runs)
    return f"Each job that did not fail wrote its row: {rows} rows, all of the right amount."


def _on_ceiling(run: Run, ceiling: int) -> str:
    if run.peak > ceiling:
        return f"{run.way.title} had {run.peak} connections: that is more than its ceiling of {ceiling}."
    return (
        f"Under its ceiling of {ceiling} {run.way.title} had at most {run.peak} connections, "
        f"and {run.failures} of {run.jobs} jobs failed."
    )


def as_json(runs: Sequence[Run], circumstances: dict[str, Any]) -> str:
    """The numbers for a program: `circumstances`, and the runs without their samples."""
    records = []
    for run in runs:
        record = asdict(run) | {"way": run.way.key, "variant": run.variant.key, "ceiling": run.ceiling}
        del record["samples"]
        records.append(record)
    return json.dumps(circumstances | {"runs": records}, indent=2) + "\n"


def with_table(page: str, runs: Sequence[Run], circumstances: dict[str, Any]) -> str:
    """Return `page`, a text in Markdown, with its table between the `MARKS` written anew."""
    begin, end = MARKS
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    lines = "\n".join(_rows(runs))
    table = MARKDOWN.format_map(circumstances | {"workers": WORKERS, "ceiling": CEILING, "lines": lines})
    return before + begin + table + end + after


def _rows(runs: Sequence[Run]) -> Iterator[str]:
    variant = None
    for run in runs:
        title = run.variant.title if run.variant != variant else ""
        variant = run.variant
        failed = f"{run.failures} of {run.jobs}"
        yield f"| {title} | {run.way.title} | {run.peak} | {run.left} | {run.seconds:.1f} | {failed} |"
