"""Temporary folders, in the place that TMPDIR names."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glimpseg.errors import OutputError
from glimpseg.runtime.preemption import exit_on_sigterm

REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Numbers of the system's errors that say that a disk takes no more."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder that only the user can read, and remove it at the end of the block.

    Raises: OutputError if the disk refuses to make it, or to take what the block writes.
    """
    with exit_on_sigterm():
        try:
            folder = Path(tempfile.mkdtemp(prefix="glimpseg-"))  # mode 0700
        except OSError as error:
            raise temporary_refused(error) from error
        try:
            yield folder
        except OSError as error:
            if isinstance(error, OutputError) or error.errno not in REFUSALS:
                raise
            raise temporary_refused(error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def temporary_refused(error: OSError, what: str = "A temporary file") -> OutputError:
    """Return the error for a disk of temporary files that refuses.

    Args:
        error: The error of the system.
        what: Subject of the message.
    """
    return OutputError(
        error.errno,
        f"{what} could not be written to {tempfile.gettempdir()} ({error.strerror}). Nothing was left there. Free some "
        "space, or name another place by the environment variable TMPDIR",
    )
