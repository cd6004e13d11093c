"""Pictures: the patches that are told apart most easily, and slices for a blind look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float

from glimpseg.modality import Modality
from glimpseg.runtime.atomic import atomic_file
from likeness.cases import Case, Image
from likeness.patches import LIMITS, OUTSIDE, Verdict

SHOWN = 4
"""Patches of each side in a row."""
WINDOW = (1.0, 99.5)
"""Percentiles of the brain between which a slice is shown."""
FIELD_MM = (160.0, 194.0)
"""Field of view of a slice, left to right and back to front."""
SLICE_STEP_MM = 12.0
"""Distance of the two slices of a case."""


def draw_easiest(verdicts: Mapping[tuple[str, Modality], Verdict], target: Path) -> None:
    """Draw the patches told right most confidently, a row for each kind and sequence: patients left, phantoms right.

    Each patch is shown as its middle axial plane above its middle coronal plane, all with one grey scale in a row.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(verdicts), 2 * SHOWN, figsize=(2 * SHOWN * 1.5, 3 * len(verdicts)), squeeze=False, facecolor="black"
    )
    for line, ((kind, modality), verdict) in zip(axes, verdicts.items(), strict=True):
        chosen = [verdict.easiest(phantom, SHOWN) for phantom in (False, True)]
        columns = [(0, number) for number in chosen[0]] + [(SHOWN, number) for number in chosen[1]]
        values = verdict.patches.values
        shown = values[[number for _, number in columns]]
        inside = shown[shown > OUTSIDE]
        low, high = np.percentile(inside, WINDOW) if inside.size else LIMITS
        for axis in line:
            axis.set_axis_off()
        for place, (first, number) in enumerate(columns):
            column = first + (place if first == 0 else place - len(chosen[0]))
            line[column].imshow(_planes(values[number]), cmap="gray", vmin=low, vmax=high)
            side = "phantom" if first else "patient"
            line[column].set_title(f"{side} {verdict.logits[number]:+.1f}", color="white", fontsize=7)
        title = f"{kind}, {modality.title}: AUC {verdict.area:.2f}\n{line[0].get_title()}"
        line[0].set_title(title, color="white", fontsize=7)
    figure.tight_layout()
    with atomic_file(target) as path:
        figure.savefig(path, dpi=80, facecolor="black", format="png")
    pyplot.close(figure)


def _planes(patch: Image) -> Float[np.ndarray, "rows columns"]:
    """Return the middle axial plane above the middle coronal one, both with up or front at the top."""
    middle = patch.shape[0] // 2
    axial, coronal = patch[:, :, middle].T[::-1, ::-1], patch[:, middle].T[::-1, ::-1]
    gap = np.full((1, patch.shape[0]), np.nan)
    return np.concatenate([axial, gap, coronal])


def draw_blind(cases: Sequence[Case], target: Path) -> None:
    """Draw each case as a numbered row: four sequences at the slice with most tumour, and at one beside it."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 2 * len(Modality)
    figure, axes = pyplot.subplots(
        len(cases), columns, figsize=(columns * 1.6, 1.94 * len(cases)), squeeze=False, facecolor="black"
    )
    for number, (line, case) in enumerate(zip(axes, cases, strict=True), 1):
        for axis in line:
            axis.set_axis_off()
        for part, level in enumerate(slices(case)):
            for place, modality in enumerate(Modality):
                axis = line[part * len(Modality) + place]
                axis.imshow(_slice(case, modality, level), cmap="gray", vmin=0, vmax=1)
                axis.set_title(modality.title if number == 1 else "", color="white", fontsize=9)
        line[0].text(0, 12, str(number), color="yellow", fontsize=14)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.98, wspace=0.02, hspace=0.02)
    with atomic_file(target) as path:
        figure.savefig(path, dpi=75, facecolor="black", format="png")
    pyplot.close(figure)


def slices(case: Case) -> tuple[int, int]:
    """Return the axial slice with most tumour, and one 12 mm above it (below it, if there is more tumour)."""
    areas = (case.labels > 0).sum((0, 1))
    most, step = int(areas.argmax()), round(SLICE_STEP_MM / case.spacing_mm)
    beside = [level for level in (most + step, most - step) if 0 <= level < len(areas)]
    return most, max(beside, key=lambda level: int(areas[level]), default=most)


def _slice(case: Case, modality: Modality, level: int) -> Float[np.ndarray, "rows columns"]:
    image = case.images[modality]
    low, high = np.percentile(image[case.brain], WINDOW)
    shown = np.where(case.brain, np.clip((image - low) / max(float(high - low), 1e-9), 0, 1), 0)[:, :, level]
    sides = np.array(FIELD_MM) / case.spacing_mm  # one field of view for all, so that size tells nothing
    canvas = np.zeros(sides.round().astype(int))
    box = tuple(slice(max((whole - part) // 2, 0), None) for whole, part in zip(canvas.shape, shown.shape, strict=True))
    view = canvas[box]
    part = shown[: view.shape[0], : view.shape[1]]
    view[: part.shape[0], : part.shape[1]] = part
    return canvas.T[::-1, ::-1]
