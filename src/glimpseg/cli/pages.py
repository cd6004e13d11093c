"""How this process asks the system for memory: large blocks are kept for the next tensor, not given back at once."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

SWITCH = "GLIMPSEG_MALLOPT"
"""Environment variable; 0 leaves the allocator as it is."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of glibc's `mallopt`, from its malloc.h."""
NEVER = 2**31 - 1


def keep_pages() -> bool:
    """Tells glibc to serve large blocks from its heap and never to give that back while the process runs; returns
    whether it did.

    By default each block above 32 MB is mapped anew and every page of it faults again. Only for a process of our own,
    before torch is imported; nothing on other systems, or if `SWITCH` is 0.
    """
    if os.environ.get(SWITCH) == "0" or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_MAX, 0)) and bool(library.mallopt(M_TRIM_THRESHOLD, NEVER))
