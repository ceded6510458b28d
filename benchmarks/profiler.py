"""What a worker does with its time, to say what bounds a figure."""

import cProfile
import pstats
from concurrent.futures import Future
from typing import Any

from .contestants import Contestant
from .models import make_tables
from .project import let_go, use
from .servers import Server
from .workloads import Workload

LINES = 30
PATIENCE = 120.0


def profile(contestant: Contestant, workload: Workload, server: Server, tasks: int) -> None:
    """Print where the one worker of a pool spends the time of `tasks` tasks.

    The profiler makes calls dearer and waiting no dearer: compare lines, not with the clock.
    """
    if server.vendor != "none":
        use(server.database)
        make_tables()
    use(server.database, conn_max_age=contestant.conn_max_age)
    profiler = cProfile.Profile()
    with contestant.make(max_workers=1) as pool:
        pool.submit(workload.task, 0).result(PATIENCE)
        futures: list[Future[Any]] = [pool.submit(profiler.enable)]  # from here on in the worker
        futures += [pool.submit(workload.task, number) for number in range(tasks)]
        futures.append(pool.submit(profiler.disable))
        results = [future.result(PATIENCE) for future in futures][1:-1]
    let_go()
    for number, result in enumerate(results):
        assert result == workload.right(number)
    print(f"{contestant.title}, {workload.title}, {server.title}: {tasks} tasks on one worker")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(LINES)
