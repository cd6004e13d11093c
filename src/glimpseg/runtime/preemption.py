"""SIGTERM handling: exit after temporary files are removed, or finish the current piece of work first.

Every handler of the package is installed here. There are three:

- `install_exit_handler`: the command line, once, for the whole process.
- `exit_on_sigterm`: writers of temporary files, where nobody handles the signal yet.
- `deferred_sigterm`: training and batches, which save their state and then stop.

Handlers can be set in the main thread only. In another thread the host program keeps its own.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128
"""Added to the number of the signal, as shells do: 143 after SIGTERM."""


class StopRequest:
    """Request to stop: its truth value, `bool(request)`, is False at first, and True after SIGTERM has come."""

    def __init__(self) -> None:
        self._received = False

    def __bool__(self) -> bool:
        return self._received

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal: remember that it came."""
        self._received = True


def install_exit_handler(message: str) -> None:
    """Turn SIGTERM into `SystemExit` (exit code 143) for the rest of the process, after `message` on stderr.

    Blocks that hold temporary files remove them on the way out. Call it in the main thread.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one does not disturb the clearing away
        print(message, file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_CODE + number)

    signal.signal(signal.SIGTERM, stop)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """While the block runs, turn SIGTERM into `SystemExit` (exit code 143), so that temporary files are removed.

    Without it the process ends on the spot. Nothing changes outside the main thread, or where the signal is handled
    already.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def deferred_sigterm() -> Iterator[StopRequest]:
    """While the block runs, only record SIGTERM; the caller checks the yielded request where it can stop without loss.

    The handler from before is back after the block. Outside the main thread nothing is handled: the request stays
    False.
    """
    request = StopRequest()
    try:
        before = signal.signal(signal.SIGTERM, request.receive)
    except ValueError:  # not the main thread: the host program keeps its own handlers
        yield request
        return
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(EXIT_CODE + number)
