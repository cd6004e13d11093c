"""Figures of HTML reports. Each is as wide as a phone's screen; wide screens show several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from glimpseg.modality import ALL, Modality, parse
from glimpseg.results.tables import DOT_ORDER

WIDTH = 3.95
"""Width of a figure in inches."""
COLOURS = {Modality.T1: "#0072b2", Modality.T1C: "#d55e00", Modality.T2: "#009e73", Modality.FLAIR: "#aa4499"}
"""Colours of the sequences; distinct for colour-blind readers (Okabe and Ito, Tol)."""
INK, SOFT, LINE = "#1c2733", "#5b6b7b", "#d9e0e6"
"""Colours of text, of secondary text and of lines."""
FEW_VOXELS = 100
"""Fewest voxels of a bin in a reliability curve; bins with fewer are not drawn."""
MANY_DOTS = 2000
"""Number of dots above which they are drawn as pixels, because shapes would make the file large."""


def strips(
    values: Float[np.ndarray, "study subset"],
    subsets: Sequence[str],
    label: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw every case as a dot in the row of its subset, with the median as a bar.

    Args:
        values: The dots; NaN where there is none.
        subsets: Keys of the rows.
        label: Label of the horizontal axis.
        limits: Range of the axis. None: it follows from the values, and a line is drawn at 0.
    """
    figure, axes = _figure(0.25 * len(subsets) + 1.0)
    rng = np.random.default_rng(0)
    for row in range(len(subsets)):
        present = values[:, row][~np.isnan(values[:, row])]
        height = row + rng.uniform(-0.27, 0.27, len(present))
        axes.scatter(
            present, height, s=9, color=COLOURS[Modality.T1], alpha=0.6, lw=0, rasterized=values.size > MANY_DOTS
        )
        if present.size:
            axes.plot([np.median(present)] * 2, [row - 0.38, row + 0.38], color=INK, lw=1.8)
    if limits is None:
        axes.axvline(0, color=SOFT, lw=0.8, zorder=0)
    else:
        margin = 0.02 * (limits[1] - limits[0])
        axes.set_xlim(limits[0] - margin, limits[1] + margin)
    axes.set_xlabel(label)
    axes.grid(axis="x", color=LINE, lw=0.6)
    _subset_rows(axes, subsets)
    return figure


def heat_map(values: Float[np.ndarray, "study subset"], subsets: Sequence[str], label: str) -> Figure:
    """Draw a heat map with a column for each case, best mean first, and a row for each subset.

    Args:
        values: Values from 0 to 100; NaN where there is none.
        subsets: Keys of the rows.
        label: Label of the colour scale.
    """
    order = np.argsort(-np.nanmean(values, axis=1), kind="stable")
    figure, axes = _figure(0.22 * len(subsets) + 1.0)
    image = axes.imshow(values[order].T, vmin=0, vmax=100, cmap="viridis", aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.set_xlabel(f"{len(values)} cases, best first")
    figure.colorbar(image, ax=axes, label=label, shrink=0.8, pad=0.02)
    _subset_rows(axes, subsets)
    return figure


def sequence_values(value: Mapping[str, Any]) -> Figure:
    """Draw the Shapley value of each sequence for the Dice of each region as bars, with intervals where there are any.

    `value` is what `results.summary.sequence_value` returns.
    """
    figure, axes = _figure(2.7)
    width = 0.8 / len(Modality)
    for place, modality in enumerate(DOT_ORDER):
        for column, region in enumerate(value):
            entry = value[region]["sequences"][modality.key]
            x = column + (place - 1.5) * width
            title = modality.title if column == 0 else None
            axes.bar(x, 100 * entry["mean"], width * 0.92, color=COLOURS[modality], label=title)
            if entry["low"] is not None:
                axes.plot([x, x], [100 * entry["low"], 100 * entry["high"]], color=INK, lw=1)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_xticks(range(len(value)), list(value))
    axes.set_ylabel("Dice points")
    axes.legend(frameon=False, fontsize=8, ncols=len(Modality), loc="upper center", bbox_to_anchor=(0.5, 1.16))
    axes.grid(axis="y", color=LINE, lw=0.6)
    axes.set_axisbelow(True)
    return figure


def reliability(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the reliability curve of each subset; those of single sequences and of all four are in colour and named.

    `curves` holds the reliability counts (`Reliability.as_lists`) by the key of the subset.
    """
    figure, axes = _figure(3.4)
    axes.plot([0, 1], [0, 1], color=SOFT, lw=0.8, ls="dashed")
    for subset, entry in curves.items():
        members = parse(subset)
        voxels, predicted, observed = (np.array(entry[name], float) for name in ("voxels", "predicted", "observed"))
        filled = voxels >= FEW_VOXELS
        named = members == ALL or len(members) == 1
        axes.plot(
            predicted[filled] / voxels[filled],
            observed[filled] / voxels[filled],
            color=INK if members == ALL else COLOURS.get(members, "#c3ccd4"),
            lw=1.5 if named else 0.7,
            marker="o" if named else None,
            ms=2.5,
            zorder=3 if named else 1,
            label=("all four" if members == ALL else members.title) if named else None,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="share that belongs to the region")
    axes.set_aspect("equal")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=SOFT, labelsize=8)
    axes.xaxis.label.set(color=SOFT, fontsize=9)
    axes.yaxis.label.set(color=SOFT, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def _subset_rows(axes: Any, subsets: Sequence[str]) -> None:
    """Draw the subsets of the rows as dots left of the axes, in the columns of the field's tables."""
    axes.set_ylim(len(subsets) - 0.5, -0.5)
    axes.set_yticks(range(len(subsets)), [""] * len(subsets))
    axes.tick_params(axis="y", length=0, pad=56)
    axes.spines["left"].set_visible(False)
    place = axes.get_yaxis_transform()
    for column, modality in enumerate(DOT_ORDER):
        x = -0.30 + 0.08 * column
        axes.text(x, -0.75, modality.title, transform=place, fontsize=6, color=SOFT, ha="center", va="bottom")
        for row, subset in enumerate(subsets):
            present = modality in parse(subset)
            axes.plot(
                x, row, "o", ms=4.5, transform=place, clip_on=False,
                mfc=INK if present else "none", mec=INK if present else "#aab4bd", mew=0.7,
            )  # fmt: skip
