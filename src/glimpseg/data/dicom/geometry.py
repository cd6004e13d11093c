"""Where the slices of a stack lie, and whether they make up a volume. The arithmetic is highdicom's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from glimpseg.data.dicom.headers import ENHANCED, first_number, value
from glimpseg.data.series import Plane
from glimpseg.errors import InputError
from glimpseg.volume import Grid

if TYPE_CHECKING:
    from highdicom import VolumeGeometry
    from pydicom.dataset import Dataset

ORIENTATION_TOLERANCE = 1e-6
"""Of a cosine: 0.08 degrees, more than any rounding of direction cosines."""
MAXIMAL_DRIFT = 0.1
"""Of a voxel: how far the slices may shift sideways over the whole stack before it is called tilted."""
UNEVEN = 0.01
"""Of the slice distance; highdicom's own tolerance."""
OBLIQUE_COSINE = 0.8
"""A normal that is further than 37 degrees from every axis of the body belongs to no plane."""
MOST_NAMED = 5
"""Gaps that a message lists."""


def positions(datasets: Sequence[Dataset]) -> Float[np.ndarray, "n 3"]:
    """Of the first voxel of each slice or frame, LPS millimetres, in the order of files and frames.

    Raises: InputError if a slice has none.
    """
    found = []
    for dataset in datasets:
        for item in _frames(dataset, "PlanePositionSequence"):
            place = value(item, "ImagePositionPatient")
            if place is None or len(place) != 3:
                raise InputError("A slice does not say where it lies (ImagePositionPatient).")
            found.append([float(part) for part in place])
    array = np.array(found)
    if not np.isfinite(array).all():
        raise InputError("A slice lies nowhere: its position is no number.")
    return array


def orientations(datasets: Sequence[Dataset]) -> Float[np.ndarray, "n 6"]:
    """Direction cosines of the rows and columns of each slice or frame. Raises: InputError as `positions`."""
    found = []
    for dataset in datasets:
        for item in _frames(dataset, "PlaneOrientationSequence"):
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
    """Distance between rows and between columns, mm. Raises: InputError."""
    found = value(next(iter(_frames(dataset, "PixelMeasuresSequence"))), "PixelSpacing")
    sizes = [first_number(part) or 0.0 for part in found] if found is not None and len(found) == 2 else []
    if len(sizes) != 2 or not all(0 < size < 100 for size in sizes):
        raise InputError("The size of its pixels is not given or is no size (PixelSpacing).")
    return sizes[0], sizes[1]


def is_enhanced(dataset: Dataset) -> bool:
    """Whether one file holds many frames."""
    return str(value(dataset, "SOPClassUID")) in ENHANCED


def normal(cosines: Float[np.ndarray, "6"]) -> Float[np.ndarray, "3"]:
    """The direction in which highdicom stacks slices of this orientation."""
    from highdicom.spatial import VOLUME_INDEX_CONVENTION, get_normal_vector

    return np.asarray(get_normal_vector(cosines.tolist(), index_convention=VOLUME_INDEX_CONVENTION))


def plane(cosines: Float[np.ndarray, "6"]) -> Plane:
    """The plane of slices of this orientation."""
    along = np.abs(normal(cosines))
    names: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
    return names[int(along.argmax())] if along.max() >= OBLIQUE_COSINE else "oblique"


def check_stack(
    places: Float[np.ndarray, "n 3"], cosines: Float[np.ndarray, "n 6"], spacing_mm: tuple[float, float]
) -> None:
    """Whether slices at `places` make up a volume: parallel, perpendicular to their stack, evenly spaced, complete.

    Raises: InputError that says which of it fails, and where.
    """
    if len(places) < 2:
        raise InputError("It has a single slice, and a volume needs at least two.")
    turned = cosines.reshape(-1, 2, 3) @ cosines[0].reshape(2, 3).transpose()
    if min(turned[:, 0, 0].min(), turned[:, 1, 1].min()) < 1 - ORIENTATION_TOLERANCE:
        raise InputError("Its slices are turned differently (a localiser, or several stacks), so they are no volume.")
    along = normal(cosines[0])
    distances = places @ along
    order = np.argsort(distances, kind="stable")
    distances, places = distances[order], places[order]
    steps = np.diff(distances)
    typical = float(np.median(steps[steps > UNEVEN])) if (steps > UNEVEN).any() else 0.0
    if steps.min() <= UNEVEN * max(typical, UNEVEN):
        most = int(np.bincount(np.cumsum(np.r_[0, steps > UNEVEN * typical])).max())
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
    # Named from the feet, the back or the right upwards, whatever way the normal points.
    upwards = distances if along[np.abs(along).argmax()] > 0 else -distances[::-1]
    _check_gaps(upwards, typical)


def _check_gaps(distances: Float[np.ndarray, "n"], typical: float) -> None:
    steps = np.diff(distances)
    if np.abs(steps - typical).max() <= UNEVEN * typical:
        return
    ratio = steps / typical
    gaps = np.flatnonzero(ratio > 1.5)
    if len(gaps) and np.abs(ratio - np.rint(ratio)).max() < 0.1:
        missing = np.rint(ratio[gaps]).astype(int) - 1
        named = [
            f"{count} between slice {at + 1} at {distances[at]:.1f} mm and slice {at + 2} at {distances[at + 1]:.1f} mm"
            for at, count in zip(gaps[:MOST_NAMED], missing[:MOST_NAMED], strict=True)
        ]
        more = f" and {len(gaps) - MOST_NAMED} more gaps" if len(gaps) > MOST_NAMED else ""
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
    """highdicom's lattice of a stack, whose indices are slice, row, column. Raises: InputError as `check_stack`."""
    import highdicom

    places, cosines = positions(datasets), orientations(datasets)
    spacing = pixel_spacing(datasets[0])
    check_stack(places, cosines, spacing)
    distances = places @ normal(cosines[0])
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


def grid(geometry: VolumeGeometry) -> Grid:
    """The same lattice as glimpseg has it: RAS millimetres, indices column, row, slice."""
    turned = geometry.permute_spatial_axes((2, 1, 0))
    a, b, c = turned.spatial_shape
    return Grid((a, b, c), np.asarray(turned.get_affine("RAS"), np.float64))


def _frames(dataset: Dataset, group: str) -> list[Dataset]:
    """What holds the group's attributes, once for each frame: the frame's own item, else the shared, else the file."""
    if not is_enhanced(dataset):
        return [dataset]
    shared = (value(dataset, "SharedFunctionalGroupsSequence") or [dataset])[0]
    own = value(dataset, "PerFrameFunctionalGroupsSequence") or []
    if not len(own):
        raise InputError("The file should describe each of its frames and does not.")
    return [(value(frame, group) or value(shared, group) or [dataset])[0] for frame in own]
