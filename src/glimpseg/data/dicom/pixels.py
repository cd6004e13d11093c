"""Pixels of foreign files decoded, and what a process that does so may say.

`python -m glimpseg.data.dicom.pixels REQUEST TARGET` is the process that `read.read_series` starts; torch stays out of it.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glimpseg.data.dicom import geometry
from glimpseg.data.dicom.headers import DEFLATED, value
from glimpseg.errors import InputError
from glimpseg.untrusted import SPARE_BYTES, limit_memory

if TYPE_CHECKING:
    import highdicom
    from pydicom.dataset import Dataset

BYTES_A_VOXEL = 24
"""What decoding may take: stored, decoded, rescaled and stacked."""
SAID = "glimpseg: "
"""Begins what a reader says in words of its own."""


def _volume(datasets: Sequence[Dataset]) -> highdicom.Volume:
    """Decoded, rescaled, sorted and stacked by highdicom."""
    import highdicom

    geometry.volume_geometry(datasets)  # says in plain words what the library would say in others
    # Real-world value maps are left aside: they are few, and other readers (dcm2niix) take the rescale slope.
    if geometry.is_enhanced(datasets[0]):
        image = highdicom.Image.from_dataset(datasets[0], copy=False)
        return image.get_volume(dtype=np.float32, apply_real_world_transform=False)
    return highdicom.get_volume_from_series(
        datasets,
        dtype=np.float32,
        apply_real_world_transform=False,
        orientation_tol=geometry.ORIENTATION_TOLERANCE,
    )


def _check_pixels(dataset: Dataset, shape: Sequence[int]) -> None:
    """Whether the header fits what `find_series` read, and the pixels that follow it."""
    frames = int(value(dataset, "NumberOfFrames") or 1)
    expected = shape[2] if geometry.is_enhanced(dataset) else 1
    if [value(dataset, "Columns"), value(dataset, "Rows"), frames] != [*shape[:2], expected]:
        raise InputError("Rows, Columns or NumberOfFrames differ between its files, or from what the frames say.")
    if value(dataset, "SamplesPerPixel") not in (None, 1):
        raise InputError("Its images are in colour, and an MR image has one value for each pixel.")
    if "PixelData" not in dataset:
        raise InputError("A file holds no pixels: it is truncated, or was exported as a header only.")
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        bits = int(dataset.BitsAllocated)
        promised = int(dataset.Rows) * int(dataset.Columns) * frames * bits // 8
        held = len(dataset.PixelData)
        if held not in (promised, promised + promised % 2):
            raise InputError(
                f"A header promises {promised:,} bytes of pixels and {held:,} follow: the file is truncated, or Rows "
                "and Columns are wrong. Copy or export the series again."
            )


def _read(request: dict[str, Any], target: Path) -> None:
    import pydicom

    files = [Path(name) for name in request["files"]]
    stored = sum(path.stat().st_size for path in files)
    limit_memory(SPARE_BYTES + BYTES_A_VOXEL * int(np.prod(request["shape"])) + 2 * stored)
    datasets = []
    for path in files:
        try:
            meta = pydicom.filereader.read_file_meta_info(path)
            if meta.get("TransferSyntaxUID") == DEFLATED:
                raise InputError("Deflated data sets are not read.")
            dataset = pydicom.dcmread(path)
        except (EOFError, OSError, pydicom.errors.InvalidDicomError) as error:
            raise InputError("A file is truncated or no longer there. Copy or export the series again.") from error
        _check_pixels(dataset, request["shape"])
        if value(dataset, "FrameOfReferenceUID") is None:
            dataset.FrameOfReferenceUID = dataset.SeriesInstanceUID  # the library wants one; nothing here depends on it
        datasets.append(dataset)
    image = _volume(datasets).permute_spatial_axes((2, 1, 0)).to_nibabel()
    if list(image.shape) != list(request["shape"]):
        raise InputError("Its pixels do not fill the shape that its header gives.")
    with target.open("wb") as stream:
        np.savez(stream, voxels=np.ascontiguousarray(image.dataobj), affine=image.affine)


def answer(work: Callable[..., None], *arguments: Any) -> None:
    """Runs what a reading process has to do; an ending that it foresees is said in its own words, others by kind."""
    warnings.simplefilter("ignore")  # they quote values of headers
    logging.disable(logging.CRITICAL)
    try:
        work(*arguments)
    except InputError as error:
        sys.exit(f"{SAID}{error}")
    except MemoryError:
        sys.exit(f"{SAID}it takes more memory than such an image should. Its header or its compression is wrong.")
    except Exception as error:
        sys.exit(f"{SAID}its pixels cannot be decoded ({type(error).__name__}). Export the series again, uncompressed.")


if __name__ == "__main__":
    answer(_read, json.loads(Path(sys.argv[1]).read_text("ascii")), Path(sys.argv[2]))
