"""NIfTI files in and out, through nibabel, with every check that a voxel needs before it is believed.

The rule for the affine is the standard's: the sform if its code is set, else the qform. Nothing is flipped
here; a volume keeps its file's order and says in its affine where it lies.
"""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from glimpseg.data import metaimage
from glimpseg.data.gunzip import open_gzip
from glimpseg.data.notices import warn
from glimpseg.errors import InputError
from glimpseg.region import Convention, whole_numbers
from glimpseg.runtime.atomic import atomic_file
from glimpseg.study import Frame
from glimpseg.volume import Grid, Volume, axis_slices, background_value, connected_to_border

SUFFIXES = (".nii", ".nii.gz")
MAXIMAL_SIDE = 1024
"""Voxels along one axis that a brain scan can have; a header that claims more lies (reliability table, row 21)."""
MAXIMAL_VOXELS = 200_000_000
MAXIMAL_SIDE_MM = 1024.0
"""Length of a field of view; a body is no longer, and the working grid has a voxel for each millimetre of it."""
MAXIMAL_DISTANCE_MM = 1e5
"""Of a voxel from the centre of the coordinates."""
MINIMAL_SPACING_MM = 0.01
MINIMAL_UPRIGHTNESS = 0.5
"""Volume of the cell that unit steps along the axes span: 1 for a right-angled grid, 0.87 for a gantry tilt of 30
degrees."""
MAXIMAL_OFFSET = 64 << 20
"""Bytes before the first voxel: header and extensions."""
LARGE_BYTES = 256 << 20
LARGE_RATIO = 200
"""What a gz file of more than `LARGE_BYTES` may inflate to, by its size (reliability table, row 21). Voxels of a
scanner stay below 50; an empty label map, which may well have 1000, is not that large."""
DEFLATE_RATIO = 1032
"""Beyond this the format cannot compress: the header lies."""
MAXIMAL_GAP_MM = 1e-3
"""How far sform and qform may differ before it is worth a warning."""
SLACK_BYTES = 1024
"""What a file may hold after its last voxel."""
WIDESPREAD = 0.01
"""Share of voxels that may be NaN or infinite beside an ordinary background."""
GOES_ON = "it goes on after the last voxel"
_HEADER_BYTES = 540
"""Of NIfTI-2, the longer one."""
_PIECE_BYTES = 1 << 24
_UNREADABLE = (
    OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError, MemoryError, OverflowError, TypeError,
)  # fmt: skip


def read_volume(source: str | Path | Frame, called: str = "") -> Volume:
    """One image, float32, in the file's own order; or one volume of a four-dimensional file.

    NaN and infinite voxels outside the brain become background, with a warning. Warnings speak of `called`, by default
    of the file's name, which may be a patient's.

    Raises: InputError if the file is not a whole, finite, three-dimensional, non-constant NIfTI image (or `.mha`)
        with a usable affine.
    """
    if isinstance(source, Frame):
        return _checked(_series(source, called), source.path, called, source.number)
    path = Path(source)
    return _checked(_open(path, called), path, called)


def _checked(image: nibabel.spatialimages.SpatialImage, path: Path, called: str = "", number: int = 0) -> Volume:
    voxels = _finite(_intensities(image, path, number), path, called)
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
    values = _whole(image, path)
    labels = whole_numbers(values, str(path)) if convention is None else convention.read(values, str(path))
    if labels.min() < 0 or labels.max() > 255:
        raise InputError(
            f"{path} should hold labels but holds values from {labels.min()} to {labels.max()}. Is it an image?"
        )
    return Volume(labels.astype(np.uint8), image.affine.astype(np.float64))


def read_header(source: str | Path | Frame) -> Grid:
    """The grid of an image, without reading its voxels. Raises: InputError as `read_volume`."""
    image = _series(source) if isinstance(source, Frame) else _open(Path(source))
    x, y, z = image.shape[:3]
    return Grid((x, y, z), image.affine.astype(np.float64))


def claimed_grid(source: Path | Frame) -> Grid:
    """As `read_header`, without a word on what the header leaves open: to plan before anything is read."""
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


def _open(path: Path, called: str = "") -> nibabel.Nifti1Image:
    """The header, checked, and a promise of the voxels. Extensions are not read: they are long, foreign and private."""
    image = _metaimage(path) if path.name.lower().endswith(metaimage.SUFFIX) else _nifti(path)
    _check_shape(image, path, called)
    _check_affine(image, path, called)
    return image


def _nifti(path: Path) -> nibabel.Nifti1Image:
    _check_file(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path} is not a NIfTI file ({' or '.join(SUFFIXES)}). Convert it, with dcm2niix for DICOM.")
    try:
        with np.errstate(all="ignore"):  # what comes of it is judged below
            kind, header = _header(path)
            affine = header.get_best_affine()
            # Read, not mapped: a file that shrinks under a map kills the process.
            voxels = ArrayProxy(path, header.copy(), mmap=False)
    except _UNREADABLE as error:
        raise InputError(f"{path} cannot be read as NIfTI ({_first_line(error)}). Export it again.") from error
    _check_placed(affine, path)
    return kind(voxels, affine, header)


def _metaimage(path: Path) -> nibabel.Nifti1Image:
    _check_file(path)
    try:
        return metaimage.load(path)
    except _UNREADABLE as error:
        raise InputError(f"{path} cannot be read as MetaImage ({_first_line(error)}). Export it again.") from error


def _series(frame: Frame, called: str = "") -> nibabel.Nifti1Image:
    """The four-dimensional file that holds a frame, its header checked."""
    image, path = _nifti(frame.path), frame.path
    if len(image.shape) != 4 or not 0 <= frame.number < image.shape[3]:
        raise InputError(
            f"{path} should be a series of at least {frame.number + 1} volumes, but its shape is {image.shape}. Does "
            "dataset.json name the sequences of these files?"
        )
    _check_size(image, path)
    _check_affine(image, path, called)
    return image


def _check_file(path: Path) -> None:
    try:
        there, plain = path.exists(), path.is_file()
    except OSError as error:  # a name that is too long, a folder that is closed to us
        raise InputError(f"{path} cannot be reached ({error.strerror}). Check the path.") from error
    if not there and path.is_symlink():
        raise InputError(f"{path} is a link that leads nowhere. Give the file itself.")
    if not there:
        raise InputError(f"{path} does not exist. Check the path.")
    if not plain:
        raise InputError(f"{path} is a folder or a device, not a file. Give the image itself.")


def _header(path: Path) -> tuple[type[nibabel.Nifti1Image], nibabel.Nifti1Header]:
    with open_gzip(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
        block = stream.read(_HEADER_BYTES)
    two = _HEADER_BYTES in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big"))
    kind = nibabel.Nifti2Image if two else nibabel.Nifti1Image
    block = block[: kind.header_class.sizeof_hdr]
    if len(block) < kind.header_class.sizeof_hdr:
        raise EOFError(f"it has {len(block)} bytes, too few for a header")
    raw = kind.header_class(block, check=False)
    if not 1 <= raw["dim"][0] <= 7:
        raise ValueError(f"it claims {raw['dim'][0]} dimensions")
    sizes = raw["pixdim"][1:4]
    if raw["sform_code"] == 0 and not (np.isfinite(sizes) & (sizes != 0)).all():
        raise ValueError(f"its header gives no size of the voxels: {sizes.tolist()}")
    header = kind.header_class(block)
    if not 0 <= header.get_data_offset() <= MAXIMAL_OFFSET:
        raise ValueError(f"its voxels are said to begin at byte {header.get_data_offset():,}")
    return kind, header


def _check_shape(image: nibabel.Nifti1Image, path: Path, called: str = "") -> None:
    shape = image.shape
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        kind = "a series of volumes (functional, diffusion, or several echoes)" if len(shape) > 3 else "a single slice"
        raise InputError(
            f"{path} should be one three-dimensional volume but its shape is {shape}: {kind}. "
            "Give the file of one volume, or split it (fslsplit, nibabel.four_to_three)."
        )
    if len(shape) > 3:
        warn(f"{called or path.name} has the shape {shape}; its single volume is used.")
    _check_size(image, path)


def _check_size(image: nibabel.Nifti1Image, path: Path) -> None:
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
        placed = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) >= 1e-6
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


def _check_affine(image: nibabel.Nifti1Image, path: Path, called: str = "") -> None:
    _check_placed(image.affine, path)
    x, y, z = image.shape[:3]
    _check_extent(Grid((x, y, z), image.affine), path)
    sform, qform = image.get_sform(coded=True), _qform(image)
    if sform[1] == 0 and qform[1] == 0:
        warn(
            f"{called or path.name} says nothing of its orientation (sform and qform code 0); its axes are taken as "
            "stored."
        )
    if sform[1] > 0 and qform[1] > 0 and np.abs(sform[0] - qform[0]).max() > MAXIMAL_GAP_MM:
        warn(f"{called or path.name}: sform and qform differ; the sform is used, as the standard asks.")


def _qform(image: nibabel.Nifti1Image) -> tuple[np.ndarray | None, int]:
    try:
        return image.get_qform(coded=True)
    except (ValueError, HeaderDataError):  # a quaternion that is none
        return None, 0


def _intensities(image: nibabel.spatialimages.SpatialImage, path: Path, number: int) -> np.ndarray:
    """Volume `number` of a file as float32, in the order of its axes; of a large one a part at a time is read."""
    x, y, z = image.shape[:3]
    voxels: np.ndarray | None = None
    with np.errstate(over="ignore", invalid="ignore"):  # beyond its range is infinity, which the caller judges
        for part, values in _stored(image, path, number):
            if voxels is None:  # only now: a header that lies has been refused
                voxels = np.empty((x, y, z), np.float32, order="F")
            voxels[:, :, part] = values
    assert voxels is not None, "an image has slices"
    return voxels


def _whole(image: nibabel.spatialimages.SpatialImage, path: Path) -> np.ndarray:
    """The only volume of a file, in the type that it is stored in or scaled to."""
    return np.concatenate([values for _, values in _stored(image, path, 0)], axis=2)


def _stored(image: nibabel.spatialimages.SpatialImage, path: Path, number: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The slices of volume `number`, part by part, in the type that they are stored in or scaled to."""
    x, y, z = image.shape[:3]
    source = image.dataobj
    try:
        with np.errstate(all="ignore"):  # beyond the range is infinity, which the caller judges
            stored, name = nibabel.is_proxy(source), path.name.lower()
            if stored and name.endswith(".nii") and path.stat().st_size > _end(image) + SLACK_BYTES:
                raise OSError(GOES_ON)
            if stored and name.endswith(".gz"):
                yield from _inflated(path, image, number)
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


def _end(image: nibabel.Nifti1Image) -> int:
    """The byte behind the last voxel, unpacked, by the header. A file that is longer has slices that would be lost."""
    return int(image.dataobj.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize


def _inflated(path: Path, image: nibabel.Nifti1Image, number: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The slices of volume `number` of a gz file, which holds no more than its header promises; its checksum compared.

    nibabel reads no further than the last voxel and so never meets the checksum, which comes after it.
    """
    source, kind = image.dataobj, image.get_data_dtype()
    (x, y, z), begin = image.shape[:3], int(image.dataobj.offset)
    size = _end(image)
    packed = path.stat().st_size
    if size > max(packed * DEFLATE_RATIO, SLACK_BYTES):
        raise EOFError(f"a gz file of {packed:,} bytes cannot hold {size:,}")
    if size > max(packed * LARGE_RATIO, LARGE_BYTES):
        raise OSError(f"it would grow from {packed:,} to {size:,} bytes, which no scan does")
    with open_gzip(path) as stream:
        place = begin + number * x * y * z * kind.itemsize
        _pass(stream, 0, place, size)
        for part in axis_slices(z, x * y * z):
            shape = (x, y, part.stop - part.start)
            content = stream.read(math.prod(shape) * kind.itemsize)
            if len(content) < math.prod(shape) * kind.itemsize:
                raise EOFError(f"it ends after {place + len(content):,} of {size:,} bytes")
            place += len(content)
            yield part, np.asanyarray(ArrayProxy(io.BytesIO(content), (shape, kind, 0, source.slope, source.inter)))
            del content
        _pass(stream, place, size, size)
        if len(stream.read(SLACK_BYTES + 1)) > SLACK_BYTES:
            raise OSError(GOES_ON)


def _pass(stream: io.BufferedIOBase, begin: int, end: int, size: int) -> None:
    """Reads from one byte to another, of `size` in all, and keeps nothing."""
    while begin < end:
        found = len(stream.read(min(end - begin, _PIECE_BYTES)))
        if not found:
            raise EOFError(f"it ends after {begin:,} of {size:,} bytes")
        begin += found


def _finite(voxels: np.ndarray, path: Path, called: str) -> np.ndarray:
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
    warn(f"{called or path.name}: {count:,} NaN or infinite voxels in the background were set to it.")
    return np.where(broken, np.float32(0 if is_convention else background), voxels)


def _by(numbers: Iterable[float]) -> str:
    return "x".join(f"{number:g}" for number in numbers)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
