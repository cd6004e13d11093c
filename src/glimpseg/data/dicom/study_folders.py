"""Find which folders of a DICOM tree are studies.

`find_study_folders` starts this module as `python -m glimpseg.data.dicom.study_folders FOLDER TARGET`, a separate
process that parses foreign headers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from glimpseg.data.dicom import libraries, stacks, unify
from glimpseg.data.dicom.headers import begins_as_dicom
from glimpseg.data.series import digest
from glimpseg.data.unpack import SUFFIXES
from glimpseg.errors import InputError, OutputError
from glimpseg.runtime.sandbox import SPARE_BYTES, SandboxError, confine, run_sandboxed
from glimpseg.runtime.temporary import temporary_folder

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

READING_SECONDS = 600
MOST_FILES_TRIED = 200
"""Largest number of files of one folder that are searched for a first DICOM image."""


def contains_dicom(folder: Path) -> bool:
    """True if a DICOM file or an archive comes before any NIfTI or `.mha` file below a folder.

    The order is that of `stacks.walk_files`. Only the first `MOST_FILES_TRIED` files are looked at.
    """
    for number, path in enumerate(stacks.walk_files(folder)):
        name = path.name.lower()
        if name.endswith((".nii", ".nii.gz", ".mha")) or number >= MOST_FILES_TRIED:
            return False
        if name.endswith(SUFFIXES) or begins_as_dicom(path):
            return True
    return False


def find_study_folders(folder: Path) -> list[Path]:
    """Return the studies of a DICOM tree: folders and archives directly below `folder`.

    `folder` itself is the study if images lie directly in it, or if all its folders are of one study. One header of
    each folder is read. The remaining files are checked when the study is opened.

    Raises:
        InputError: if the headers cannot be read.
        UsageError: without the extra `dicom`.
        OutputError: if the disk of temporary files refuses.
    """
    libraries.require()
    archives = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().endswith(SUFFIXES)]
    with temporary_folder() as place:
        target = place / "studies.json"
        try:
            run_sandboxed(__name__, [folder.absolute(), target], seconds=READING_SECONDS)
            known: dict[str, str] = json.loads(target.read_text("utf-8"))
        except OutputError:
            raise
        except (SandboxError, OSError, ValueError) as error:
            raise InputError(
                f"{folder.name}: the process that reads the DICOM headers failed. Give a folder that holds a folder of "
                "DICOM files for each study."
            ) from (error if isinstance(error, OSError) else None)
    if "" in known or (len(set(known.values())) == 1 and len(known) > 1 and not archives):
        return [folder]
    return sorted([*(folder / name for name in known), *archives])


def first_study_digests(folder: Path) -> dict[str, str]:
    """Return the digest of the first study in each folder directly below that holds MR images in its first files.

    The first `MOST_FILES_TRIED` files are looked at, those of nested folders included. Images that lie directly in
    `folder` are entered under the empty name.
    """
    places: dict[str, Iterable[Path]] = {"": [path for path in sorted(folder.iterdir()) if path.is_file()]}
    places |= {path.name: stacks.walk_files(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    found = {name: next(_image_headers(paths), None) for name, paths in places.items()}
    headers = {name: header for name, header in found.items() if header is not None}
    uids, _ = unify.study_uids(list(headers.values()), samples=True)
    return {name: digest(uid) for name, uid in zip(headers, uids, strict=True)}


def _image_headers(paths: Iterable[Path]) -> Iterator[Dataset]:
    for number, path in enumerate(paths):
        if number >= MOST_FILES_TRIED:
            return
        if begins_as_dicom(path):
            for one in stacks.read_headers([path]).slices:
                yield one.header


def _main(folder: Path, target: Path) -> None:
    """Write the study digests as JSON. Runs in the separate process."""
    import pydicom  # noqa: F401  (before the limit)

    confine(SPARE_BYTES)
    with libraries.silenced():
        target.write_text(json.dumps(first_study_digests(folder)), "utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
