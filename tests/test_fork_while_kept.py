"""A fork while a worker keeps a connection for its next query."""

from __future__ import annotations

import os
import warnings

from django.db import connection

from .test_fresh_sessions import backend_pid, one_after_the_other


def test_child_does_not_take_up_what_is_kept() -> None:
    """A child that is forked in a task connects anew; the parent goes on with what its worker kept."""

    def forks() -> tuple[int, int]:
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: threads and fork
            child = os.fork()
        if child == 0:
            try:
                assert connection.connection is None
                os.write(write, str(backend_pid()).encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        of_child = int(os.read(read, 20) or 0)
        os.close(read)
        return of_child, backend_pid()

    kept, (of_child, of_parent) = one_after_the_other(backend_pid, forks)
    assert of_parent == kept
    assert of_child not in (0, kept)
