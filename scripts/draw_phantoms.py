"""Draws phantoms beside real cases: one row each, four sequences and the drawn labels.

`python scripts/draw_phantoms.py picture.png [folder of a real case ...] [--first-seed 0] [--count 6]`. A real
case is a folder with files that end in t1n, t1c, t2w, t2f and seg (or seg_silver), `.nii.gz`, numbered as BraTS
2020 or 2023 does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import nibabel
import numpy as np

from glimpseg import phantom
from glimpseg.modality import Modality
from glimpseg.region import Label

FILES = dict(zip(Modality, ("t1n", "t1c", "t2w", "t2f"), strict=True))
COLOURS = {Label.NCR: "tab:red", Label.ED: "tab:green", Label.ET: "gold", Label.RC: "tab:blue"}


def main() -> None:
    """Collects the cases and draws one row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("real", nargs="*", type=Path)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--spacing", type=float, default=1.0)
    parser.add_argument("--post-operative", type=float, default=0.0)
    chosen = parser.parse_args()
    settings = phantom.Settings.at_spacing(chosen.spacing, post_operative=chosen.post_operative)
    rows = [(folder.name, *real_case(folder)) for folder in chosen.real]
    for seed in range(chosen.first_seed, chosen.first_seed + chosen.count):
        made = phantom.generate(seed, settings)
        kind = str(made.description["kind"])
        rows.append((f"phantom {seed}\n{kind}", made.images.numpy(), made.labels.numpy(), chosen.spacing))
    draw(rows, chosen.picture)


def real_case(folder: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Images (m x y z), labels and spacing of a case in files, in RAS order."""
    images = [read(next(folder.glob(f"*{FILES[modality]}.nii.gz"))) for modality in Modality]
    labels = read(next(folder.glob("*seg*.nii.gz"))).astype(int)
    labels[labels == 4] = Label.ET  # BraTS 2020 and before
    return np.stack(images), labels, 1.0


def read(path: Path) -> np.ndarray:
    """One file's voxels in RAS order."""
    return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj, dtype=np.float32)


def draw(rows: list[tuple[str, np.ndarray, np.ndarray, float]], target: Path) -> None:
    """The axial slice with the most tumour of every case, patient's left at the right."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(rows), 5, figsize=(15, 3.2 * len(rows)), squeeze=False, facecolor="black")
    for line, (title, images, labels, spacing) in zip(axes, rows, strict=True):
        level = int((labels > 0).sum((0, 1)).argmax()) if labels.any() else labels.shape[2] // 2
        x, y = (np.flatnonzero(images[0].any(axis=axes_)) for axes_ in ((1, 2), (0, 2)))
        window = (slice(x[0], x[-1] + 1), slice(y[0], y[-1] + 1), level)
        for axis, image, modality in zip(line, images, Modality, strict=False):
            show(axis, image[window], np.percentile(image[image > 0], 99.5))
            axis.set_title(f"{title if modality is Modality.T1 else ''} {modality.title}", color="white", fontsize=9)
        show(line[4], images[3][window], np.percentile(images[3][images[3] > 0], 99.5))
        for label, colour in COLOURS.items():
            if (labels[window] == label).any():
                line[4].contour((labels[window] == label).T, [0.5], colors=colour, linewidths=0.8)
        line[4].set_title(f"{spacing:g} mm, z {level}", color="white", fontsize=9)
    figure.tight_layout()
    figure.savefig(target, dpi=70, facecolor="black")


def show(axis: object, image: np.ndarray, brightest: float) -> None:
    """One slice in radiological convention."""
    axis.imshow(image.T, origin="lower", cmap="gray", vmin=0, vmax=brightest)  # type: ignore[attr-defined]
    axis.invert_xaxis()  # type: ignore[attr-defined]
    axis.set_axis_off()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
