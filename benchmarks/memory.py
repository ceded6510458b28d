"""How much memory queued tasks take, in a process of its own.

python -m benchmarks.memory CONTESTANT TASKS
"""

import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

from .contestants import CONTESTANTS, Contestant
from .project import set_up

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300.0


def bytes_each(contestant: Contestant, tasks: int) -> float:
    """Return how many bytes one queued no-op takes, its future included."""
    answer = subprocess.run(
        [sys.executable, "-m", __name__, contestant.key, str(tasks)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return int(answer.stdout) / tasks


def main(key: str, tasks: int) -> None:
    set_up()
    contestant = next(each for each in CONTESTANTS if each.key == key)
    go, started = threading.Event(), threading.Event()

    def block() -> None:
        started.set()
        go.wait(PATIENCE)

    with contestant.make(max_workers=1) as pool:
        pool.submit(block)
        started.wait(PATIENCE)
        tracemalloc.start()
        futures = [pool.submit(int, number) for number in range(tasks)]
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        go.set()
        assert [future.result(PATIENCE) for future in futures] == list(range(tasks))
    print(taken)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
