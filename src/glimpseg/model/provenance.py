"""Provenance of a model: versions, machine and commit of the code that wrote it."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from glimpseg import version
from glimpseg.modality import Modality

PACKAGE = Path(version.__file__).parent
"""Folder of the package, in which `version.py` lies."""


def environment() -> dict[str, Any]:
    """Return the fields of `provenance.json` that describe the code and the machine."""
    return {
        "glimpseg": version.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.machine(),
        "threads": torch.get_num_threads(),
        "commit": commit_of(PACKAGE),
        "channels": [modality.key for modality in Modality],
    }


@cache  # git is started once a process, not at every checkpoint
def commit_of(package: Path) -> str | None:
    """Return the commit of the checkout that a package lies in, as `src/glimpseg`; None for an installed package.

    `+changes` is appended if a tracked file differs from the commit.
    """
    if not (package.parents[1] / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", package, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        status: list[str | Path] = ["git", "-C", package, "status", "--porcelain", "-uno"]
        changed = subprocess.run(status, capture_output=True, check=False)
    except OSError:
        return None
    return head.stdout.strip() + ("+changes" if changed.stdout else "") if head.returncode == 0 else None
