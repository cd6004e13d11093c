"""Read and write NIfTI files with nibabel, with checks of header, size, affine and voxels.

The affine follows the NIfTI standard: the sform if its code is set, else the qform. Nothing is flipped here. A volume
keeps the axis order of its file, and its affine gives the orientation.
"""

from __future__ import annotations

import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from glimpseg.data import metaimage
from glimpseg.data.gunzip import open_gzip
from glimpseg.data.notices import warn
from glimpseg.errors import InputError
from glimpseg.foreground import air_level, foreground
from glimpseg.region import Convention, whole_numbers
from glimpseg.runtime.atomic import atomic_file
from glimpseg.study import Frame
from glimpseg.volume import (
    Grid,
    Volume,
    axis_slices,
    background_value,
    connected_to_border,
    displacement_mm,
    same_grid,
)

SUFFIXES = (".nii", ".nii.gz")
PAIR_SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz")
"""Suffixes of the two files of a NIfTI pair: header and voxels."""
MAXIMAL_SIDE = 1024
"""Most voxels along one axis. No brain scan has more, so a header that claims more is damaged."""
MAXIMAL_VOXELS = 200_000_000
"""Most voxels of one image."""
MAXIMAL_SIDE_MM = 1024.0
"""Largest field of view along one axis. No body is longer, and the working grid has one voxel for each millimetre."""
MAXIMAL_DISTANCE_MM = 1e5
"""Largest distance of a voxel from the origin of the coordinates."""
MINIMAL_SPACING_MM = 0.01
"""Smallest voxel size."""
MINIMAL_UPRIGHTNESS = 0.5
"""Smallest volume of the parallelepiped of unit vectors along the axes: 1 for perpendicular axes, 0.87 for a gantry
tilt of 30 degrees."""
MAXIMAL_OFFSET = 64 << 20
"""Most bytes before the first voxel: header and extensions."""
LARGE_BYTES = 256 << 20
"""Size of the content from which on `LARGE_RATIO` is checked."""
LARGE_RATIO = 200
"""Largest compression ratio of a gz file with more than `LARGE_BYTES` of content. Scans stay below 50. An empty label
map may reach 1000, but is not that large."""
DEFLATE_RATIO = 1032
"""Largest compression ratio of the format. A header that claims more is damaged."""
UNITS_MM = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
"""Unit codes of xyzt_units other than the millimetre: name, and length in mm."""
LONGEST_QUATERNION = 1.01
"""Largest length of a qform's quaternion part (b, c, d) that is taken for 1. A longer one is damage, not rounding."""
SLACK_BYTES = 1024
"""Most bytes that a file may hold after its last voxel."""
WIDESPREAD = 0.01
"""Largest share of NaN or infinite voxels in an image that has an ordinary background."""
GOES_ON = "it goes on after the last voxel"
"""Message about a file that is longer than its header says."""
_HEADER_BYTES = 540
"""Length of the NIfTI-2 header, which is longer than that of NIfTI-1."""
_HEADER_SIZES = (348, 540)
"""First number in a header of NIfTI-1 and of NIfTI-2."""
_GZIP_START = b"\x1f\x8b"
_PIECE_BYTES = 1 << 24
"""Bytes read at once when content is skipped."""
_UNREADABLE = (
    OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError, MemoryError, OverflowError, TypeError,
)  # fmt: skip


def read_volume(source: str | Path | Frame, name: str = "") -> Volume:
    """Read one image as float32, in the axis order of the file.

    NaN and infinite voxels outside the brain become background, with a warning.

    Args:
        source: file (NIfTI or `.mha`), or one volume of a four-dimensional file.
        name: name of the image in warnings. By default the file name, which may contain the name of a patient.

    Raises: InputError if the file is not a whole, finite, three-dimensional, non-constant NIfTI image (or `.mha`)
        with a usable affine.
    """
    if isinstance(source, Frame):
        return _checked(_series(source, name), source.path, name, source.number)
    path = Path(source)
    return _checked(_open(path, name), path, name)


def _checked(image: nibabel.spatialimages.SpatialImage, path: Path, name: str = "", number: int = 0) -> Volume:
    voxels = _finite(_intensities(image, path, number), path, name)
    if voxels.min() == voxels.max():
        raise InputError(
            f"{path} holds the single value {voxels.flat[0]:g} and no image. Leave this sequence out: "
            "glimpseg works with any that remain."
        )
    return Volume(voxels, image.affine.astype(np.float64))


def from_nibabel(image: nibabel.spatialimages.SpatialImage) -> Volume:
    """Convert an image that nibabel opened, or that was made in memory, with the same checks as for a file.

    Raises: InputError as `read_volume`.
    """
    path = Path(image.get_filename() or "the image")
    _check_shape(image, path)
    _check_affine(nibabel.Nifti1Image.from_image(image), path)
    return _checked(image, path)


def read_labels(path: str | Path, convention: Convention | None = None) -> Volume:
    """Read a label map as uint8: `Label` values if a convention is given, else the numbers of the file.

    Raises: InputError if the file is not a whole, three-dimensional image with a usable affine, or has values that are
        no labels of the convention (without one: no whole numbers from 0 to 255). One constant value is allowed.
    """
    path = Path(path)
    image = _open(path)
    values = _whole(image, path)
    labels = whole_numbers(values, str(path)) if convention is None else convention.read(values, str(path))
    if labels.min() < 0 or labels.max() > 255:
        raise InputError(
            f"{path} should hold labels but holds values from {labels.min()} to {labels.max()}. Is it an image?"
        )
    return Volume(labels.astype(np.uint8), image.affine.astype(np.float64))


def read_header(source: str | Path | Frame) -> Grid:
    """Read the grid of an image (NIfTI or `.mha`), without its voxels.

    Raises: InputError if the header is not that of a three-dimensional image, or of a series that holds the frame, with
        a usable affine.
    """
    image = _series(source) if isinstance(source, Frame) else _open(Path(source))
    x, y, z = image.shape[:3]
    return Grid((x, y, z), image.affine.astype(np.float64))


def claimed_grid(source: Path | Frame) -> Grid:
    """Read the grid of an image as `read_header` does, but without warnings, to estimate memory before reading.

    A four-dimensional file is accepted.

    Raises: InputError if the header is not that of an image of at least three dimensions with a usable affine.
    """
    path = source.path if isinstance(source, Frame) else source
    image = _metaimage(path) if path.name.lower().endswith(metaimage.SUFFIX) else _nifti(path)
    if len(image.shape) < 3:
        _check_shape(image, path)
    _check_size(image, path)
    _check_placed(image.affine, path)
    x, y, z = image.shape[:3]
    grid = Grid((x, y, z), image.affine.astype(np.float64))
    _check_extent(grid, path)
    return grid


def write_labels(path: str | Path, labels: Volume, names: Mapping[int, str] | None = None) -> None:
    """Write a label map as unscaled uint8, atomically.

    `names` (number to name) is stored as a JSON comment in the header, for viewers and people.

    Raises: OutputError if writing fails.
    """
    image = _image(labels.voxels.astype(np.uint8), labels.affine)
    if names:
        text = json.dumps({"labels": {str(number): name for number, name in names.items()}})
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text.encode()))
    _save(image, path)


def write_image(path: str | Path, volume: Volume, dtype: type[np.generic] = np.float32) -> None:
    """Write an image in `dtype` without scaling, atomically. The caller must make sure that the values fit.

    Raises: OutputError if writing fails.
    """
    _save(_image(volume.voxels.astype(dtype), volume.affine), path)


def _image(voxels: np.ndarray, affine: np.ndarray) -> nibabel.Nifti1Pair:
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units("mm", "sec")
    # sform and qform are equal, so that all readers see the same geometry.
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    x, y, z = image.shape[:3]
    if not same_grid(Grid((x, y, z), affine), Grid((x, y, z), image.get_qform())):
        image.set_qform(None, code=0)  # a sheared affine has no quaternion
    return image


def _save(image: nibabel.Nifti1Pair, path: str | Path) -> None:
    with atomic_file(path) as temporary:
        nibabel.save(image, temporary)


def _open(path: Path, name: str = "") -> nibabel.Nifti1Pair:
    """Open an image, check its header, and load voxels later.

    Extensions are not read: they are long, belong to other programs and may hold private data.
    """
    image = _metaimage(path) if path.name.lower().endswith(metaimage.SUFFIX) else _nifti(path)
    _check_shape(image, path, name)
    _check_affine(image, path, name)
    return image


def _nifti(path: Path) -> nibabel.Nifti1Pair:
    """Open a NIfTI file or pair, compressed or not by its content. `extra` of the image holds notes for warnings."""
    _check_file(path)
    name = path.name.lower()
    if not name.endswith((*SUFFIXES, *PAIR_SUFFIXES)):
        raise InputError(f"{path} is not a NIfTI file ({' or '.join(SUFFIXES)}). Convert it, with dcm2niix for DICOM.")
    head, body = _pair(path) if name.endswith(PAIR_SUFFIXES) else (path, path)
    try:
        with np.errstate(all="ignore"):  # the result is checked below
            kind, header, notes = _header(head, single=head is body)
            affine = header.get_best_affine()
            # Read, not memory-mapped: a file that shrinks while it is mapped kills the process.
            voxels = ArrayProxy(body, header.copy(), mmap=False)
    except _UNREADABLE as error:
        raise InputError(f"{path} cannot be read as NIfTI ({_first_line(error)}). Export it again.") from error
    _check_placed(affine, path)
    if _is_gzip(body) != body.name.lower().endswith(".gz"):
        held = "compressed" if _is_gzip(body) else "not compressed"
        notes.append(f"is {held}, although its name ends otherwise; it is read by its content.")
    return kind(voxels, affine, header, extra={"notes": notes})


def _pair(path: Path) -> tuple[Path, Path]:
    """Return header and voxel file of a NIfTI pair; one file twice if it holds both.

    Raises: InputError if one of them is missing, or for the older format Analyze 7.5.
    """
    block = _first_bytes(path)
    if block[344:348] == b"n+1\0" or block[4:8] == b"n+2\0":
        return path, path
    root, head, body = re.sub(r"\.(hdr|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE).lower(), None, None
    for other in sorted(path.parent.iterdir()):
        if other.name.lower() in (f"{root}.hdr", f"{root}.hdr.gz"):
            head = head or other
        if other.name.lower() in (f"{root}.img", f"{root}.img.gz"):
            body = body or other
    if head is None or body is None:
        missing = "header (.hdr)" if head is None else "voxels (.img)"
        raise InputError(
            f"{path} is one of two files of a NIfTI pair, and the {missing} of the same name is not beside it. Copy "
            "both files into one folder."
        )
    for file in (head, body):
        _check_file(file)
    block = _first_bytes(head)
    if not (block[344:348] == b"ni1\0" or block[4:8] == b"ni2\0"):
        raise InputError(
            f"{path} is no NIfTI pair but, perhaps, Analyze 7.5, which does not say which side is left. Convert it to "
            ".nii.gz with the program that wrote it, or from the original DICOM with dcm2niix."
        )
    return head, body


def _first_bytes(path: Path) -> bytes:
    try:
        with _opened(path) as stream:
            return stream.read(_HEADER_BYTES)
    except _UNREADABLE as error:
        raise InputError(f"{path} cannot be read as NIfTI ({_first_line(error)}). Export it again.") from error


def _is_gzip(path: Path) -> bool:
    """True if a file is gz-compressed by its content; content of another kind is taken for what the name says."""
    with path.open("rb") as stream:
        block = stream.read(4)
    plain = int.from_bytes(block, "little") in _HEADER_SIZES or int.from_bytes(block, "big") in _HEADER_SIZES
    return block[:2] == _GZIP_START or (not plain and path.name.lower().endswith(".gz"))


def _opened(path: Path) -> AbstractContextManager[io.BufferedIOBase]:
    """Open a file to read its uncompressed content."""
    return open_gzip(path) if _is_gzip(path) else path.open("rb")


def _metaimage(path: Path) -> nibabel.Nifti1Pair:
    _check_file(path)
    try:
        with np.errstate(all="ignore"):  # the affine is checked by the caller
            return metaimage.load(path)
    except _UNREADABLE as error:
        raise InputError(f"{path} cannot be read as MetaImage ({_first_line(error)}). Export it again.") from error


def _series(frame: Frame, name: str = "") -> nibabel.Nifti1Pair:
    """Open the four-dimensional file that holds a frame, and check its header."""
    image, path = _nifti(frame.path), frame.path
    if len(image.shape) != 4 or not 0 <= frame.number < image.shape[3]:
        raise InputError(
            f"{path} should be a series of at least {frame.number + 1} volumes, but its shape is {image.shape}. Does "
            "dataset.json name the sequences of these files?"
        )
    _check_size(image, path)
    _check_affine(image, path, name)
    return image


def _check_file(path: Path) -> None:
    try:
        there, plain = path.exists(), path.is_file()
    except OSError as error:  # a name that is too long, or a folder without permission
        raise InputError(f"{path} cannot be reached ({error.strerror}). Check the path.") from error
    if not there and path.is_symlink():
        raise InputError(f"{path} is a link that leads nowhere. Give the file itself.")
    if not there:
        raise InputError(f"{path} does not exist. Check the path.")
    if not plain:
        raise InputError(f"{path} is a folder or a device, not a file. Give the image itself.")


def _header(path: Path, *, single: bool) -> tuple[type[nibabel.Nifti1Pair], nibabel.Nifti1PairHeader, list[str]]:
    """Read a header, with its lengths in mm, and notes of what was mended in it.

    Args:
        path: file that begins with the header.
        single: True for a file that also holds the voxels, False for the header of a pair.
    """
    with _opened(path) as stream:
        block = stream.read(_HEADER_BYTES)
    two = _HEADER_BYTES in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big"))
    if single:
        kind = nibabel.Nifti2Image if two else nibabel.Nifti1Image
    else:
        kind = nibabel.Nifti2Pair if two else nibabel.Nifti1Pair
    form = kind.header_class
    block = block[: form.sizeof_hdr]
    if len(block) < form.sizeof_hdr:
        raise EOFError(f"it has {len(block)} bytes, too few for a header")
    raw = form(block, check=False)
    if not 1 <= raw["dim"][0] <= 7:
        raise ValueError(f"it claims {raw['dim'][0]} dimensions")
    sizes = raw["pixdim"][1:4]
    if raw["sform_code"] == 0 and not (np.isfinite(sizes) & (sizes != 0)).all():
        raise ValueError(f"its header gives no size of the voxels: {sizes.tolist()}")
    notes = [*_mend_dimensions(raw), *_mend_quaternion(raw)]
    header = form(raw.binaryblock, raw.endianness)
    notes += _convert_to_mm(header)
    if not 0 <= header.get_data_offset() <= MAXIMAL_OFFSET:
        raise ValueError(f"its voxels are said to begin at byte {header.get_data_offset():,}")
    return kind, header, notes


def _mend_dimensions(raw: nibabel.Nifti1PairHeader) -> Iterator[str]:
    """Set lengths below 1 of the axes beyond the third to 1, as other readers do. Yields a note if there was one."""
    dim = raw["dim"]
    beyond = [axis for axis in range(4, int(dim[0]) + 1) if dim[axis] < 1]
    if beyond and dim[0] > 3:
        named = ", ".join(f"dim[{axis}] = {dim[axis]}" for axis in beyond)
        dim[beyond] = 1
        yield f"has {named} in its header, which counts as 1."


def _mend_quaternion(raw: nibabel.Nifti1PairHeader) -> Iterator[str]:
    """Shorten a quaternion that rounding made longer than 1, as ITK and FSL do. Yields a note if it was much longer."""
    keys = ("quatern_b", "quatern_c", "quatern_d")
    length = float(np.linalg.norm([float(raw[key]) for key in keys]))
    if not 1 < length <= LONGEST_QUATERNION:
        return
    for key in keys:
        raw[key] = float(raw[key]) / length
    if length > 1 + 1e-4 and raw["qform_code"] > 0 and raw["sform_code"] == 0:
        yield f"has a quaternion of length {length:.4f}, which was shortened to 1."


def _convert_to_mm(header: nibabel.Nifti1PairHeader) -> Iterator[str]:
    """Convert the lengths of a header that is in metres or micrometres. Yields a note about the unit.

    A unit that gives voxels of no scan is taken for an error, if millimetres give voxels of one.
    """
    code = int(header["xyzt_units"]) & 7
    if code not in UNITS_MM:
        return
    unit, factor = UNITS_MM[code]
    sizes, shape = voxel_sizes(header.get_best_affine()), header.get_data_shape()[:3]
    header["xyzt_units"] = (int(header["xyzt_units"]) & ~7) | 2
    if _is_plausible(sizes, shape) and not _is_plausible(sizes * factor, shape):
        yield (
            f"is in {unit} by its header (xyzt_units), which would give voxels of {_by(sizes * factor)} mm; its "
            "numbers are taken as millimetres."
        )
        return
    header["pixdim"][1:4] *= factor
    for key in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
        header[key] = header[key] * factor
    said = f"voxels of {_by(sizes * factor)} mm"
    yield f"is in {unit} by its header (xyzt_units); it was converted to millimetres: {said}."


def _is_plausible(sizes_mm: np.ndarray, shape: Sequence[int]) -> bool:
    """True if voxels of this size, as many as `shape` says, may be a scan of a head."""
    with np.errstate(all="ignore"):
        sides = sizes_mm[: len(shape)] * np.array(shape)
        return bool(sizes_mm.min() >= MINIMAL_SPACING_MM and sides.max() <= MAXIMAL_SIDE_MM)


def _check_shape(image: nibabel.Nifti1Pair, path: Path, name: str = "") -> None:
    shape = image.shape
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        kind = "a series of volumes (functional, diffusion, or several echoes)" if len(shape) > 3 else "a single slice"
        raise InputError(
            f"{path} should be one three-dimensional volume but its shape is {shape}: {kind}. "
            "Give the file of one volume, or split it (fslsplit, nibabel.four_to_three)."
        )
    if len(shape) > 3:
        warn(f"{name or path.name} has the shape {shape}; its single volume is used.")
    _check_size(image, path)


def _check_size(image: nibabel.Nifti1Pair, path: Path) -> None:
    shape = image.shape
    if max(shape) > MAXIMAL_SIDE or math.prod(shape) > MAXIMAL_VOXELS or min(shape) < 1:
        raise InputError(
            f"{path} claims {'x'.join(map(str, shape))} voxels; at most {MAXIMAL_SIDE} along an axis and "
            f"{MAXIMAL_VOXELS:,} in all are read. Its header is damaged, or it should be resampled."
        )
    kind = image.get_data_dtype()
    if kind.names or np.issubdtype(kind, np.complexfloating):
        raise InputError(
            f"{path} holds colours or complex numbers ({kind}), not intensities. Give the magnitude image."
        )


def _check_placed(affine: np.ndarray, path: Path) -> None:
    with np.errstate(all="ignore"):
        # Relative to the voxel size: voxels that are too small are named as such later.
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        placed = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3] / steps)) >= 1e-6
    if not placed:
        raise _misplaced(affine, path, "has an affine that places no voxel (singular or not finite)")


def _check_extent(grid: Grid, path: Path) -> None:
    with np.errstate(all="ignore"):
        steps, farthest = np.array(grid.spacing_mm), np.abs(grid.corners_mm()).max()
        upright = abs(np.linalg.det(grid.affine[:3, :3] / steps))
        sides = steps * grid.shape
    if not upright >= MINIMAL_UPRIGHTNESS:
        raise _misplaced(grid.affine, path, "has axes that nearly lie in one plane")
    if not (steps.min() >= MINIMAL_SPACING_MM and sides.max() <= MAXIMAL_SIDE_MM and farthest <= MAXIMAL_DISTANCE_MM):
        raise InputError(
            f"{path} claims {_by(grid.shape)} voxels of {_by(steps)} mm, up to {farthest:.3g} mm from the scanner's "
            f"centre; read are voxels from {MINIMAL_SPACING_MM:g} mm, sides up to {MAXIMAL_SIDE_MM:g} mm and distances "
            f"up to {MAXIMAL_DISTANCE_MM:g} mm. Its header is damaged, or its unit is not the millimetre."
        )


def _misplaced(affine: np.ndarray, path: Path, what: str) -> InputError:
    rows = "; ".join(" ".join(f"{number:g}" for number in row) for row in affine[:3])
    return InputError(f"{path} {what}: {rows}. Export the image again, or set the header from the scanner's geometry.")


def _check_affine(image: nibabel.Nifti1Pair, path: Path, name: str = "") -> None:
    _check_placed(image.affine, path)
    x, y, z = image.shape[:3]
    _check_extent(Grid((x, y, z), image.affine), path)
    for note in image.extra.get("notes", ()):
        warn(f"{name or path.name} {note}")
    sform, qform = image.get_sform(coded=True), _qform(image)
    if sform[1] == 0 and qform[1] == 0:
        warn(
            f"{name or path.name} says nothing of its orientation (sform and qform code 0); its axes are taken as "
            "stored."
        )
    if sform[1] > 0 and qform[1] > 0:
        assert qform[0] is not None, "its code is set"
        by_sform, by_qform = Grid((x, y, z), sform[0]), Grid((x, y, z), qform[0])
        if not same_grid(by_sform, by_qform):
            warn(
                f"{name or path.name}: sform and qform differ by up to {displacement_mm(by_sform, by_qform):.2f} mm at "
                "a corner; the sform is used, as the standard asks."
            )


def _qform(image: nibabel.Nifti1Pair) -> tuple[np.ndarray | None, int]:
    try:
        return image.get_qform(coded=True)
    except (ValueError, HeaderDataError):  # an invalid quaternion
        return None, 0


def _intensities(image: nibabel.spatialimages.SpatialImage, path: Path, number: int) -> np.ndarray:
    """Read volume `number` of a file as float32, in its axis order; a large one is read in parts."""
    x, y, z = image.shape[:3]
    voxels: np.ndarray | None = None
    with np.errstate(over="ignore", invalid="ignore"):  # values out of range become infinite; the caller checks that
        for part, values in _stored(image, path, number):
            if voxels is None:  # allocated only now, when a wrong header has been refused
                voxels = np.empty((x, y, z), np.float32, order="F")
            voxels[:, :, part] = values
    assert voxels is not None, "an image has slices"
    return voxels


def _whole(image: nibabel.spatialimages.SpatialImage, path: Path) -> np.ndarray:
    """Read the only volume of a file, in its stored or scaled type."""
    return np.concatenate([values for _, values in _stored(image, path, 0)], axis=2)


def _stored(image: nibabel.spatialimages.SpatialImage, path: Path, number: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the slices of volume `number` in parts, in their stored or scaled type."""
    x, y, z = image.shape[:3]
    source = image.dataobj
    try:
        with np.errstate(all="ignore"):  # values out of range become infinite; the caller checks that
            file = _voxel_file(image, path)
            if file is not None and not _is_gzip(file) and file.stat().st_size > _end(image) + SLACK_BYTES:
                raise OSError(GOES_ON)
            if file is not None and (_is_gzip(file) or file.name.lower().endswith(".gz")):
                yield from _inflated(file, image, number)
            elif isinstance(source, ArrayProxy) and len(image.shape) == 3:
                for part in axis_slices(z, x * y * z):
                    yield part, np.asanyarray(source[:, :, part])
            else:
                yield slice(0, z), np.asanyarray(source).reshape((x, y, z, -1))[..., number]
    except _UNREADABLE as error:
        raise InputError(
            f"{path} is damaged: its header promises {'x'.join(map(str, image.shape))} voxels, and reading them "
            f"failed ({_first_line(error)}). Copy or export it again."
        ) from error


def _voxel_file(image: nibabel.spatialimages.SpatialImage, path: Path) -> Path | None:
    """Return the NIfTI file that holds the voxels; None if they are in memory or in another format."""
    source = image.dataobj
    if not isinstance(source, ArrayProxy):
        return None
    file = Path(source.file_like) if isinstance(source.file_like, str | Path) else path
    return file if file.name.lower().endswith((*SUFFIXES, *PAIR_SUFFIXES)) else None


def _end(image: nibabel.Nifti1Pair) -> int:
    """Size of the uncompressed content by the header, in bytes. A longer file has slices that would be lost."""
    return int(image.dataobj.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize


def _inflated(path: Path, image: nibabel.Nifti1Pair, number: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the slices of volume `number` of a gz file (or of a plain one), after checks of its length and checksum.

    nibabel stops at the last voxel and therefore never checks the checksum, which comes after it.
    """
    source, kind = image.dataobj, image.get_data_dtype()
    (x, y, z), begin = image.shape[:3], int(image.dataobj.offset)
    size = _end(image)
    packed = path.stat().st_size
    if size > max(packed * DEFLATE_RATIO, SLACK_BYTES):
        raise EOFError(f"a gz file of {packed:,} bytes cannot hold {size:,}")
    if size > max(packed * LARGE_RATIO, LARGE_BYTES):
        raise OSError(f"it would grow from {packed:,} to {size:,} bytes, which no scan does")
    with _opened(path) as stream:
        place = begin + number * x * y * z * kind.itemsize
        _skip(stream, 0, place, size)
        for part in axis_slices(z, x * y * z):
            shape = (x, y, part.stop - part.start)
            content = stream.read(math.prod(shape) * kind.itemsize)
            if len(content) < math.prod(shape) * kind.itemsize:
                raise EOFError(f"it ends after {place + len(content):,} of {size:,} bytes")
            place += len(content)
            yield part, np.asanyarray(ArrayProxy(io.BytesIO(content), (shape, kind, 0, source.slope, source.inter)))
            del content
        _skip(stream, place, size, size)
        if len(stream.read(SLACK_BYTES + 1)) > SLACK_BYTES:
            raise OSError(GOES_ON)


def _skip(stream: io.BufferedIOBase, begin: int, end: int, size: int) -> None:
    """Skip the bytes from `begin` to `end`, of `size` in total. Raises: EOFError if the stream ends before."""
    while begin < end:
        found = len(stream.read(min(end - begin, _PIECE_BYTES)))
        if not found:
            raise EOFError(f"it ends after {begin:,} of {size:,} bytes")
        begin += found


def _finite(voxels: np.ndarray, path: Path, name: str) -> np.ndarray:
    """Set non-finite voxels of the background to its value. Raises: InputError for other non-finite voxels."""
    broken = ~np.isfinite(voxels)
    count = int(broken.sum())
    if not count:
        return voxels
    if count == voxels.size:
        raise InputError(f"{path} holds no finite voxel. Export it again.")
    background = background_value(np.where(broken, np.float32(np.nan), voxels))
    outside = broken | (voxels == background)
    # Voxels are outside if background connects them to the border of the array; holes in the brain are not.
    enclosed = broken & ~connected_to_border(outside)
    if enclosed.any() and not np.isnan(background):  # in noisy air, no background connects a voxel to the border
        known = np.where(broken, np.float32(np.median(voxels[~broken])), voxels)
        background = air_level(known)
        enclosed &= foreground(np.where(broken, np.float32(background), voxels))
    inside = int(enclosed.sum())
    is_convention = np.isnan(background)  # the file writes its whole background as NaN
    if inside or (count > WIDESPREAD * voxels.size and not is_convention):
        where = f"{inside:,} of them inside the brain" if inside else "too many to be stray"
        raise InputError(
            f"{path} holds {count:,} NaN or infinite voxels, {where}. Segmenting it would be a guess: "
            "export it again, or leave this sequence out."
        )
    warn(f"{name or path.name}: {count:,} NaN or infinite voxels in the background were set to it.")
    return np.where(broken, np.float32(0 if is_convention else background), voxels)


def _by(numbers: Iterable[float]) -> str:
    return "x".join(f"{number:g}" for number in numbers)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
