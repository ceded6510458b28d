"""A fork while a worker keeps a connection for its next query."""

from __future__ import annotations

import os

from django.db import connections

from .forking import exit_code, quiet_fork
from .test_fresh_sessions import backend_pid, one_after_the_other


def test_child_does_not_take_up_what_is_kept() -> None:
    """A child that is forked in a task connects anew; the parent goes on with what its worker kept."""

    def forks() -> tuple[set[int], int]:
        wrapper = connections["default"]
        read, write = os.pipe()
        child = quiet_fork()
        if child == 0:
            try:
                assert wrapper.connection is None
                with wrapper.cursor() as cursor:
                    cursor.execute("SELECT pg_backend_pid()")
                    os.write(write, f"{cursor.fetchone()[0]} {backend_pid()}".encode())
            finally:
                os._exit(0)
        os.close(write)
        exit_code(child)
        of_child = {int(pid) for pid in os.read(read, 40).split()}
        os.close(read)
        return of_child, backend_pid()

    kept, (of_child, of_parent) = one_after_the_other(backend_pid, forks)
    assert of_parent == kept
    assert of_child
    assert kept not in of_child
