"""Geometry of a stack of slices, and the check that it forms a volume.

highdicom does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from glimpseg.data.dicom.headers import ENHANCED_CLASSES, decimal_comma, first_number, value
from glimpseg.data.series import Plane
from glimpseg.errors import InputError
from glimpseg.volume import SAME_GRID_MM, SAME_GRID_VOXELS, Grid, displaced_little

if TYPE_CHECKING:
    from highdicom import VolumeGeometry
    from pydicom.dataset import Dataset
    from pydicom.valuerep import DSfloat

EXACT_MM = 1e-3
"""Largest displacement of a slice from an even stack at which the headers are used as they are."""
ROUNDED_COSINE = 1e-3
"""Deviation of direction cosines from unit vectors at right angles from which on they are corrected."""
UNIT_TOLERANCE = 1e-2
"""Largest deviation of direction cosines from unit vectors at right angles: cosines of two decimals."""
SAME_POSITION = 0.1
"""Largest distance of two images at one position, as a fraction of the slice distance."""
MISSING_STEP = 1.5
"""Smallest distance between neighbouring slices, in slice distances, at which one is missing or the stack is uneven."""
OBLIQUE_COSINE = 0.8
"""Smallest cosine between a slice normal and a body axis for a named plane.

Beyond 37 degrees from every axis a stack is oblique.
"""
MOST_GAPS_LISTED = 5
"""Largest number of gaps that a message lists."""


def positions(datasets: Sequence[Dataset]) -> Float[np.ndarray, "n 3"]:
    """Return the position of the first voxel of each slice or frame.

    Returns:
        Positions in LPS millimetres, in the order of files and frames.

    Raises:
        InputError: if a slice has no position, or one that is not finite.
    """
    array = _per_frame(
        datasets,
        "PlanePositionSequence",
        "ImagePositionPatient",
        count=3,
        missing="A slice does not say where it lies (ImagePositionPatient).",
    )
    if not np.isfinite(array).all():
        raise InputError("A slice lies nowhere: its position is no number.")
    return array


def orientations(datasets: Sequence[Dataset]) -> Float[np.ndarray, "n 6"]:
    """Return the direction cosines of rows and columns of each slice or frame.

    Raises:
        InputError: if a slice has no orientation, or it is not a pair of perpendicular unit vectors.
    """
    array = _per_frame(
        datasets,
        "PlaneOrientationSequence",
        "ImageOrientationPatient",
        count=6,
        missing="A slice does not say how it is turned (ImageOrientationPatient).",
    )
    lengths = np.linalg.norm(array.reshape(-1, 2, 3), axis=2)
    with np.errstate(invalid="ignore"):
        off = max(np.abs(lengths - 1).max(), np.abs((array[:, :3] * array[:, 3:]).sum(1)).max())
    if not off < UNIT_TOLERANCE:
        raise InputError("The directions of rows and columns are no pair of unit vectors at right angles.")
    return array if off < ROUNDED_COSINE else np.array([orthonormal(one) for one in array])


def pixel_spacing(dataset: Dataset) -> tuple[float, float]:
    """Return the distances between rows and between columns of a slice, or of a file's first frame, mm.

    Raises: InputError if they are absent, or not between 0 and 100 mm.
    """
    rows, columns = pixel_spacings([dataset])[0].tolist()
    return rows, columns


def pixel_spacings(datasets: Sequence[Dataset]) -> Float[np.ndarray, "n 2"]:
    """Return the distances between rows and between columns of each slice or frame, mm. Raises: InputError."""
    no_size = "The size of its pixels is not given or is no size (PixelSpacing)."
    sizes = _per_frame(datasets, "PixelMeasuresSequence", "PixelSpacing", count=2, missing=no_size)
    if not ((sizes > 0) & (sizes < 100)).all():
        raise InputError(no_size)
    return sizes


def _numbers(item: Dataset, keyword: str) -> list[float]:
    """Return the numbers of an attribute; an empty list if it is absent or one of its values is no number."""
    given = value(item, keyword)
    if given is None or isinstance(given, str) or not hasattr(given, "__iter__"):
        return []
    numbers = [first_number(part) for part in given]
    return [number for number in numbers if number is not None] if None not in numbers else []


def _per_frame(
    datasets: Sequence[Dataset], group: str, keyword: str, *, count: int, missing: str
) -> Float[np.ndarray, "n c"]:
    """Return the `count` numbers of an attribute in a functional group, for each slice or frame.

    Raises: InputError with the text `missing` if a slice has another count, or says that it has decimal commas.
    """
    found = []
    for dataset in datasets:
        for item in _group_per_frame(dataset, group):
            numbers = _numbers(item, keyword)
            if len(numbers) != count:
                raise InputError(_with_comma(item, keyword) or missing)
            found.append(numbers)
    return np.array(found)


def _with_comma(item: Dataset, keyword: str) -> str | None:
    said = decimal_comma(item, keyword)
    return None if said is None else f"{said}. Correct it (dcmodify), or export the series again."


def is_enhanced(dataset: Dataset) -> bool:
    """True if the file is an enhanced multi-frame MR image."""
    return str(value(dataset, "SOPClassUID")) in ENHANCED_CLASSES


def slice_normal(cosines: Float[np.ndarray, "6"]) -> Float[np.ndarray, "3"]:
    """Return the direction in which highdicom stacks slices of this orientation."""
    from highdicom.spatial import VOLUME_INDEX_CONVENTION, get_normal_vector

    return np.asarray(get_normal_vector(cosines.tolist(), index_convention=VOLUME_INDEX_CONVENTION))


def anatomical_plane(cosines: Float[np.ndarray, "6"]) -> Plane:
    """Return the anatomical plane of slices with this orientation."""
    along = np.abs(slice_normal(cosines))
    names: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
    return names[int(along.argmax())] if along.max() >= OBLIQUE_COSINE else "oblique"


@dataclass(frozen=True, eq=False)
class Stack:
    """Evenly spaced parallel slices that are closest to the headers of a series."""

    cosines: Float[np.ndarray, "6"]
    """Direction cosines of rows and columns."""
    spacing_mm: tuple[float, float]
    """Distance between rows and between columns."""
    places: Float[np.ndarray, "n 3"]
    """Position of the first voxel of each slice, LPS millimetres, in the order of the headers."""
    step_mm: float
    """Distance between slices."""
    moved_mm: float
    """Largest displacement of a corner of a slice from what its header says."""
    exact: bool
    """True if the headers say the same for all slices, so that they can be used as they are."""


def edges(
    cosines: Float[np.ndarray, "n 6"], spacings_mm: Float[np.ndarray, "n 2"], columns: int, rows: int
) -> Float[np.ndarray, "n 2 3"]:
    """Return the vectors from the first voxel of slices to the last one of its row, and of its column, mm."""
    along_row = cosines[:, :3] * spacings_mm[:, 1:] * (columns - 1)
    along_column = cosines[:, 3:] * spacings_mm[:, :1] * (rows - 1)
    return np.stack([along_row, along_column], axis=1)


def corner_shifts(moved: Float[np.ndarray, "n 2 3"]) -> Float[np.ndarray, "n 4 3"]:
    """Return the displacements of the four corners of slices whose `edges` differ by `moved`, mm."""
    first, second = moved[:, 0], moved[:, 1]
    return np.stack([np.zeros_like(first), first, second, first + second], axis=1)


def same_plane(
    shifts_mm: Float[np.ndarray, "n 4 3"],
    cosines: Float[np.ndarray, "6"],
    spacing_mm: tuple[float, float],
    step_mm: float,
) -> Bool[np.ndarray, "n"]:
    """Return which slices are displaced so little that they count as the same (`volume.displaced_little`).

    Args:
        shifts_mm: displacements of the corners of each slice.
        cosines: direction cosines of rows and columns.
        spacing_mm: distance between rows and between columns.
        step_mm: distance between slices.
    """
    affine = np.eye(4)
    axes = np.stack([cosines[:3], cosines[3:], np.cross(cosines[:3], cosines[3:])], axis=1)
    affine[:3, :3] = axes * np.array([spacing_mm[1], spacing_mm[0], step_mm])
    voxel = Grid((1, 1, 1), affine)
    return np.array([displaced_little(one, voxel) for one in shifts_mm], bool)


def typical_step(distances: Float[np.ndarray, "n"]) -> float:
    """Return the typical distance between slices, mm; 0 if all images lie at one position."""
    steps = np.diff(np.sort(distances))
    if not len(steps) or steps.max() <= 0:
        return 0.0
    apart = steps[steps > SAME_POSITION * np.quantile(steps, 0.9)] if np.quantile(steps, 0.9) > 0 else steps[steps > 0]
    return float(np.median(apart))


def images_at_each_position(distances: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Return the number of the position of each image, in the order of distance along the normal.

    Images nearer than a small fraction of the slice distance are at one position, so that rounding separates none.
    """
    order = np.argsort(distances, kind="stable")
    apart = np.diff(distances[order]) > SAME_POSITION * max(typical_step(distances), EXACT_MM)
    numbers = np.empty(len(distances), int)
    numbers[order] = np.cumsum(np.r_[0, apart])
    return numbers


def fit_stack(
    places: Float[np.ndarray, "n 3"],
    cosines: Float[np.ndarray, "n 6"],
    spacings_mm: Float[np.ndarray, "n 2"],
    *,
    columns: int,
    rows: int,
) -> Stack:
    """Fit evenly spaced parallel slices to the headers of a series.

    Direction cosines and pixel sizes are means or medians over all slices. The slice distance is a regression over all
    positions, so that rounding in the headers does not add up.

    Args:
        places: positions of the slices, LPS millimetres.
        cosines: direction cosines of rows and columns.
        spacings_mm: distance between rows and between columns.
        columns: number of columns.
        rows: number of rows.

    Raises:
        InputError: if slices are missing, several lie at one position, or a corner lies farther from the fit than
            `volume.displaced_little` accepts. It names the place and the distance in mm.
    """
    if len(places) < 2:
        raise InputError("It has a single slice, and a volume needs at least two.")
    spacing = _agreed(spacings_mm)
    turned = cosines[0] if (cosines == cosines[0]).all() else orthonormal(np.median(cosines, axis=0))
    along = slice_normal(turned)
    distances = places @ along
    typical = typical_step(distances)
    own, fitted = edges(cosines, spacings_mm, columns, rows), edges(turned[None], spacing[None], columns, rows)
    sizes = (float(spacing[0]), float(spacing[1]))
    tilted = corner_shifts(own - fitted)
    alike = same_plane(tilted, turned, sizes, typical or min(sizes))
    if not alike.all():
        raise InputError(
            "Its slices are turned differently, or their pixels differ in size (a localiser, or several stacks): "
            f"corners lie up to {np.linalg.norm(tilted, axis=2).max():.2f} mm from where parallel slices have them "
            f"({_LIMITS}). So they are no volume."
        )
    _check_one_image_each(distances)
    order = np.argsort(distances, kind="stable")
    _check_gaps(distances[order] if along[np.abs(along).argmax()] > 0 else -distances[order][::-1], typical)
    numbers = np.empty(len(places))
    numbers[order] = np.arange(len(places))
    even, step = _even_places(places, numbers, along)
    shifts = tilted + (places - even)[:, None]
    exact = np.linalg.norm(shifts, axis=2).max() <= EXACT_MM
    if not same_plane(shifts, turned, sizes, step).all():
        _refuse_displaced(places - even, numbers, along, step)
    return Stack(
        cosines=turned,
        spacing_mm=sizes,
        places=even,
        step_mm=step,
        moved_mm=float(np.linalg.norm(shifts, axis=2).max()),
        exact=bool(exact),
    )


def orthonormal(cosines: Float[np.ndarray, "6"]) -> Float[np.ndarray, "6"]:
    """Return the closest pair of unit vectors at right angles."""
    left, _, right = np.linalg.svd(cosines.reshape(2, 3), full_matrices=False)
    return (left @ right).reshape(6)


def _agreed(spacings_mm: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "2"]:
    return spacings_mm[0] if (spacings_mm == spacings_mm[0]).all() else np.median(spacings_mm, axis=0)


def _even_places(
    places: Float[np.ndarray, "n 3"], numbers: Float[np.ndarray, "n"], along: Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "n 3"], float]:
    """Return evenly spaced positions on one normal, and their distance.

    Slices that lie evenly between the outermost two keep their ends exactly; others are fitted by least squares.
    """
    distances, first = places @ along, places[int(numbers.argmin())]
    step = float(distances.max() - distances.min()) / (len(places) - 1)
    even = first + np.outer(numbers * step, along)
    if np.linalg.norm(places - even, axis=1).max() <= EXACT_MM:
        return even, step
    step, start = np.polyfit(numbers, distances, 1)
    beside = (places - np.outer(distances, along)).mean(axis=0)
    return beside + np.outer(start + step * numbers, along), float(step)


def _check_one_image_each(distances: Float[np.ndarray, "n"]) -> None:
    most = int(np.bincount(images_at_each_position(distances)).max())
    if most > 1:
        raise InputError(
            f"It holds up to {most} images at one position (several echoes, time points or weightings in one series), "
            "and their pixels differ. Export each as a series of its own."
        )


def _check_gaps(distances: Float[np.ndarray, "n"], typical: float) -> None:
    """Check that no slice is missing between ascending distances, numbered from the feet, the back or the right.

    Raises: InputError that lists missing slices or the uneven spacing.
    """
    steps = np.diff(distances)
    ratio = steps / typical
    gaps = np.flatnonzero(ratio > MISSING_STEP)
    if not len(gaps):
        return
    if np.abs(ratio - np.rint(ratio)).max() < SAME_GRID_VOXELS:
        missing = np.rint(ratio[gaps]).astype(int) - 1
        named = [
            f"{count} between slice {at + 1} at {distances[at]:.1f} mm and slice {at + 2} at {distances[at + 1]:.1f} mm"
            for at, count in zip(gaps[:MOST_GAPS_LISTED], missing[:MOST_GAPS_LISTED], strict=True)
        ]
        more = f" and {len(gaps) - MOST_GAPS_LISTED} more gaps" if len(gaps) > MOST_GAPS_LISTED else ""
        verb = "slice is" if missing.sum() == 1 else "slices are"
        raise InputError(
            f"{missing.sum()} {verb} missing: {', '.join(named)}{more} (along the normal; slices are {typical:.2f} mm "
            "apart). Copy or export the series again."
        )
    raise InputError(
        f"Its slices are unevenly spaced, {steps.min():.2f} to {steps.max():.2f} mm apart, so it is no volume. "
        "Export it again, or leave this sequence out."
    )


def _refuse_displaced(
    moved: Float[np.ndarray, "n 3"], numbers: Float[np.ndarray, "n"], along: Float[np.ndarray, "3"], step: float
) -> None:
    """Raise the InputError of slices that lie `moved` from even positions: along the normal, or sideways."""
    ahead = moved @ along
    aside = moved - np.outer(ahead, along)
    sideways = np.linalg.norm(aside, axis=1)
    if sideways.max() > np.abs(ahead).max():
        first, last = aside[int(numbers.argmin())], aside[int(numbers.argmax())]
        angle = np.degrees(np.arctan2(np.linalg.norm(last - first), step * (len(moved) - 1)))
        raise InputError(
            f"Its slices are stacked {angle:.1f} degrees away from their normal (a tilted gantry, or a sheared stack), "
            f"up to {sideways.max():.2f} mm aside ({_LIMITS}). Convert it to NIfTI with a tool that corrects the tilt, "
            "such as dcm2niix, and pass that file."
        )
    raise InputError(
        f"Its slices are unevenly spaced: one lies {np.abs(ahead).max():.2f} mm from its place among slices that are "
        f"{step:.2f} mm apart ({_LIMITS}), so it is no volume. Export it again, or leave this sequence out."
    )


_LIMITS = f"at most {SAME_GRID_VOXELS:g} voxels and {SAME_GRID_MM:g} mm are accepted"


def header_stack(datasets: Sequence[Dataset]) -> Stack:
    """Return the fitted stack of the headers of a series. Raises: InputError as `fit_stack`."""
    places, cosines = positions(datasets), orientations(datasets)
    spacings = pixel_spacings(datasets)
    return fit_stack(places, cosines, spacings, columns=int(datasets[0].Columns), rows=int(datasets[0].Rows))


def make_regular(datasets: Sequence[Dataset]) -> None:
    """Write the fitted stack into the headers, so that libraries that compare them exactly read one volume.

    Headers that are exact stay as they are. Raises: InputError as `fit_stack`.
    """
    stack = header_stack(datasets)
    _correct_slice_distance(datasets, stack.step_mm)
    if stack.exact and len({_geometry_text(dataset) for dataset in datasets}) == 1:
        return
    written = [_decimals(stack.cosines), _decimals(stack.spacing_mm)]
    at = 0
    for dataset in datasets:
        for item in _group_per_frame(dataset, "PlanePositionSequence"):
            item.ImagePositionPatient = _decimals(stack.places[at])
            at += 1
        for item in _group_per_frame(dataset, "PlaneOrientationSequence"):
            item.ImageOrientationPatient = written[0]
        for item in _group_per_frame(dataset, "PixelMeasuresSequence"):
            item.PixelSpacing = written[1]


def _correct_slice_distance(datasets: Sequence[Dataset], step_mm: float) -> None:
    """Correct SpacingBetweenSlices where it is given; some scanners write the gap, and derived objects inherit it."""
    for dataset in datasets:
        for item in _group_per_frame(dataset, "PixelMeasuresSequence"):
            given = first_number(value(item, "SpacingBetweenSlices"))
            if given is not None and abs(given - step_mm) > EXACT_MM / len(datasets):
                item.SpacingBetweenSlices = _decimals([step_mm])[0]


def _geometry_text(dataset: Dataset) -> str:
    places = (("PlaneOrientationSequence", "ImageOrientationPatient"), ("PixelMeasuresSequence", "PixelSpacing"))
    return "; ".join(
        sorted({str(value(item, keyword)) for group, keyword in places for item in _group_per_frame(dataset, group)})
    )


def _decimals(numbers: Iterable[float]) -> list[DSfloat]:
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(number), auto_format=True) for number in numbers]


def volume_geometry(datasets: Sequence[Dataset]) -> VolumeGeometry:
    """Return highdicom's geometry of a stack; its indices are slice, row, column.

    Raises: InputError as `fit_stack`.
    """
    import highdicom

    stack = header_stack(datasets)
    distances = stack.places @ slice_normal(stack.cosines)
    return highdicom.VolumeGeometry.from_attributes(
        image_position=stack.places[int(distances.argmin())].tolist(),
        image_orientation=stack.cosines.tolist(),
        rows=int(datasets[0].Rows),
        columns=int(datasets[0].Columns),
        pixel_spacing=list(stack.spacing_mm),
        spacing_between_slices=stack.step_mm,
        number_of_frames=len(stack.places),
        coordinate_system="PATIENT",
        frame_of_reference_uid=value(datasets[0], "FrameOfReferenceUID"),
    )


def ras_grid(geometry: VolumeGeometry) -> Grid:
    """Convert highdicom's geometry to a glimpseg `Grid`: RAS millimetres, indices column, row, slice."""
    turned = geometry.permute_spatial_axes((2, 1, 0))
    a, b, c = turned.spatial_shape
    return Grid((a, b, c), np.asarray(turned.get_affine("RAS"), np.float64))


def _group_per_frame(dataset: Dataset, group: str) -> list[Dataset]:
    """Return the item that holds a functional group's attributes, for each frame.

    The item is the frame's own if it exists, else the shared one, else the file itself.
    """
    if not is_enhanced(dataset):
        return [dataset]
    shared = (value(dataset, "SharedFunctionalGroupsSequence") or [dataset])[0]
    own = value(dataset, "PerFrameFunctionalGroupsSequence") or []
    if not len(own):
        raise InputError("The file should describe each of its frames and does not.")
    return [(value(frame, group) or value(shared, group) or [dataset])[0] for frame in own]
