"""malloc (glibc) tuning: freed large blocks are kept for the next tensor, not returned to the system."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

SWITCH = "GLIMPSEG_MALLOPT"
"""Environment variable. With 0 the allocator stays as it is."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of glibc's `mallopt`, from its malloc.h."""
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc serve large blocks from its heap, and keep them until the process ends. Return True if it does.

    By default glibc maps each block above 32 MB anew, and every page of it faults again. Call this only in a process of
    our own, before torch is imported. On other systems, or if `SWITCH` is 0, nothing happens and False is returned.
    """
    if os.environ.get(SWITCH) == "0" or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_MAX, 0)) and bool(library.mallopt(M_TRIM_THRESHOLD, NEVER))
