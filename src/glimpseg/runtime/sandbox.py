"""Sandbox: read untrusted files in a subprocess with limited memory and time.

If a file makes its reader crash, hang or use too much memory, only the subprocess ends. If the process that waits for
it is killed, the subprocess ends soon after.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from glimpseg.runtime.temporary import REFUSALS, temporary_refused

SPARE_BYTES = 2 << 30
"""Memory that a reader may use in addition to what it holds after its imports."""

PARENT_SECONDS = 2.0
"""Seconds between two looks of a reader at whether its parent still lives."""

_SYSTEM_ERROR = re.compile(r"OSError: \[Errno (\d+)\]|.*SafetensorError: .*\(os error (\d+)\)$")
"""Last line of a reader that could not write."""


class SandboxError(RuntimeError):
    """Failure of a sandboxed reader. The message is the reader's last line on stderr, or how it ended."""


def run_sandboxed(module: str, arguments: Sequence[str | Path], *, seconds: float) -> None:
    """Run `python -m module arguments` in a subprocess and wait for it.

    Args:
        module: Module with a main program. It writes its results into files that the arguments name.
        arguments: Command-line arguments.
        seconds: Time limit.

    Raises:
        SandboxError: The subprocess ended with an exit code other than 0, or took longer.
        OutputError: The disk did not take its results.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, errors="replace")
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"it could not be read in {seconds:g} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        refused = _SYSTEM_ERROR.match(lines[-1]) if lines else None
        number = int(refused[1] or refused[2]) if refused else 0
        if number in REFUSALS:
            raise temporary_refused(OSError(number, os.strerror(number)))
        raise SandboxError(lines[-1] if lines else f"reader ended with {done.returncode}")


def confine(more: int = SPARE_BYTES) -> None:
    """Limit the memory of this process, a sandboxed reader, and end it soon after the process that started it.

    Windows has neither the limit nor a new parent for such a process: there the reader goes on.

    Args:
        more: Bytes that it may use in addition to what it has now.
    """
    threading.Thread(target=_end_with_parent, args=[os.getppid()], daemon=True).start()
    with contextlib.suppress(ImportError, OSError):
        import resource

        current = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        # Whoever started this process, for example a cluster's scheduler, may have set a limit already.
        _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
        limit = current + more if hard_limit == resource.RLIM_INFINITY else min(current + more, hard_limit)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)
