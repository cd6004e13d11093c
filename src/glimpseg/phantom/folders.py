"""Folders of label maps that phantoms draw anatomies and shapes from."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from glimpseg.errors import InputError

ENDINGS = (".nii.gz", ".nii")


@functools.lru_cache(maxsize=8)
def label_map_names(folder: str, option: str, needed: str) -> tuple[str, ...]:
    """Return the names of the NIfTI files in a folder, sorted; cached.

    Args:
        folder: Folder.
        option: Option that names the folder, for the message.
        needed: What its files must be, for the message.

    Raises:
        InputError: The folder does not exist or holds no NIfTI file.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"{option} needs a folder of {needed}; there is no such folder. Check the path.")
    names = tuple(
        sorted(f.name for f in place.iterdir() if f.is_file() and f.name.endswith(ENDINGS) and f.name[0] != ".")
    )
    if not names:
        raise InputError(f"{option} needs a folder of {needed} (.nii or .nii.gz); this folder has none.")
    return names


def folder_summary(folder: str, names: tuple[str, ...]) -> dict[str, object]:
    """Return the number of files and a digest of their names and sizes; it tells two folders apart without a path."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {(Path(folder) / name).stat().st_size}\n".encode())
    return {"files": len(names), "digest": digest.hexdigest()[:16]}
