"""Signals that ask a process to end: what it has started and made is to be gone when it does."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked for the end, and came to this process alone. Its number is the argument.

    A KeyboardInterrupt, so that whatever cleans up after a Ctrl-C cleans up after this too. A Ctrl-C
    at the terminal itself reaches the children as well.
    """


def stop_on_signals() -> None:
    """Raise `Stopped` in the main thread when one of the signals comes; ignored ones stay ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has SIGHUP
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:  # what follows is the clean-up: let it finish
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)
