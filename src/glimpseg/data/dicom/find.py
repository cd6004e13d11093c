"""The series in a folder of DICOM files, by their headers alone."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from glimpseg.data.dicom import libraries
from glimpseg.data.series import Series
from glimpseg.errors import InputError
from glimpseg.runtime.sandbox import SandboxError, run_sandboxed

log = logging.getLogger(__name__)

READING_SECONDS = 1800
"""For all headers of a folder; ten thousand take a minute."""


def find_series(folder: str | Path) -> list[Series]:
    """The MR series in every file below `folder`, by study, then series number; their files in the order of positions.

    A SeriesInstanceUID that holds several stacks (orientations, echoes, time points) gives one `Series` for each.
    Files that are no DICOM, other objects (reports, segmentations, other modalities) and damaged files are counted in
    the log; a file that is there twice is taken once. Headers are parsed in a process of its own, and only what
    `Series` holds comes out of it. `Series.words` and `Series.numbers` have the attributes that `headers.WORDS` and
    `headers.NUMBERS` list; an enhanced multi-frame file gives them under the same names.

    Raises: InputError if there is no MR image, if images are of more than one patient, or if two files with one
        SOPInstanceUID differ; UsageError without the extra `dicom`.
    """
    libraries.require_libraries()
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder.name} is not a folder. Give the folder that holds the DICOM files.")
    answer = _read(folder)
    if "refused" in answer:
        raise InputError(f"{folder.name}: {answer['refused']}")
    series = [_series(fields) for fields in answer["series"]]
    _tell(folder, answer, series)
    if not series:
        raise InputError(
            f"{folder.name} holds no MR image in DICOM ({answer['foreign']} files are no DICOM, {answer['other']} are "
            f"other DICOM objects, {answer['damaged']} are damaged). Give the folder of the study's MR images."
        )
    return series


def _read(folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "series.json"
        try:
            run_sandboxed("glimpseg.data.dicom.stacks", [folder.absolute(), target], seconds=READING_SECONDS)
            return json.loads(target.read_text("ascii"))
        except (SandboxError, OSError, ValueError) as error:
            # Not the reader's own words: a header's content could be in them.
            raise InputError(
                f"{folder.name}: the process that reads the DICOM headers failed. Nothing was read. Move files that "
                "are not of this study elsewhere, or convert the series to NIfTI (dcm2niix)."
            ) from (error if isinstance(error, OSError) else None)


def _series(fields: dict[str, Any]) -> Series:
    tuples = {name: fields[name] and tuple(fields[name]) for name in ("shape", "spacing_mm")}
    tuples["image_type"] = tuple(fields["image_type"])
    files = tuple(Path(path) for path in fields["files"])
    return Series(**{**fields, **tuples, "files": files, "source": "dicom"})


def _tell(folder: Path, answer: dict[str, Any], series: list[Series]) -> None:
    images = sum(len(one.files) for one in series)
    log.info("%s: %d MR series in %d files.", folder.name, len(series), images)
    if answer["foreign"] or answer["other"]:
        log.info("Left aside: %d files that are no DICOM, %d other objects.", answer["foreign"], answer["other"])
    if answer["repeated"]:
        log.warning("%s: %d files are there more than once and were taken once.", folder.name, answer["repeated"])
    if answer["damaged"]:
        log.warning("%s: %d DICOM files are damaged and were left aside.", folder.name, answer["damaged"])
    studies = len({one.study for one in series})
    if studies > 1:
        log.warning("%s: %d studies of one patient. Choose the series of one.", folder.name, studies)
