"""Pictures of a study: three planes through the tumour for each present sequence, with contours.

Radiological side: the patient's right is on the picture's left, and letters say so. Arrays are RAS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glimpseg.modality import Modality
from glimpseg.region import COLOURS, TITLES
from glimpseg.volume import Volume, background_value, bounding_box

PLANES = ("axial", "coronal", "sagittal")
# What stands at the left, right, top and bottom of each plane as drawn.
_SIDES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}


def preview(
    images: Mapping[Modality, Volume],
    labels: Volume,
    reference: Volume | None = None,
    title: str = "",
) -> Figure:
    """One row for each sequence, one column for each plane; the reference, if given, as dashed white outline.

    All volumes lie on one grid, in any orientation; planes cut where the tumour is largest.
    """
    drawn = {modality: image.ras() for modality, image in images.items()}
    box = _head(image.voxels for image in drawn.values())
    drawn = {modality: Volume(image.voxels[box], image.affine) for modality, image in drawn.items()}
    found = Volume(labels.ras().voxels[box], labels.ras().affine)
    truth = None if reference is None else reference.ras().voxels[box]
    spacing = found.grid.spacing_mm
    where = largest_slices(
        found.voxels if found.voxels.any() or truth is None else truth, next(iter(drawn.values())).voxels
    )
    figure = Figure(figsize=(9.6, 3.1 * len(drawn) + 0.7), layout="constrained", facecolor="black")
    axes = figure.subplots(len(drawn), len(PLANES), squeeze=False)
    for row, (modality, image) in zip(axes, drawn.items(), strict=True):
        window = grey_window(image.voxels)
        for cell, plane in zip(row, PLANES, strict=True):
            draw_plane(cell, image.voxels, found.voxels, truth, plane, where, spacing, window)
        row[0].set_title(modality.title, color="white", loc="left", fontsize=11)
    figure.suptitle(title, color="white", fontsize=11)
    figure.legend(
        handles=legend_lines(found.voxels, truth),
        loc="outside lower center",
        ncols=6,
        frameon=False,
        labelcolor="white",
    )
    return figure


def draw_plane(
    cell: Any,
    image: Float[np.ndarray, "x y z"],
    labels: Integer[np.ndarray, "x y z"],
    reference: Integer[np.ndarray, "x y z"] | None,
    plane: str,
    where: Sequence[int],
    spacing_mm: Sequence[float],
    window: tuple[float, float],
) -> None:
    """One plane of one image with its contours, into matplotlib axes."""
    first, second = (axis for axis in range(3) if axis != _AXIS[plane])
    aspect = spacing_mm[second] / spacing_mm[first]
    # Said here, because a user's matplotlibrc may put row 0 at the bottom, where the letters do not follow.
    cell.imshow(
        plane_image(image, plane, where), cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect,
        interpolation="bilinear", origin="upper",
    )  # fmt: skip
    flat = plane_image(labels, plane, where)
    for label, colour in COLOURS.items():
        if (flat == label).any():
            cell.contourf(flat == label, levels=[0.5, 1.5], colors=[to_rgba(colour, 0.25)])
            cell.contour(flat == label, levels=[0.5], colors=[colour], linewidths=0.9)
    if reference is not None and (plane_image(reference, plane, where) > 0).any():
        cell.contour(
            plane_image(reference, plane, where) > 0,
            levels=[0.5],
            colors=["white"],
            linewidths=0.9,
            linestyles="dashed",
        )
    cell.set_axis_off()
    places = (
        (0.01, 0.5, "left", "center"),
        (0.99, 0.5, "right", "center"),
        (0.5, 0.99, "center", "top"),
        (0.5, 0.01, "center", "bottom"),
    )
    for letter, (x, y, horizontal, vertical) in zip(_SIDES[plane], places, strict=True):
        cell.text(x, y, letter, transform=cell.transAxes, color="0.8", fontsize=8, ha=horizontal, va=vertical)


def plane_image(volume: np.ndarray, plane: str, where: Sequence[int]) -> np.ndarray:
    """A plane of an RAS array as rows and columns of a picture: superior or anterior up, right or anterior left."""
    flat = volume.take(where[_AXIS[plane]], axis=_AXIS[plane])
    # Both remaining axes point right/anterior and anterior/superior; pictures run down and to the right.
    return flat.T[::-1, ::-1]


def largest_slices(labels: Integer[np.ndarray, "x y z"], image: Float[np.ndarray, "x y z"]) -> tuple[int, int, int]:
    """For each axis the slice with most tumour; without tumour, with most image."""
    mask = labels > 0 if labels.any() else image != background_value(image)
    x, y, z = (int(mask.sum(tuple(other for other in range(3) if other != axis)).argmax()) for axis in range(3))
    return x, y, z


def _head(images: Iterable[Float[np.ndarray, "x y z"]]) -> tuple[slice, ...]:
    """The box that holds everything drawn, with a little air for the letters."""
    mask = np.logical_or.reduce([image != background_value(image) for image in images])
    found = bounding_box(mask)
    if found is None:
        return (slice(None),) * 3
    air = [max(2, n // 25) for n in mask.shape]
    return tuple(slice(max(s.start - a, 0), s.stop + a) for s, a in zip(found, air, strict=True))


def grey_window(image: Float[np.ndarray, "x y z"]) -> tuple[float, float]:
    """Black and white of the picture: 0.5 % and 99.5 % of the intensities that are not background."""
    tissue = image[image != background_value(image)]
    low, high = np.percentile(tissue if tissue.size else image, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def legend_lines(labels: np.ndarray, reference: np.ndarray | None) -> list[Line2D]:
    """Lines of a legend for the labels that occur."""
    lines = [Line2D([], [], color=c, label=TITLES[label]) for label, c in COLOURS.items() if (labels == label).any()]
    if reference is not None:
        lines.append(Line2D([], [], color="white", linestyle="dashed", label="reference (whole)"))
    return lines
