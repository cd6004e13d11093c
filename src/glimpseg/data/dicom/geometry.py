"""Geometry of a stack of slices, and the check that it forms a volume.

highdicom does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from glimpseg.data.dicom.headers import ENHANCED_CLASSES, first_number, value
from glimpseg.data.series import Plane
from glimpseg.errors import InputError
from glimpseg.volume import Grid

if TYPE_CHECKING:
    from highdicom import VolumeGeometry
    from pydicom.dataset import Dataset

ORIENTATION_TOLERANCE = 1e-6
"""Tolerated difference of a cosine: 0.08 degrees, more than any rounding of direction cosines."""
MAXIMAL_DRIFT = 0.1
"""Largest sideways shift of the slices over the whole stack, in voxels. A larger shift counts as a tilted stack."""
SPACING_TOLERANCE = 0.01
"""Tolerated deviation of the slice distance, as a fraction of it; highdicom's own tolerance."""
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
        InputError: if a slice has no position.
    """
    found = []
    for dataset in datasets:
        for item in _group_per_frame(dataset, "PlanePositionSequence"):
            place = value(item, "ImagePositionPatient")
            if place is None or len(place) != 3:
                raise InputError("A slice does not say where it lies (ImagePositionPatient).")
            found.append([float(part) for part in place])
    array = np.array(found)
    if not np.isfinite(array).all():
        raise InputError("A slice lies nowhere: its position is no number.")
    return array


def orientations(datasets: Sequence[Dataset]) -> Float[np.ndarray, "n 6"]:
    """Return the direction cosines of rows and columns of each slice or frame.

    Raises:
        InputError: if a slice has no orientation, or it is not a pair of perpendicular unit vectors.
    """
    found = []
    for dataset in datasets:
        for item in _group_per_frame(dataset, "PlaneOrientationSequence"):
            cosines = value(item, "ImageOrientationPatient")
            if cosines is None or len(cosines) != 6:
                raise InputError("A slice does not say how it is turned (ImageOrientationPatient).")
            found.append([float(part) for part in cosines])
    array = np.array(found)
    rows, columns = array[:, :3], array[:, 3:]
    lengths = np.linalg.norm(array.reshape(-1, 2, 3), axis=2)
    with np.errstate(invalid="ignore"):
        right = (np.abs(lengths - 1) < 1e-3).all() and (np.abs((rows * columns).sum(1)) < 1e-3).all()
    if not right:
        raise InputError("The directions of rows and columns are no pair of unit vectors at right angles.")
    return array


def pixel_spacing(dataset: Dataset) -> tuple[float, float]:
    """Return the distances between rows and between columns, mm.

    Raises: InputError if they are absent or invalid.
    """
    found = value(next(iter(_group_per_frame(dataset, "PixelMeasuresSequence"))), "PixelSpacing")
    sizes = [first_number(part) or 0.0 for part in found] if found is not None and len(found) == 2 else []
    if len(sizes) != 2 or not all(0 < size < 100 for size in sizes):
        raise InputError("The size of its pixels is not given or is no size (PixelSpacing).")
    return sizes[0], sizes[1]


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


def check_stack(
    places: Float[np.ndarray, "n 3"], cosines: Float[np.ndarray, "n 6"], spacing_mm: tuple[float, float]
) -> None:
    """Check that slices form a volume: parallel, perpendicular to the stacking direction, evenly spaced, none missing.

    Args:
        places: positions of the slices, LPS millimetres.
        cosines: direction cosines of rows and columns.
        spacing_mm: distance between rows and between columns.

    Raises:
        InputError: names the failed check and its place in the stack.
    """
    if len(places) < 2:
        raise InputError("It has a single slice, and a volume needs at least two.")
    turned = cosines.reshape(-1, 2, 3) @ cosines[0].reshape(2, 3).transpose()
    if min(turned[:, 0, 0].min(), turned[:, 1, 1].min()) < 1 - ORIENTATION_TOLERANCE:
        raise InputError("Its slices are turned differently (a localiser, or several stacks), so they are no volume.")
    along = slice_normal(cosines[0])
    distances = places @ along
    order = np.argsort(distances, kind="stable")
    distances, places = distances[order], places[order]
    steps = np.diff(distances)
    typical = float(np.median(steps[steps > SPACING_TOLERANCE])) if (steps > SPACING_TOLERANCE).any() else 0.0
    if steps.min() <= SPACING_TOLERANCE * max(typical, SPACING_TOLERANCE):
        most = int(np.bincount(np.cumsum(np.r_[0, steps > SPACING_TOLERANCE * typical])).max())
        raise InputError(
            f"It holds up to {most} images at one position (several echoes, time points or weightings in one series). "
            "Export each as a series of its own."
        )
    drift = places - places[0] - np.outer(distances - distances[0], along)
    if np.linalg.norm(drift, axis=1).max() > MAXIMAL_DRIFT * min(spacing_mm):
        angle = np.degrees(np.arctan2(np.linalg.norm(drift[-1]), distances[-1] - distances[0]))
        raise InputError(
            f"Its slices are stacked {angle:.1f} degrees away from their normal (a tilted gantry, or a sheared stack). "
            "Convert it to NIfTI with a tool that corrects the tilt, such as dcm2niix, and pass that file."
        )
    # Slices are numbered from the feet, the back or the right, whichever way the normal points.
    upwards = distances if along[np.abs(along).argmax()] > 0 else -distances[::-1]
    _check_gaps(upwards, typical)


def _check_gaps(distances: Float[np.ndarray, "n"], typical: float) -> None:
    """Check that ascending slice distances are even.

    Raises: InputError that lists missing slices or the uneven spacing.
    """
    steps = np.diff(distances)
    if np.abs(steps - typical).max() <= SPACING_TOLERANCE * typical:
        return
    ratio = steps / typical
    gaps = np.flatnonzero(ratio > 1.5)
    if len(gaps) and np.abs(ratio - np.rint(ratio)).max() < 0.1:
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


def volume_geometry(datasets: Sequence[Dataset]) -> VolumeGeometry:
    """Return highdicom's geometry of a stack; its indices are slice, row, column.

    Raises: InputError as `positions`, `orientations`, `pixel_spacing` and `check_stack`.
    """
    import highdicom

    places, cosines = positions(datasets), orientations(datasets)
    spacing = pixel_spacing(datasets[0])
    check_stack(places, cosines, spacing)
    distances = places @ slice_normal(cosines[0])
    steps = len(places) - 1
    return highdicom.VolumeGeometry.from_attributes(
        image_position=places[int(distances.argmin())].tolist(),
        image_orientation=cosines[0].tolist(),
        rows=int(datasets[0].Rows),
        columns=int(datasets[0].Columns),
        pixel_spacing=list(spacing),
        spacing_between_slices=float(distances.max() - distances.min()) / steps,
        number_of_frames=len(places),
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
