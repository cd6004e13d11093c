"""NIfTI files in and out, through nibabel, with every check that a voxel needs before it is believed.

The rule for the affine is the standard's: the sform if its code is set, else the qform. Nothing is flipped
here; a volume keeps its file's order and says in its affine where it lies.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from glimpseg.atomic import atomic_file
from glimpseg.errors import InputError
from glimpseg.region import Convention, whole_numbers
from glimpseg.volume import Grid, Volume, background_value, connected_to_border

log = logging.getLogger(__name__)

SUFFIXES = (".nii", ".nii.gz")
MAXIMAL_SIDE = 1024
"""Voxels along one axis that a brain scan can have; a header that claims more lies (reliability table, row 21)."""
MAXIMAL_VOXELS = 200_000_000
MAXIMAL_GAP_MM = 1e-3
"""How far sform and qform may differ before it is worth a warning."""
SLACK_BYTES = 1024
"""What a gz file may hold after its last voxel."""
WIDESPREAD = 0.01
"""Share of voxels that may be NaN or infinite beside an ordinary background."""
_UNREADABLE = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError, MemoryError)


def read_volume(path: str | Path) -> Volume:
    """One image, float32, in the file's own order.

    NaN and infinite voxels outside the brain become background, with a warning.

    Raises: InputError if the file is not a whole, finite, three-dimensional, non-constant NIfTI image with a
        usable affine.
    """
    path = Path(path)
    return _checked(_open(path), path)


def _checked(image: nibabel.spatialimages.SpatialImage, path: Path) -> Volume:
    voxels = _voxels(image, path)
    with np.errstate(over="ignore"):
        voxels = voxels.astype(np.float32)  # beyond its range is infinity, which the next line judges
    voxels = _finite(voxels, path)
    if voxels.min() == voxels.max():
        raise InputError(
            f"{path} holds the single value {voxels.flat[0]:g} and no image. Leave this sequence out: "
            "glimpseg works with any that remain."
        )
    return Volume(voxels, image.affine.astype(np.float64))


def from_nibabel(image: nibabel.spatialimages.SpatialImage) -> Volume:
    """An image that was opened by nibabel or made in memory, under the same checks as a file."""
    path = Path(image.get_filename() or "the image")
    _check_shape(image, path)
    _check_affine(nibabel.Nifti1Image.from_image(image), path)
    return _checked(image, path)


def read_labels(path: str | Path, convention: Convention | None = None) -> Volume:
    """A label map, uint8: `Label` values if a convention is given, else the file's own numbers.

    Raises: InputError as `read_volume`, and for values that are no labels of the convention.
    """
    path = Path(path)
    image = _open(path)
    values = _voxels(image, path)
    labels = whole_numbers(values, str(path)) if convention is None else convention.read(values, str(path))
    if labels.min() < 0 or labels.max() > 255:
        raise InputError(
            f"{path} should hold labels but holds values from {labels.min()} to {labels.max()}. Is it an image?"
        )
    return Volume(labels.astype(np.uint8), image.affine.astype(np.float64))


def read_header(path: str | Path) -> Grid:
    """The grid of an image, without reading its voxels. Raises: InputError as `read_volume`."""
    image = _open(Path(path))
    x, y, z = image.shape[:3]
    return Grid((x, y, z), image.affine.astype(np.float64))


def write_labels(path: str | Path, labels: Volume, names: Mapping[int, str] | None = None) -> None:
    """Writes a label map as unscaled uint8, whole or not at all.

    `names` (number to name) travels as a JSON comment in the header, as viewers and people may read it.
    """
    image = _image(labels.voxels.astype(np.uint8), labels.affine)
    if names:
        text = json.dumps({"labels": {str(number): name for number, name in names.items()}})
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text.encode()))
    _save(image, path)


def write_image(path: str | Path, volume: Volume, dtype: type[np.generic] = np.float32) -> None:
    """Writes an image, unscaled, in `dtype`, whole or not at all. The caller sees to it that values fit."""
    _save(_image(volume.voxels.astype(dtype), volume.affine), path)


def _image(voxels: np.ndarray, affine: np.ndarray) -> nibabel.Nifti1Image:
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units("mm", "sec")
    # Both places say the same, so that no reader sees another geometry than the next.
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    if np.abs(image.get_qform() - affine).max() > MAXIMAL_GAP_MM:
        image.set_qform(None, code=0)  # a sheared affine has no quaternion
    return image


def _save(image: nibabel.Nifti1Image, path: str | Path) -> None:
    with atomic_file(path) as temporary:
        nibabel.save(image, temporary)


def _open(path: Path) -> nibabel.Nifti1Image:
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the path.")
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path} is not a NIfTI file ({' or '.join(SUFFIXES)}). Convert it, with dcm2niix for DICOM.")
    try:
        image = nibabel.load(path)
    except _UNREADABLE as error:
        raise InputError(f"{path} cannot be read as NIfTI ({_first_line(error)}). Export it again.") from error
    if not isinstance(image, nibabel.Nifti1Pair):  # NIfTI-2 and single files are subclasses
        raise InputError(f"{path} is a {type(image).__name__}, not NIfTI. Convert it to .nii.gz.")
    _check_shape(image, path)
    _check_affine(image, path)
    return image


def _check_shape(image: nibabel.Nifti1Image, path: Path) -> None:
    shape = image.shape
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        kind = "a series of volumes (functional, diffusion, or several echoes)" if len(shape) > 3 else "a single slice"
        raise InputError(
            f"{path} should be one three-dimensional volume but its shape is {shape}: {kind}. "
            "Give the file of one volume, or split it (fslsplit, nibabel.four_to_three)."
        )
    if len(shape) > 3:
        log.warning("%s has the shape %s; its single volume is used.", path.name, shape)
    if max(shape) > MAXIMAL_SIDE or int(np.prod([int(n) for n in shape])) > MAXIMAL_VOXELS or min(shape) < 1:
        raise InputError(
            f"{path} claims {'x'.join(map(str, shape))} voxels; at most {MAXIMAL_SIDE} along an axis and "
            f"{MAXIMAL_VOXELS:,} in all are read. Its header is damaged, or it should be resampled."
        )
    kind = image.get_data_dtype()
    if kind.names or np.issubdtype(kind, np.complexfloating):
        raise InputError(
            f"{path} holds colours or complex numbers ({kind}), not intensities. Give the magnitude image."
        )


def _check_affine(image: nibabel.Nifti1Image, path: Path) -> None:
    affine = image.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise InputError(
            f"{path} has an affine that places no voxel (singular or not finite): {np.round(affine, 3).tolist()}. "
            "Export the image again, or set the header from the scanner's geometry."
        )
    sform, qform = image.get_sform(coded=True), _qform(image)
    if sform[1] == 0 and qform[1] == 0:
        log.warning(
            "%s says nothing of its orientation (sform and qform code 0); its axes are taken as stored.",
            path.name,
        )
    if sform[1] > 0 and qform[1] > 0 and np.abs(sform[0] - qform[0]).max() > MAXIMAL_GAP_MM:
        log.warning("%s: sform and qform differ; the sform is used, as the standard asks.", path.name)


def _qform(image: nibabel.Nifti1Image) -> tuple[np.ndarray | None, int]:
    try:
        return image.get_qform(coded=True)
    except (ValueError, HeaderDataError):  # a quaternion that is none
        return None, 0


def _voxels(image: nibabel.Nifti1Image, path: Path) -> np.ndarray:
    try:
        if path.name.lower().endswith(".gz") and nibabel.is_proxy(image.dataobj):
            image = type(image).from_bytes(_inflated(path, image))
        voxels = np.asanyarray(image.dataobj)
    except _UNREADABLE as error:
        raise InputError(
            f"{path} is damaged: its header promises {'x'.join(map(str, image.shape))} voxels, and reading them "
            f"failed ({_first_line(error)}). Copy or export it again."
        ) from error
    return voxels.reshape(voxels.shape[:3])


def _inflated(path: Path, image: nibabel.Nifti1Image) -> bytes:
    """The whole content of a gz file, no more than its header promises, its checksum compared.

    nibabel reads no further than the last voxel and so never meets the checksum, which comes after it.
    """
    size = int(image.dataobj.offset) + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    with gzip.open(path) as stream:
        content = stream.read(size)
        rest = stream.read(SLACK_BYTES + 1)
    if len(content) < size:
        raise EOFError(f"it ends after {len(content):,} of {size:,} bytes")
    if len(rest) > SLACK_BYTES:
        raise OSError("it goes on after the last voxel")
    return content


def _finite(voxels: np.ndarray, path: Path) -> np.ndarray:
    """Non-finite voxels that belong to the background take its value; others are refused."""
    broken = ~np.isfinite(voxels)
    count = int(broken.sum())
    if not count:
        return voxels
    if count == voxels.size:
        raise InputError(f"{path} holds no finite voxel. Export it again.")
    background = background_value(np.where(broken, np.float32(np.nan), voxels))
    outside = broken | (voxels == background)
    # Outside is what reaches the border of the array through background; a hole in the brain does not.
    inside = int((broken & ~connected_to_border(outside)).sum())
    is_convention = np.isnan(background)  # the file writes its whole background as NaN
    if inside or (count > WIDESPREAD * voxels.size and not is_convention):
        where = f"{inside:,} of them inside the brain" if inside else "too many to be stray"
        raise InputError(
            f"{path} holds {count:,} NaN or infinite voxels, {where}. Segmenting it would be a guess: "
            "export it again, or leave this sequence out."
        )
    log.warning("%s: %s NaN or infinite voxels in the background were set to it.", path.name, f"{count:,}")
    return np.where(broken, np.float32(0 if is_convention else background), voxels)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
