"""The voxels of a series, under every check that a NIfTI file has to pass, and those of slices on top.

Foreign pixels are decoded by `pixels`, in a process of its own: a decoder that crashes takes nothing else with it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np

from glimpseg.data import nifti
from glimpseg.data.dicom import geometry, libraries
from glimpseg.data.dicom.pixels import MESSAGE_PREFIX, ContentKind
from glimpseg.data.series import Series
from glimpseg.errors import InputError
from glimpseg.runtime.sandbox import SandboxError, run_sandboxed
from glimpseg.volume import Grid, Volume

if TYPE_CHECKING:
    import highdicom
    from pydicom.dataset import Dataset

READING_SECONDS = 600


def series_title(series: Series) -> str:
    """How messages call a series: by number and description, in which nobody is named."""
    words = series.words.get("SeriesDescription") or series.words.get("ProtocolName") or series.key
    number = series.numbers.get("SeriesNumber")
    return f"series {number:g} ({words})" if number is not None else f"series {words}"


def read_series(series: Series) -> Volume:
    """The image of a series, float32, rescaled by its slope and intercept; x y z count columns, rows, slices.

    Classic slices in any order and enhanced multi-frame files; compressed transfer syntaxes through gdcm.

    Raises: InputError if the slices make up no complete volume (missing, uneven, tilted, several at one position), if a
        file is truncated or its header does not fit its pixels, if the decoder fails or crashes, or as
        `nifti.read_volume`; UsageError without the extra `dicom`.
    """
    libraries.require_libraries()
    if series.shape is None:
        raise InputError(
            f"{_begin(series)} does not say where its slices lie, so it is no volume. Leave this sequence out."
        )
    if max(series.shape) > nifti.MAXIMAL_SIDE or np.prod(series.shape, dtype=float) > nifti.MAXIMAL_VOXELS:
        raise InputError(
            f"{_begin(series)} should be a brain scan but claims {'x'.join(map(str, series.shape))} voxels "
            f"(at most {nifti.MAXIMAL_SIDE} along a side, {nifti.MAXIMAL_VOXELS:,} in all). Its header is wrong, or "
            "it is no brain scan."
        )
    voxels, affine = decode("image", series.files, series.shape, _begin(series))
    try:
        return nifti.from_nibabel(nibabel.Nifti1Image(voxels, affine))
    except InputError as error:
        raise InputError(f"{_begin(series)}: {error}") from error


def read_grid(series: Series) -> Grid:
    """The lattice that `read_series` gives the series, from its headers alone. Raises: InputError as `read_series`."""
    return geometry.grid(source_geometry(series, source_headers(series)))


def source_headers(series: Series) -> list[Dataset]:
    """The whole headers of a series, without its pixels: what objects that refer to it are made from.

    Raises: InputError if a file cannot be read.
    """
    import pydicom

    libraries.require_libraries()
    try:
        with libraries.silence_libraries():
            return [pydicom.dcmread(path, stop_before_pixels=True) for path in series.files]
    except Exception as error:
        raise InputError(
            f"A file of {series_title(series)} cannot be read any more ({type(error).__name__})."
        ) from None


def source_geometry(series: Series, datasets: Sequence[Dataset]) -> highdicom.VolumeGeometry:
    """highdicom's lattice of a series (indices slice, row, column). Raises: InputError as `read_series`."""
    try:
        return geometry.volume_geometry(datasets)
    except InputError as error:
        raise InputError(f"{_begin(series)}: {error}") from error


def _begin(series: Series) -> str:
    text = series_title(series)
    return text[0].upper() + text[1:]


def decode(kind: ContentKind, files: Sequence[Path], shape: Sequence[int], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and RAS affine of files that make up an image or a segmentation, decoded in a process of its own.

    Raises: InputError, beginning with `name`.
    """
    with tempfile.TemporaryDirectory() as place:
        request, target = Path(place) / "request.json", Path(place) / "volume.npz"
        wanted = {"kind": kind, "files": [str(path.absolute()) for path in files], "shape": list(shape)}
        request.write_text(json.dumps(wanted), encoding="ascii")
        try:
            run_sandboxed("glimpseg.data.dicom.pixels", [request, target], seconds=READING_SECONDS)
        except SandboxError as error:
            raise InputError(f"{name}: {failure_reason(error)}") from None
        with np.load(target, allow_pickle=False) as parts:
            return parts["voxels"], parts["affine"]


def failure_reason(error: SandboxError) -> str:
    """What a reader said of itself, or how it ended; nothing that a library wrote."""
    text = str(error)
    if text.startswith(MESSAGE_PREFIX):
        return text.removeprefix(MESSAGE_PREFIX)
    if "could not be read in" in text:
        return f"{text}. Export it again, without compression."
    return (
        "the process that decodes its pixels crashed: a file is damaged, or made to do so. Nothing else was touched. "
        "Export it again, without compression."
    )
