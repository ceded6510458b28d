"""Connections over time as a picture: a row for each way, a column for each variant."""

from collections.abc import Iterator, Sequence

from drawing import head, text

from .measure import Run
from .scales import by_way, duration, in_columns, top

WIDTH = 960
LEFT = 190  # the ways' names and the numbers of the scale
RIGHT = 20
GAP = 22
HEAD = 108
ROW = 122  # from one row of charts to the next
HIGH = 84  # a chart
FOOT = 44


def picture(runs: Sequence[Run], limit: int, small_print: str) -> str:
    """Draw the runs as SVG; `limit` is the server's max_connections."""
    return "\n".join(_Picture(runs, limit).draw(small_print)) + "\n"


class _Picture:
    def __init__(self, runs: Sequence[Run], limit: int) -> None:
        self.runs = runs
        self.limit = limit
        self.rows = by_way(runs)
        self.variants = [run.variant for run in self.rows[0]]
        self.top = top(runs, limit)
        self.wide = (WIDTH - LEFT - RIGHT + GAP) // len(self.variants) - GAP
        self.height = HEAD + ROW * len(self.rows) + FOOT

    def draw(self, small_print: str) -> Iterator[str]:
        yield from head(
            WIDTH, self.height, title="Database connections over time", description=self._in_words()
        )
        yield text(20, 34, "Connections that PostgreSQL counts, while pools run ORM tasks", "title")
        if self.top == self.limit:
            right = WIDTH - RIGHT
            limit = f"max_connections = {self.limit}"
            yield text(right, 34, limit, "faint", anchor="end")
            yield f'<path class="limit" d="M{right - 190} 30h36"/>'
        for column, variant in enumerate(self.variants):
            yield text(self._x(column), HEAD - 32, variant.short_title, "head")
        for number, row in enumerate(self.rows):
            y = HEAD + ROW * number
            yield text(20, y + HIGH // 2 + 4, row[0].way.title, f"way {row[0].way.key}")
            for column, run in enumerate(row):
                yield from self._chart(run, self._x(column), y, first=column == 0)
        bottom = HEAD + ROW * (len(self.rows) - 1) + HIGH
        for column, variant in enumerate(self.variants):
            seconds = f"{duration(self.runs, variant):.0f} s"
            yield text(self._x(column), bottom + 17, "0", "faint")
            yield text(self._x(column) + self.wide, bottom + 17, seconds, "faint", anchor="end")
        yield text(self._x(0) + self.wide // 2, bottom + 17, "seconds", "faint", anchor="middle")
        yield text(20, self.height - 37, self._notes(), "small")
        yield text(20, self.height - 18, small_print, "small")
        yield "</svg>"

    def _notes(self) -> str:
        ways = [row[0].way for row in self.rows]
        return "; ".join(f"{way.title}: {way.note}" for way in ways if way.note)

    def _x(self, column: int) -> int:
        return LEFT + column * (self.wide + GAP)

    def _chart(self, run: Run, x: int, y: int, *, first: bool) -> Iterator[str]:
        base = y + HIGH
        yield f'<path class="rule" d="M{x} {base}h{self.wide}"/>'
        if self.top == self.limit:
            yield f'<path class="limit" d="M{x} {y}h{self.wide}"/>'
        if run.ceiling:
            ceiling = self._y(run.ceiling, base)
            yield f'<path class="limit" d="M{x} {ceiling}h{self.wide}"/>'
            yield text(x + self.wide, ceiling - 5, f"ceiling {run.ceiling}", "faint", anchor="end")
        if first:
            for number in (0, self.top // 2, self.top):
                yield text(x - 8, self._y(number, base) + 4, str(number), "faint", anchor="end")
        counts = in_columns(run.samples, self.wide, duration(self.runs, run.variant))
        heights = [self._y(count, base) for count in counts if count is not None]
        key = run.way.key
        steps = _steps(x, heights)
        yield f'<path class="area {key}" d="{steps}V{base}H{x}z"/>'
        yield f'<path class="line {key}" d="{steps}"/>'
        end = x + len(heights) - 1
        yield f'<circle class="{key}" cx="{end}" cy="{heights[-1]}" r="2.5"/>'
        words = f"peak {run.peak}, {run.left} left"
        if run.failures:
            words += f", {run.failures} failed"
        yield text(x, y - 8, words, "words")

    def _y(self, count: int, base: int) -> float:
        return round(base - HIGH * count / self.top, 1)

    def _in_words(self) -> str:
        return "; ".join(
            f"{run.way.title}, {run.variant.short_title}: peak {run.peak}, {run.left} left, "
            f"{run.failures} of {run.jobs} jobs failed"
            for run in self.runs
        )


def _steps(x: int, heights: Sequence[float]) -> str:
    """A path through `heights`, one unit apart, that only says where the height changes."""
    path, before = f"M{x} {heights[0]:g}", heights[0]
    for number, height in enumerate(heights):
        if height != before:
            path += f"H{x + number}V{height:g}"
            before = height
    return f"{path}H{x + len(heights) - 1}"
