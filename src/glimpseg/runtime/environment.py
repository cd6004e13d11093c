"""Environment of the process: a user name and folders for the libraries, also where the system knows neither.

A container may run with a user id that has no entry in the password database, without a home, or with one that cannot
be written. Libraries ask for the user's name when they are imported, and keep their caches in the home.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

USER = "glimpseg"
"""User name for libraries if the system has none."""
CACHES = {"MPLCONFIGDIR": "matplotlib", "XDG_CACHE_HOME": "cache", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""Variables that name the folders of caches, and these folders below a temporary one."""


def complete_environment() -> None:
    """Set the variables that libraries need to find a user name and folders to write to. Set variables stay.

    Where the home cannot be written, caches lie in a temporary folder that is removed when the process ends.
    """
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")) and not _has_name():
        os.environ["LOGNAME"] = os.environ["USER"] = USER
    unset = [name for name in CACHES if not os.environ.get(name)]
    if not unset or _home_is_writable():
        return
    try:
        folder = Path(tempfile.mkdtemp(prefix="glimpseg-caches-"))
    except OSError:  # nowhere to write: the libraries go without caches
        return
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in unset:
        place = folder / CACHES[name]
        place.mkdir()
        os.environ[name] = str(place)
    if not os.environ.get("HOME"):
        os.environ["HOME"] = str(folder)  # else `~` would stay a name, and become a folder where the process runs


def _has_name() -> bool:
    try:
        import pwd

        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    except (ImportError, AttributeError):  # Windows, which has the name in a variable
        return True
    return True


def _home_is_writable() -> bool:
    """True if the home is a folder in which files can be made."""
    home = os.environ.get("HOME") or os.environ.get("USERPROFILE") or ""
    if not home:
        home = os.path.expanduser("~")
    return os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK)
