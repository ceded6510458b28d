"""One way through one variant, in a process of its own, so that nothing of one way is left in the next.

The experiment starts this. A line on standard input is a command, a line of JSON on standard output
the answer. It ends when standard input does, so that it never outlives the experiment.
"""

import argparse
import gc
import itertools
import json
import os
import queue
import sys
import threading
import time
from typing import Any

import django

from lab import workload
from lab.ways import WAYS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=[way.key for way in WAYS])
    parser.add_argument("--callers", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--no-gc", action="store_true")
    options = parser.parse_args()

    commands: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=read_commands, args=(commands,), daemon=True).start()
    django.setup()
    from shop.jobs import JOBS

    if options.no_gc:
        gc.disable()
    executor = next(way.executor for way in WAYS if way.key == options.way)
    tell(state="ready")

    assert commands.get() == "run"
    begun = time.perf_counter()
    failures = workload.run(
        executor,
        list(itertools.islice(itertools.cycle(JOBS), options.jobs)),
        callers=options.callers,
        rounds=options.rounds,
        on_pool=lambda: tell(state="pool"),
    )
    seconds = time.perf_counter() - begun
    tell(state="done", seconds=seconds, failures=failures.jobs, first_failure=failures.first)

    assert commands.get() == "count"
    tell(state="counted", **count_connections())
    commands.get()


def count_connections() -> dict[str, int]:
    """What this process knows of its connections."""
    from django.db import connections

    from django_executors import all_connections

    return {
        "connections_all": len(connections.all()),
        "all_connections": len(all_connections()),
    }


def read_commands(commands: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        commands.put(line.strip())
    os._exit(0)  # the experiment is over, or was killed: nothing here is worth waiting for


_telling = threading.Lock()


def tell(**answer: Any) -> None:
    with _telling:
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
