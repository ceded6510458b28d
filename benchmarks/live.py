"""The table that grows in the terminal while the benchmark runs: medians of ratios."""

from .contestants import CONTESTANTS, KEY_TO_TITLES, LEAKING
from .ratios import Block
from .rounds import SEED, Size
from .servers import WORKERS

FIRST, TASK, WIDTH = 16, 8, 10
SHOWN = [each for each in CONTESTANTS if each is not LEAKING]


class Live:
    """Prints a line for each block, and a heading for each server."""

    def __init__(self, size: Size) -> None:
        self._server = ""
        print(
            f"{WORKERS} workers, {size.rounds} rounds, order shuffled with the seed {SEED}. Speed, the "
            "leaking pool = 1.00, whose time for a task is shown; medians of ratios within rounds. "
            f"{KEY_TO_TITLES}"
        )
        for each in SHOWN:
            print(f"  {each.key:{WIDTH}} {each.title}")

    def show(self, block: Block) -> None:
        if block.server.title != self._server:
            self._server = block.server.title
            heads = "".join(f"{each.key:>{WIDTH}}" for each in SHOWN)
            print(f"\n{self._server}\n{'':{FIRST}}{'µs/task':>{TASK}}{heads}")
        line = f"{block.workload.title:{FIRST}}{block.microseconds().median:>{TASK}.0f}"
        for each in SHOWN:
            speed = block.speed(each)
            line += f"{'' if speed is None else f'{speed.median:.2f}':>{WIDTH}}"
        print(line.rstrip(), flush=True)
