"""What an executor has to do on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from django_executors.execution.remotefuture import RemoteFuture
from django_executors.execution.remotework import RemoteWork, is_alive

if TYPE_CHECKING:
    from .link import Link

R = TypeVar("R")


class ClusterFuture(RemoteFuture[R]):
    """The future of a task on a cluster."""

    link: Link
    number: int
    queued_at: float


class ClusterWork(RemoteWork):
    """What an executor has to do on a cluster. One of its links at most takes tasks."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._links: list[Link] = []

    def links(self) -> list[Link]:
        """Return those whose threads have not ended."""
        self._links = [link for link in self._links if is_alive(link.thread)]
        return self._links

    def add(self, link: Link) -> None:
        self._links.append(link)

    def end(self) -> None:
        """Take no more tasks, and have all threads end when their tasks are settled."""
        for link in self.links():
            link.end()

    def note_cancelled(self, future: Any) -> None:
        super().note_cancelled(future)
        future.link.drop(future)

    def retire(self) -> None:
        super().retire()
        for link in self._links:
            link.retire()
