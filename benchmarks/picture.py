"""The speeds as a picture: a row for each contestant, a column for each server."""

from collections.abc import Iterator, Sequence

from drawing import head, text

from .contestants import CONTESTANTS, LEAKING
from .ratios import Block, Figure

WIDTH = 960
LEFT = 216  # the contestants' names
RIGHT = 20
GAP = 16
HEAD = 112
ROW = 36
HIGH = 12  # a bar
FOOT = 52
VALUE = 34  # the figure beside a bar
HIGHEST = 1.5  # where the scale ends: what goes beyond it is noise


def picture(blocks: Sequence[Block], workload: str, small_print: str) -> str:
    """Draw the blocks of one workload as SVG."""
    chosen = [block for block in blocks if block.workload.key == workload]
    return "\n".join(_Picture(chosen).draw(small_print)) + "\n" if chosen else ""


class _Picture:
    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.rows = [each for each in CONTESTANTS if any(each in block.seconds for block in blocks)]
        self.wide = (WIDTH - LEFT - RIGHT + GAP) // len(blocks) - GAP
        speeds = [block.compare(each) for block in blocks for each in self.rows]
        self.top = min(HIGHEST, max(speed.high for speed in speeds if speed is not None))
        self.bottom = HEAD + ROW * len(self.rows)

    def draw(self, small_print: str) -> Iterator[str]:
        title = f"Speed of tasks with {self.blocks[0].workload.title}, by the server"
        height = self.bottom + FOOT
        yield from head(WIDTH, height, title=title, description=self._in_words())
        yield text(20, 34, title, "title")
        how = (
            "Longer is faster. The standard pool, which leaks, is 1.00. CONN_MAX_AGE is 0 unless given."
        )
        yield text(20, 56, how, "faint")
        for column, block in enumerate(self.blocks):
            x = LEFT + column * (self.wide + GAP)
            yield from self._names(block, x)
            yield f'<path class="rule" d="M{x} {HEAD - 8}V{self.bottom - 8}"/>'
            yield f'<path class="limit" d="M{self._x(x, 1):g} {HEAD - 8}V{self.bottom - 8}"/>'
            for number, each in enumerate(self.rows):
                if (speed := block.compare(each)) is not None:
                    yield from self._bar(each.colour, speed, x, HEAD + ROW * number)
        for number, each in enumerate(self.rows):
            way, _, how = each.title.partition(", ")
            y = HEAD + ROW * number + HIGH - (4 if how else 0)
            yield text(20, y, way, f"way {each.colour}")
            yield text(20, y + 14, how, "faint")
        yield text(20, height - 20, small_print, "small")
        yield "</svg>"

    def _names(self, block: Block, x: int) -> Iterator[str]:
        """The server's name, in two lines where it has two parts."""
        first, _, second = block.server.title.partition(", ")
        yield text(x, HEAD - 32, first, "head")
        yield text(x, HEAD - 16, second, "faint")

    def _bar(self, colour: str, speed: Figure, x: int, y: int) -> Iterator[str]:
        end = self._x(x, speed.median)
        yield f'<path class="area {colour}" d="M{x} {y}H{end:g}v{HIGH}H{x}z"/>'
        yield f'<path class="line {colour}" d="M{end:g} {y}v{HIGH}"/>'
        low, high = self._x(x, speed.low), self._x(x, speed.high)
        yield f'<path class="line {colour}" d="M{low:g} {y + HIGH // 2}H{high:g}"/>'
        beyond = max(end, high) + 4
        yield text(beyond, y + HIGH - 1, f"{speed.median:.2f}", "words")

    def _x(self, x: int, speed: float) -> float:
        return round(x + (self.wide - VALUE) * min(speed / self.top, 1), 1)

    def _in_words(self) -> str:
        return "; ".join(
            f"{block.server.title}: "
            + ", ".join(
                f"{each.title} {speed.median:.2f}"
                for each in self.rows
                if each is not LEAKING and (speed := block.compare(each)) is not None
            )
            for block in self.blocks
        )
