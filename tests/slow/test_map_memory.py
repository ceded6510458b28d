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


def items(count: int, fail_at: int = -1) -> Iterator[tuple[int, bytes]]:
    """Make items of a kilobyte each."""
    for number in range(count):
        yield number, (b"fails" if number == fail_at else bytes(1024))


def run(item: tuple[int, bytes]) -> int:
    number, payload = item
    if payload == b"fails":
        raise LookupError(number)
    return number


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


def test_fails_in_the_middle() -> None:
    """An item that fails in the middle ends it: what is queued is cancelled, nothing is left running."""
    done = []
    with ThreadPoolExecutor(4) as pool:
        with pytest.raises(LookupError, match="5000"):
            for number in pool.map(run, items(ITEMS, fail_at=5000), buffersize=1000):
                done.append(number)  # noqa: PERF402
        stats = pool.stats()
        assert stats.pending == 0
        assert stats.busy <= 4
    assert done == list(range(5000))
    stats = pool.stats()
    assert (stats.busy, stats.pending, stats.workers, stats.failed) == (0, 0, 0, 1)
    assert stats.submitted <= 6001
