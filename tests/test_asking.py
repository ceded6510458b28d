"""Looking into a socket without a wait."""

from __future__ import annotations

import socket

from django_executors.lifecycle.asking import is_silent


def test_an_open_socket_with_nothing_to_read_is_silent() -> None:
    """And looking takes nothing out of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_silent(ours.fileno())
        theirs.sendall(b"x")
        assert not is_silent(ours.fileno())
        assert ours.recv(1) == b"x"
        assert is_silent(ours.fileno())


def test_a_socket_whose_other_end_has_hung_up_is_not_silent() -> None:
    """Neither after an orderly end nor when it is closed on this side."""
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert not is_silent(ours.fileno())
        number = ours.fileno()
    assert not is_silent(number)
