"""Find the MR series in a folder of DICOM files, from their headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glimpseg.data.dicom import libraries
from glimpseg.data.notices import note, warn
from glimpseg.data.series import Series
from glimpseg.errors import InputError, OutputError
from glimpseg.runtime.sandbox import SandboxError, run_sandboxed
from glimpseg.runtime.temporary import temporary_folder

READING_SECONDS = 1800
"""Time limit for reading all headers of a folder, seconds. Ten thousand headers take a minute."""


def find_series(folder: str | Path) -> list[Series]:
    """Find all MR series below `folder`.

    A SeriesInstanceUID that holds several stacks (orientations, echoes, time points) gives one `Series` for each stack.
    Files that are not DICOM, other DICOM objects (reports, segmentations, other modalities) and damaged files are
    counted in notes. Duplicate files are used once. Headers are parsed in a separate process; only the fields of
    `Series` leave it. `Series.words` and `Series.numbers` hold the attributes listed in `headers.TEXT_KEYWORDS` and
    `headers.NUMBER_KEYWORDS`. Enhanced multi-frame files use the same attribute names.

    Returns:
        Series sorted by study, then series number. The files of a series are in the order of slice positions.

    Raises:
        InputError: if `folder` is no folder, if there is no MR image, if images are of more than one patient, if two
            files with one SOPInstanceUID differ, or if the process that reads the headers fails.
        UsageError: without the extra `dicom`.
    """
    libraries.require()
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder.name} is not a folder. Give the folder that holds the DICOM files.")
    answer = _run_header_reader(folder)
    if "refused" in answer:
        raise InputError(f"{folder.name}: {answer['refused']}")
    series = [_as_series(fields) for fields in answer["series"]]
    _tell_counts(answer, series)
    if not series:
        raise InputError(
            f"{folder.name} holds no MR image in DICOM ({answer['foreign']} files are no DICOM, {answer['other']} are "
            f"other DICOM objects, {answer['damaged']} are damaged). Give the folder of the study's MR images."
        )
    return series


def _run_header_reader(folder: Path) -> dict[str, Any]:
    with temporary_folder() as place:
        target = place / "series.json"
        try:
            run_sandboxed("glimpseg.data.dicom.stacks", [folder.absolute(), target], seconds=READING_SECONDS)
            return json.loads(target.read_text("ascii"))
        except OutputError:
            raise
        except (SandboxError, OSError, ValueError) as error:
            # The reader's message is not quoted: it could hold header values.
            raise InputError(
                f"{folder.name}: the process that reads the DICOM headers failed. Nothing was read. Move files that "
                "are not of this study elsewhere, or convert the series to NIfTI (dcm2niix)."
            ) from (error if isinstance(error, OSError) else None)


def _as_series(fields: dict[str, Any]) -> Series:
    tuples = {name: fields[name] and tuple(fields[name]) for name in ("shape", "spacing_mm")}
    tuples |= {name: tuple(fields[name]) for name in ("image_type", "warnings")}
    files = tuple(Path(path) for path in fields["files"])
    return Series(**{**fields, **tuples, "files": files, "source": "dicom"})


def _tell_counts(answer: dict[str, Any], series: list[Series]) -> None:
    images = sum(len(one.files) for one in series)
    note(f"{len(series)} MR series in {images} files.")
    if answer["foreign"] or answer["other"]:
        note(f"Ignored: {answer['foreign']} files that are not DICOM, {answer['other']} other DICOM objects.")
    for sentence in answer["notes"]:
        warn(sentence)
    if answer["repeated"]:
        warn(f"{answer['repeated']} duplicate files were ignored.")
    if answer["damaged"]:
        warn(f"{answer['damaged']} damaged DICOM files were ignored.")
    studies = len({one.study for one in series})
    if studies > 1:
        warn(f"{studies} studies of one patient. Choose the series of one study.")
