"""`map(buffersize=…)` over a great many items takes no more memory than its buffer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from django_executors import ThreadPoolExecutor
from tests.support.subprocesses import run_python

STATUS = Path("/proc/self/status")
ITEMS = 200_000


def resident() -> int:
    """Return this process's memory, in bytes."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def items(count: int) -> Iterator[tuple[int, bytes]]:
    """Make items of a kilobyte each."""
    for number in range(count):
        yield number, bytes(1024)


def run(item: tuple[int, bytes]) -> int:
    return item[0]


def main() -> None:
    """Work through 200,000 items, and print by how much the process has grown at most."""
    most = expected = 0
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, items(5000), buffersize=1000))
        before = resident()
        for number in pool.map(run, items(ITEMS), buffersize=1000):
            assert number == expected
            expected += 1
            if number % 10_000 == 0:
                most = max(most, resident())
    assert expected == ITEMS
    print(most - before)


@pytest.mark.skipif(not STATUS.exists(), reason="there is no /proc to read the memory from")
def test_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred megabytes of items, in order: the process grows by less than 20 MB."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # it would trace each line
    finished = run_python(
        "from tests.slow.test_map_memory import main; main()", settings="tests.settings"
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) < 20 * 1024 * 1024
