"""Read the voxels of a DICOM series, with the checks of NIfTI files and checks of the slices.

`pixels` decodes foreign pixels in a separate process. A decoder crash cannot stop the caller.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np

from glimpseg.data import nifti
from glimpseg.data.dicom import geometry, libraries
from glimpseg.data.dicom.headers import read_dataset
from glimpseg.data.dicom.pixels import MESSAGE_PREFIX, ContentKind
from glimpseg.data.notices import warn
from glimpseg.data.series import Series
from glimpseg.errors import InputError
from glimpseg.runtime.sandbox import SandboxError, run_sandboxed
from glimpseg.runtime.temporary import temporary_folder
from glimpseg.volume import Grid, Volume

if TYPE_CHECKING:
    import highdicom
    from pydicom.dataset import Dataset

READING_SECONDS = 600


def series_title(series: Series) -> str:
    """Return a series' number and description for messages; names are removed."""
    words = series.words.get("SeriesDescription") or series.words.get("ProtocolName") or series.key
    number = series.numbers.get("SeriesNumber")
    return f"series {number:g} ({words})" if number is not None else f"series {words}"


def read_series(series: Series) -> Volume:
    """Read the image of a series as float32, rescaled by slope and intercept.

    Classic slices may be in any order. Enhanced multi-frame files are read too. gdcm decodes compressed transfer
    syntaxes. The axes x, y, z are columns, rows, slices.

    Raises:
        InputError: if the slices form no complete volume (missing, uneven, tilted, several at one position), if a file
            is truncated or its header does not fit its pixels, if the decoder fails or crashes, or as
            `nifti.read_volume`.
        UsageError: without the extra `dicom`.
    """
    libraries.require()
    if series.shape is None:
        raise InputError(
            f"{_sentence_start(series)} does not say where its slices lie, so it is no volume. {series.no_place} "
            "Leave this sequence out."
        )
    for sentence in series.warnings:
        warn(f"{_sentence_start(series)}: {sentence}.")
    if max(series.shape) > nifti.MAXIMAL_SIDE or np.prod(series.shape, dtype=float) > nifti.MAXIMAL_VOXELS:
        raise InputError(
            f"{_sentence_start(series)} should be a brain scan but claims {'x'.join(map(str, series.shape))} voxels "
            f"(at most {nifti.MAXIMAL_SIDE} along a side, {nifti.MAXIMAL_VOXELS:,} in all). Its header is wrong, or "
            "it is no brain scan."
        )
    voxels, affine = decode("image", series.files, series.shape, _sentence_start(series))
    try:
        return nifti.from_nibabel(nibabel.Nifti1Image(voxels, affine))
    except InputError as error:
        raise InputError(f"{_sentence_start(series)}: {error}") from error


def read_grid(series: Series) -> Grid:
    """Return the grid that `read_series` gives the series, from its headers alone.

    Raises: InputError and UsageError as `source_headers`; InputError as `source_geometry`.
    """
    return geometry.ras_grid(source_geometry(series, source_headers(series)))


def source_headers(series: Series) -> list[Dataset]:
    """Read the full headers of a series, without pixels. Derived objects are made from them.

    Raises:
        InputError: if a file cannot be read.
        UsageError: without the extra `dicom`.
    """
    libraries.require()
    try:
        with libraries.silenced():
            return [read_dataset(path, stop_before_pixels=True) for path in series.files]
    except Exception as error:
        raise InputError(
            f"A file of {series_title(series)} cannot be read any more ({type(error).__name__})."
        ) from None


def source_geometry(series: Series, datasets: Sequence[Dataset]) -> highdicom.VolumeGeometry:
    """Return highdicom's geometry of a series from its headers (`datasets`); its indices are slice, row, column.

    Pixels are not read. The headers are made regular (`geometry.make_regular`), so that derived objects find each slice
    at its place.

    Raises: InputError if the slices form no complete volume (missing, uneven, tilted, several at one position), or if a
        position, an orientation or the pixel spacing is absent or invalid.
    """
    try:
        geometry.make_regular(datasets)
        return geometry.volume_geometry(datasets)
    except InputError as error:
        raise InputError(f"{_sentence_start(series)}: {error}") from error


def _sentence_start(series: Series) -> str:
    """Return the title of a series, capitalised."""
    text = series_title(series)
    return text[0].upper() + text[1:]


def decode(kind: ContentKind, files: Sequence[Path], shape: Sequence[int], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode an image or a segmentation in a separate process.

    Args:
        kind: "image" or "segmentation".
        files: all files of the series, or the one file of a segmentation.
        shape: expected columns, rows, slices of an image; empty for a segmentation.
        name: start of every error message.

    Returns:
        Voxels and RAS affine.

    Raises:
        InputError: begins with `name`.
        OutputError: if the disk of temporary files refuses.
    """
    with temporary_folder() as place:
        request, target = place / "request.json", place / "volume.npz"
        wanted = {"kind": kind, "files": [str(path.absolute()) for path in files], "shape": list(shape)}
        request.write_text(json.dumps(wanted), encoding="ascii")
        try:
            run_sandboxed("glimpseg.data.dicom.pixels", [request, target], seconds=READING_SECONDS)
        except SandboxError as error:
            raise InputError(f"{name}: {failure_reason(error)}") from None
        with np.load(target, allow_pickle=False) as parts:
            return parts["voxels"], parts["affine"]


def failure_reason(error: SandboxError) -> str:
    """Return the reader's own message, or how it ended. It never holds text of a library."""
    text = str(error)
    if text.startswith(MESSAGE_PREFIX):
        return text.removeprefix(MESSAGE_PREFIX)
    if "could not be read in" in text:
        return f"{text}. Export it again, without compression."
    return (
        "the process that decodes its pixels crashed: a file is damaged, or made to do so. Nothing else was touched. "
        "Export it again, without compression."
    )
