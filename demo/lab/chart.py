"""Connections over time in the terminal: a row for each way, a column for each variant.

The charts share their scales, so that each can be read beside the others without colours.
"""

from collections.abc import Sequence

from .measure import Run
from .scales import by_way, duration, in_columns, top
from .terminal import Terminal

HEIGHT = 4
AXIS = 6
GAP = 2


def chart(runs: Sequence[Run], limit: int, terminal: Terminal) -> str:
    """Draw the runs; `limit` is the server's max_connections."""
    rows = by_way(runs)
    variants = [run.variant for run in rows[0]]
    width = (terminal.width - AXIS + GAP) // len(variants) - GAP
    highest = top(runs, limit)
    titles = "".join(f"{variant.short_title[:width]:<{width + GAP}}" for variant in variants)
    lines = [terminal.bold(" " * AXIS + titles.rstrip())]
    for row in rows:
        way = row[0].way
        lines.append(terminal.paint(way.title, way.key))
        lines.append(_scale(highest, _limit_line(highest == limit, width, len(row), terminal)))
        areas = []
        for run in row:
            counts = in_columns(run.samples, width, duration(runs, run.variant))
            area = _area(counts, highest, terminal)
            areas.append(_with_ceiling(area, run.ceiling, highest, terminal) if run.ceiling else area)
        for number, parts in enumerate(zip(*areas, strict=True)):
            painted = (" " * GAP).join(terminal.paint(part, way.key) for part in parts)
            lines.append(_scale(0, painted) if number == HEIGHT - 1 else " " * AXIS + painted)
    ends = [f"{duration(runs, variant):.1f} s" for variant in variants]
    lines.append(" " * AXIS + (" " * GAP).join(f"0{end:>{width - 1}}" for end in ends))
    return "\n".join(line.rstrip() for line in lines)


def _scale(number: int, rest: str) -> str:
    return f"{number:>{AXIS - 1}} {rest}".rstrip()


def _limit_line(is_limit: bool, width: int, columns: int, terminal: Terminal) -> str:
    dash = _dash(terminal) if is_limit else " "
    return (" " * GAP).join([dash * width] * columns)


def _with_ceiling(area: list[str], ceiling: int, highest: int, terminal: Terminal) -> list[str]:
    """Draw the ceiling right above the lines that are below it, behind what is higher."""
    width = len(area[0])
    line = f" ceiling {ceiling} ".center(width, _dash(terminal))[:width]
    at = max(HEIGHT - 1 - -(-ceiling * HEIGHT // highest), 0)
    behind = "".join(mark if cell == " " else cell for mark, cell in zip(line, area[at], strict=True))
    return [*area[:at], behind, *area[at + 1 :]]


def _dash(terminal: Terminal) -> str:
    return "╌" if terminal.unicode else "-"


def _area(counts: Sequence[int | None], highest: int, terminal: Terminal) -> list[str]:
    """Fill the area below the counts with block characters, top line first."""
    steps = " ▁▂▃▄▅▆▇█" if terminal.unicode else " .:#"
    finest = len(steps) - 1
    lines = []
    for floor in range((HEIGHT - 1) * finest, -1, -finest):
        line = ""
        for count in counts:
            # One connection is seen, however high the scale.
            level = -(-(count or 0) * HEIGHT * finest // highest)
            line += steps[min(max(level - floor, 0), finest)]
        lines.append(line)
    return lines
