"""A tree of DICOM: which of its folders are studies.

`python -m glimpseg.data.dicom.study_folders FOLDER TARGET` is the process that `find_study_folders`
starts to parse foreign headers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from glimpseg.data.dicom import libraries, stacks
from glimpseg.data.series import digest
from glimpseg.data.unpack import SUFFIXES
from glimpseg.errors import InputError
from glimpseg.runtime.sandbox import SPARE_BYTES, SandboxError, limit_memory, run_sandboxed

READING_SECONDS = 600
MOST_TRIED = 200
"""Files of one folder that are looked at for a first DICOM image."""
PREAMBLE = 128
"""Bytes before the letters DICM."""


def contains_dicom(folder: Path) -> bool:
    """Whether DICOM begins below a folder: a file with its mark, or an archive, before any NIfTI file."""
    for number, path in enumerate(stacks.files_below(folder)):
        name = path.name.lower()
        if name.endswith((".nii", ".nii.gz", ".mha")) or number >= MOST_TRIED:
            return False
        if name.endswith(SUFFIXES) or _is_dicom(path):
            return True
    return False


def find_study_folders(folder: Path) -> list[Path]:
    """The folders and archives directly below `folder`, each of which is a study; `folder` itself if images lie
    directly in it, or if all of these are of one study.

    One header of each is read; what else is in them is seen when they are opened.

    Raises: InputError if the headers cannot be read; UsageError without the extra `dicom`.
    """
    libraries.require_libraries()
    archives = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().endswith(SUFFIXES)]
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "studies.json"
        try:
            run_sandboxed(__name__, [folder.absolute(), target], seconds=READING_SECONDS)
            known: dict[str, str] = json.loads(target.read_text("utf-8"))
        except (SandboxError, OSError, ValueError) as error:
            raise InputError(
                f"{folder.name}: the process that reads the DICOM headers failed. Give a folder that holds a folder of "
                "DICOM files for each study."
            ) from (error if isinstance(error, OSError) else None)
    if "" in known or (len(set(known.values())) == 1 and len(known) > 1 and not archives):
        return [folder]
    return sorted([*(folder / name for name in known), *archives])


def first_study_digests(folder: Path) -> dict[str, str]:
    """For each folder directly below that holds MR images the digest of the study of its first one; for images directly
    in `folder`, under the empty name."""
    places: dict[str, Iterable[Path]] = {"": [path for path in sorted(folder.iterdir()) if path.is_file()]}
    places |= {path.name: stacks.files_below(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    found = {name: next(_studies(paths), None) for name, paths in places.items()}
    return {name: study for name, study in found.items() if study is not None}


def _studies(paths: Iterable[Path]) -> Iterator[str]:
    for number, path in enumerate(paths):
        if number >= MOST_TRIED:
            return
        if _is_dicom(path):
            for one in stacks.read_headers([path]).slices:
                yield digest(str(one.header.StudyInstanceUID))


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    except OSError:
        return False


def _main(folder: Path, target: Path) -> None:
    """What the reading process does."""
    import pydicom  # noqa: F401  (before the limit)

    limit_memory(SPARE_BYTES)
    with libraries.silence_libraries():
        target.write_text(json.dumps(first_study_digests(folder)), "utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
