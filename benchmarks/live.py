"""The table that grows in the terminal while the benchmark runs: medians of ratios."""

from .contestants import CONTESTANTS, KEY_TO_TITLES, PROCESSES, Contestant
from .ratios import Block
from .rounds import SEED, Size
from .servers import WORKERS

FIRST, TASK, WIDTH, LONG = 16, 8, 10, 18


class Live:
    """Prints a line for each block, and a heading for each server."""

    def __init__(self, size: Size) -> None:
        self._shown: list[Contestant] = []
        self._part = ("", "")
        print(
            f"{WORKERS} workers, {size.rounds} rounds, order shuffled with the seed {SEED}. Speed, the "
            "leaking pool = 1.00, whose time for a task is shown; medians of ratios within rounds. "
            f"{KEY_TO_TITLES}"
        )
        print(f"Of processes, and on a cluster, {PROCESSES} workers.")
        for each in CONTESTANTS:
            print(f"  {each.key:{LONG}} {each.title}")

    def show(self, block: Block) -> None:
        place = block.workload.place
        if (block.server.title, place) != self._part:
            self._part = block.server.title, place
            self._shown = [
                each for each in CONTESTANTS if each.place == place and each is not block.base
            ]
            self._width = WIDTH if place == "threads" else LONG
            heads = "".join(f"{each.key:>{self._width}}" for each in self._shown)
            print(f"\n{block.server.title}\n{'':{FIRST}}{'µs/task':>{TASK}}{heads}")
        line = f"{block.workload.title:{FIRST}}{block.microseconds().median:>{TASK}.0f}"
        for each in self._shown:
            speed = block.speed(each)
            line += f"{'' if speed is None else f'{speed.median:.2f}':>{self._width}}"
        print(line.rstrip(), flush=True)
