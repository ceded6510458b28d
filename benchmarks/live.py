"""The table that grows in the terminal while the benchmark runs: medians of ratios."""

from .contestants import CONTESTANTS, PROCESSES, Contestant, of_part
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
            "leaking pool = 1.00, whose time for a task is shown; medians of ratios within rounds."
        )
        print(
            f"Processes, cluster: {PROCESSES} workers. Pools: speed against connection.close(). CPU: "
            "one worker, the least processor time of the rounds; lower is better."
        )
        for each in CONTESTANTS:
            print(f"  {each.key:{LONG}} {each.title}")

    def show(self, block: Block) -> None:
        part = block.workload.part
        if (block.server.title, part) != self._part:
            self._part = block.server.title, part
            self._shown = [each for each in of_part(part) if each is not block.base]
            self._width = WIDTH if part == "threads" else LONG
            heads = "".join(f"{each.key:>{self._width}}" for each in self._shown)
            title = block.server.title + ("" if part == "threads" else f": {part}")
            print(f"\n{title}\n{'':{FIRST}}{'µs/task':>{TASK}}{heads}")
        line = f"{block.workload.title:{FIRST}}{block.microseconds():>{TASK}.0f}"
        for each in self._shown:
            figure = block.compare(each)
            line += f"{'' if figure is None else f'{figure.median:.2f}':>{self._width}}"
        print(line.rstrip(), flush=True)
