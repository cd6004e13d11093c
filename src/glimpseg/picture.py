"""Pictures of a study: the preview figure, three planes for each sequence with contours, and a thumbnail.

Orientation is radiological: the patient's right is on the left of the figure. Letters at the edges of each plane name
the directions. Arrays are RAS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from scipy import ndimage

from glimpseg.modality import Modality
from glimpseg.region import COLOURS, TITLES
from glimpseg.volume import Volume, background_value, bounding_box

PLANES = ("axial", "coronal", "sagittal")
_EDGE_LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
"""Directions at the left, right, top and bottom edge of each plane, in this order."""
_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
"""RAS axis perpendicular to each plane."""
THUMBNAIL_ORDER = (Modality.FLAIR, Modality.T2, Modality.T1C, Modality.T1)
"""Order of sequences for the thumbnail: the first available one is drawn. Whole tumours show best in FLAIR and T2."""
THUMBNAIL_PIXELS = 240
"""Longer side of a thumbnail."""
THUMBNAIL_QUALITY = 80
"""JPEG quality of a thumbnail: 4 to 12 kB."""


@dataclass(frozen=True, kw_only=True)
class PlaneView:
    """Slice of an RAS array that is drawn."""

    plane: str
    """One of `PLANES`."""
    voxel: Sequence[int]
    """Voxel index (x, y, z) that the slice goes through."""
    spacing_mm: Sequence[float]
    """Voxel size along x, y and z."""


def preview(
    images: Mapping[Modality, Volume],
    labels: Volume,
    reference: Volume | None = None,
    title: str = "",
) -> Figure:
    """Draw a study as a figure: one row for each sequence, one column for each plane.

    The figure is cropped to the head. The slices are those with the largest tumour area: in `labels`, or in the
    reference if `labels` is empty. If both are empty, they have the largest foreground of the first image.

    Args:
        images: Images by sequence, at least one; all on one grid, in any orientation.
        labels: Predicted label map (`Label` values) on that grid.
        reference: Reference label map on that grid; its whole extent is drawn as a dashed white outline.
        title: Title of the figure.

    Returns:
        A matplotlib figure on a black background.
    """
    drawn = {modality: image.ras() for modality, image in images.items()}
    box = _head_box(image.voxels for image in drawn.values())
    drawn = {modality: Volume(image.voxels[box], image.affine) for modality, image in drawn.items()}
    predicted = Volume(labels.ras().voxels[box], labels.ras().affine)
    truth = None if reference is None else reference.ras().voxels[box]
    voxel = largest_slices(
        predicted.voxels if predicted.voxels.any() or truth is None else truth, next(iter(drawn.values())).voxels
    )
    figure = Figure(figsize=(9.6, 3.1 * len(drawn) + 0.7), layout="constrained", facecolor="black")
    axes = figure.subplots(len(drawn), len(PLANES), squeeze=False)
    for row, (modality, image) in zip(axes, drawn.items(), strict=True):
        window = grey_window(image.voxels)
        for cell, plane in zip(row, PLANES, strict=True):
            view = PlaneView(plane=plane, voxel=voxel, spacing_mm=predicted.grid.spacing_mm)
            draw_plane(cell, image.voxels, predicted.voxels, view, reference=truth, window=window)
        row[0].set_title(modality.title, color="white", loc="left", fontsize=11)
    figure.suptitle(title, color="white", fontsize=11)
    figure.legend(
        handles=legend_lines(predicted.voxels, truth),
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
    view: PlaneView,
    *,
    reference: Integer[np.ndarray, "x y z"] | None,
    window: tuple[float, float],
) -> None:
    """Draw one slice of an image with the contours of its labels.

    Args:
        cell: Matplotlib axes to draw into.
        image: Image, RAS.
        labels: Label map (`Label` values) on the image's grid.
        view: Slice to draw.
        reference: Reference label map; drawn as one dashed white outline around all its labels.
        window: Intensities shown as black and as white.
    """
    first, second = (axis for axis in range(3) if axis != _AXIS[view.plane])
    aspect = view.spacing_mm[second] / view.spacing_mm[first]
    # `origin` is set here because a user's matplotlibrc may put row 0 at the bottom; the letters would then be wrong.
    cell.imshow(
        plane_image(image, view.plane, view.voxel), cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect,
        interpolation="bilinear", origin="upper",
    )  # fmt: skip
    flat = plane_image(labels, view.plane, view.voxel)
    for label, colour in COLOURS.items():
        if (flat == label).any():
            cell.contourf(flat == label, levels=[0.5, 1.5], colors=[to_rgba(colour, 0.25)])
            cell.contour(flat == label, levels=[0.5], colors=[colour], linewidths=0.9)
    outline = None if reference is None else plane_image(reference, view.plane, view.voxel) > 0
    if outline is not None and outline.any():
        cell.contour(outline, levels=[0.5], colors=["white"], linewidths=0.9, linestyles="dashed")
    cell.set_axis_off()
    places = (
        (0.01, 0.5, "left", "center"),
        (0.99, 0.5, "right", "center"),
        (0.5, 0.99, "center", "top"),
        (0.5, 0.01, "center", "bottom"),
    )
    for letter, (x, y, horizontal, vertical) in zip(_EDGE_LETTERS[view.plane], places, strict=True):
        cell.text(x, y, letter, transform=cell.transAxes, color="0.8", fontsize=8, ha=horizontal, va=vertical)


def plane_image(volume: np.ndarray, plane: str, voxel: Sequence[int]) -> np.ndarray:
    """Return a slice of an RAS array as rows and columns of an image.

    Rows run downwards from superior (axial: anterior); columns from the patient's right (sagittal: anterior).
    """
    flat = volume.take(voxel[_AXIS[plane]], axis=_AXIS[plane])
    # The remaining axes point to right or anterior and to anterior or superior; image rows run down, columns right.
    return flat.T[::-1, ::-1]


def largest_slices(labels: Integer[np.ndarray, "x y z"], image: Float[np.ndarray, "x y z"]) -> tuple[int, int, int]:
    """Return the index along x, y and z of the slice with most tumour, for each axis by itself.

    Tumour is any label above 0. Without tumour, the voxels that differ from the image's `background_value` count.
    """
    mask = labels > 0 if labels.any() else image != background_value(image)
    x, y, z = (int(mask.sum(tuple(other for other in range(3) if other != axis)).argmax()) for axis in range(3))
    return x, y, z


def _head_box(images: Iterable[Float[np.ndarray, "x y z"]]) -> tuple[slice, ...]:
    """Return a box around the voxels in which any image differs from its `background_value`, and a margin for letters.

    If there are no such voxels, it is the whole array.
    """
    mask = np.logical_or.reduce([image != background_value(image) for image in images])
    box = bounding_box(mask)
    if box is None:
        return (slice(None),) * 3
    margins = [max(2, n // 25) for n in mask.shape]
    return tuple(slice(max(side.start - m, 0), side.stop + m) for side, m in zip(box, margins, strict=True))


def grey_window(image: Float[np.ndarray, "x y z"]) -> tuple[float, float]:
    """Return the intensities shown as black and as white: the 0.5 % and 99.5 % quantiles of the foreground.

    The foreground are the voxels that differ from `background_value`; if there are none, the whole image is used. White
    is at least 1e-6 above black.
    """
    tissue = image[image != background_value(image)]
    low, high = np.percentile(tissue if tissue.size else image, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def legend_lines(labels: np.ndarray, reference: np.ndarray | None) -> list[Line2D]:
    """Return the legend entries for the labels that occur and for the reference, if there is one."""
    lines = [Line2D([], [], color=c, label=TITLES[label]) for label, c in COLOURS.items() if (labels == label).any()]
    if reference is not None:
        lines.append(Line2D([], [], color="white", linestyle="dashed", label="reference (whole)"))
    return lines


def thumbnail(
    image: Float[np.ndarray, "x y z"], labels: Integer[np.ndarray, "x y z"], spacing_mm: Sequence[float]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the axial slice with most tumour as an RGB array, in radiological view, with the outline of each label.

    Args:
        image: Image, RAS.
        labels: Label map (`Label` values) on the image's grid. If it is empty, the largest slice of the head is drawn.
        spacing_mm: Voxel size along x, y and z.
    """
    box = _head_box([image])
    image, labels = image[box], labels[box]
    black, white = grey_window(image)
    voxel = largest_slices(labels, image)
    grey, flat = plane_image(image, "axial", voxel), plane_image(labels, "axial", voxel)
    sides_mm = np.array(grey.shape) * (spacing_mm[1], spacing_mm[0])
    factors = THUMBNAIL_PIXELS * sides_mm / sides_mm.max() / grey.shape
    share = np.clip((ndimage.zoom(grey.astype(np.float32), factors, order=1) - black) / (white - black), 0, 1)
    picture = np.repeat(np.round(255 * share).astype(np.uint8)[..., None], 3, 2)
    large = ndimage.zoom(flat, factors, order=0)
    for label, colour in COLOURS.items():
        mask = large == label
        outline = mask & ~ndimage.binary_erosion(mask)
        picture[outline] = np.round(255 * np.array(to_rgb(colour)))
    return picture


def write_thumbnail(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write an RGB array as a JPEG."""
    imsave(path, picture, format="jpeg", pil_kwargs={"quality": THUMBNAIL_QUALITY, "optimize": True})
