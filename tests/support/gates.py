"""A task that runs until it is told to end."""

from __future__ import annotations

import threading


class Gate:
    """A task, or a callback, that runs until it is told to end."""

    def __init__(self) -> None:
        self._begun, self._go_on = threading.Semaphore(0), threading.Event()
        self.ended: list[int] = []

    def __call__(self, *_: object) -> None:
        self._begun.release()
        assert self._go_on.wait(20)
        self.ended.append(threading.get_ident())

    def wait_for(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._begun.acquire(timeout=10)

    def open(self) -> None:
        self._go_on.set()
