"""Decode pixels of foreign DICOM files in a separate process.

`read.decode` starts this process as `python -m glimpseg.data.dicom.pixels REQUEST TARGET`. It must not import torch.
"""

from __future__ import annotations

import json
import logging
import struct
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from glimpseg.data import nifti
from glimpseg.data.dicom import codes, geometry
from glimpseg.data.dicom.headers import DeflatedError, NotDicom, read_dataset, value
from glimpseg.errors import InputError
from glimpseg.region import Label
from glimpseg.runtime.sandbox import SPARE_BYTES, confine
from glimpseg.runtime.temporary import REFUSALS

if TYPE_CHECKING:
    import highdicom
    from pydicom.dataset import Dataset

ContentKind = Literal["image", "segmentation"]

BYTES_A_VOXEL = 24
"""Memory for decoding one voxel, bytes: stored, decoded, rescaled and stacked."""
BYTES_A_SEGMENT_VOXEL = 64
"""Memory for decoding one pixel of a segmentation frame, bytes; highdicom holds several forms of it at once."""
JPEG_2000_START = b"\xff\x4f\xff\x51"
JPEG_FRAME_MARKERS = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
"""Start-of-frame markers of JPEG (ITU-T T.81, table B.1) and of JPEG-LS (T.87)."""
SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes: segmentation, and label map segmentation."""
MESSAGE_PREFIX = "glimpseg: "
"""Prefix of messages that this process writes itself."""


def _stack_volume(datasets: Sequence[Dataset]) -> highdicom.Volume:
    """Decode, rescale, sort and stack slices with highdicom."""
    import highdicom

    geometry.make_regular(datasets)  # raises glimpseg's message before the library raises its own
    # Real-world value maps are not applied: they are rare, and dcm2niix uses the rescale slope too.
    if geometry.is_enhanced(datasets[0]):
        image = highdicom.Image.from_dataset(datasets[0], copy=False)
        return image.get_volume(dtype=np.float32, apply_real_world_transform=False)
    return highdicom.get_volume_from_series(
        datasets,
        dtype=np.float32,
        apply_real_world_transform=False,
    )


def _check_pixels(dataset: Dataset, shape: Sequence[int]) -> None:
    """Check that a header matches its pixel data and the shape that `find_series` read."""
    from pydicom.encaps import get_frame

    frames = int(value(dataset, "NumberOfFrames") or 1)
    expected = shape[2] if geometry.is_enhanced(dataset) else 1
    if [value(dataset, "Columns"), value(dataset, "Rows"), frames] != [*shape[:2], expected]:
        raise InputError("Rows, Columns or NumberOfFrames differ between its files, or from what the frames say.")
    if value(dataset, "SamplesPerPixel") not in (None, 1):
        raise InputError("Its images are in colour, and an MR image has one value for each pixel.")
    if "PixelData" not in dataset:
        raise InputError("A file holds no pixels: it is truncated, or was exported as a header only.")
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed and dataset["PixelData"].is_undefined_length:
        raise InputError(
            "Its pixels are compressed, and the file does not say how. Export the series again, uncompressed."
        )
    if not syntax.is_compressed:
        bits = int(dataset.BitsAllocated)
        promised = int(dataset.Rows) * int(dataset.Columns) * frames * bits // 8
        held = len(dataset.PixelData)
        if held not in (promised, promised + promised % 2):
            raise InputError(
                f"A header promises {promised:,} bytes of pixels and {held:,} follow: the file is truncated, or Rows "
                "and Columns are wrong. Copy or export the series again."
            )
    elif coded_size(get_frame(dataset.PixelData, 0, number_of_frames=frames)) not in (None, tuple(shape[:2])):
        raise InputError(
            "Rows and Columns differ from what the compressed pixels say of themselves. Export the series again, "
            "uncompressed."
        )


def coded_size(stream: bytes) -> tuple[int, int] | None:
    """Return columns and rows of a JPEG, JPEG-LS or JPEG 2000 stream; None for other data.

    Decoders do not compare them with the header.
    """
    if stream.startswith(JPEG_2000_START):
        columns, rows, left, top = struct.unpack_from(">4I", stream, len(JPEG_2000_START) + 4)
        return columns - left, rows - top
    at = 2
    while stream.startswith(b"\xff\xd8") and at + 9 < len(stream) and stream[at] == 0xFF:
        if stream[at + 1] in JPEG_FRAME_MARKERS:
            rows, columns = struct.unpack_from(">2H", stream, at + 5)
            return columns, rows
        at += 2 + struct.unpack_from(">H", stream, at + 2)[0]
    return None


def _read_dataset(path: Path, *, pixels: bool = True) -> Dataset:
    from pydicom.errors import InvalidDicomError

    try:
        return read_dataset(path, stop_before_pixels=not pixels)
    except DeflatedError:
        raise InputError("Deflated data sets are not read. Export it again, uncompressed.") from None
    except (EOFError, OSError, InvalidDicomError, NotDicom) as error:
        raise InputError("A file is truncated, no DICOM, or no longer there. Copy or export it again.") from error


def _decode_image(files: Sequence[Path], shape: Sequence[int]) -> highdicom.Volume:
    stored = sum(path.stat().st_size for path in files if path.is_file())
    confine(SPARE_BYTES + BYTES_A_VOXEL * int(np.prod(shape)) + 2 * stored)
    datasets = []
    for path in files:
        dataset = _read_dataset(path)
        _check_pixels(dataset, shape)
        datasets.append(dataset)
    for dataset in datasets:  # highdicom requires equal values; the result does not depend on them
        dataset.SeriesInstanceUID = datasets[0].SeriesInstanceUID
        dataset.FrameOfReferenceUID = value(datasets[0], "FrameOfReferenceUID") or datasets[0].SeriesInstanceUID
    volume = _stack_volume(datasets)
    if list(volume.spatial_shape) != list(reversed(shape)):
        raise InputError("Its pixels do not fill the shape that its header gives.")
    return volume


def _decode_segmentation(path: Path) -> highdicom.Volume:
    """Decode a segmentation to `Label` values."""
    import highdicom

    dataset = _read_dataset(path, pixels=False)
    if value(dataset, "SOPClassUID") not in SEGMENTATION_CLASSES:
        raise InputError("It is no DICOM segmentation. Give a file whose Modality is SEG.")
    sides = [int(dataset.Columns), int(dataset.Rows), len(dataset.PerFrameFunctionalGroupsSequence)]
    most_voxels = nifti.MAXIMAL_VOXELS * len(Label)
    if max(sides[:2]) > nifti.MAXIMAL_SIDE or np.prod(sides, dtype=float) > most_voxels:
        raise InputError(f"Its header claims {sides[2]} frames of {sides[0]}x{sides[1]}, more than a brain scan has.")
    confine(SPARE_BYTES + BYTES_A_SEGMENT_VOXEL * int(np.prod(sides)) + 2 * path.stat().st_size)
    segmentation = highdicom.seg.Segmentation.from_dataset(_read_dataset(path), copy=False)
    meaning = np.zeros(1 + max(segmentation.segment_numbers), np.uint8)
    unknown = []
    for number in segmentation.segment_numbers:
        kind = segmentation.get_segment_description(number).segmented_property_type
        label = codes.label_of(kind.value, kind.scheme_designator)
        meaning[number] = label or 0
        if label is None:
            unknown.append(number)
    try:
        volume = segmentation.get_volume(combine_segments=True, skip_overlap_checks=False)
    except RuntimeError as error:
        raise InputError(
            "Its segments overlap or its frames make up no volume, so it is no label map. Export it without overlaps."
        ) from error
    if np.isin(volume.array, unknown).any():
        raise InputError(
            f"Its segments {unknown} are of no type that is a label here (necrosis, oedema, enhancing lesion, "
            "resection cavity). Convert it to NIfTI and say what its numbers mean."
        )
    return volume.with_array(meaning[volume.array])


def _decode_to_file(request: dict[str, Any], target: Path) -> None:
    files = [Path(name) for name in request["files"]]
    volume = _decode_image(files, request["shape"]) if request["kind"] == "image" else _decode_segmentation(files[0])
    image = volume.permute_spatial_axes((2, 1, 0)).to_nibabel()
    with target.open("wb") as stream:
        np.savez(stream, voxels=np.ascontiguousarray(image.dataobj), affine=image.affine)


def main(request: str, target: str) -> None:
    """Decode one request. Expected failures end with a message of glimpseg, others also name the type of the error.

    Args:
        request: Path of a JSON file with `kind` (image or segmentation), `files` and, for an image, `shape`.
        target: Path of the file to write, as numpy's npz: `voxels` and `affine`.
    """
    warnings.simplefilter("ignore")  # warnings may quote header values
    warnings.filterwarnings("error", "The decoded RLE segment")  # warning of a segment longer than Rows and Columns
    logging.disable(logging.CRITICAL)
    try:
        _decode_to_file(json.loads(Path(request).read_text("ascii")), Path(target))
    except InputError as error:
        sys.exit(f"{MESSAGE_PREFIX}{error}")
    except MemoryError:
        sys.exit(
            f"{MESSAGE_PREFIX}it takes more memory than such an image should. Its header or its compression is wrong."
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            raise  # a full disk, which is no fault of the image
        sys.exit(
            f"{MESSAGE_PREFIX}its pixels cannot be decoded ({type(error).__name__}). Export it again, uncompressed."
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
