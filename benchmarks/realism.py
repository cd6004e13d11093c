"""Measure how close phantoms are to patients: contrast, texture, edges, histogram, noise, separability, shape.

    python benchmarks/realism.py CASES -o realism [--labels CASE=CONVENTION ...] [--phantoms 40] [--spacing 2.0]
        [--population phantom-1 wide shifted] [--figure]

CASES is a folder of real cases: folders with files that end in t1n, t1c, t2w, t2f (what exists of them) and seg or
seg_silver, `.nii.gz`; perhaps brainmask (the brain) and covered (what of the field of view was scanned). A convention
(`brats2015`, `brats2023` ...) is named for each case whose labels' numbers do not tell it. Patients and phantoms are
prepared alike. In OUT: `realism.csv` (population, case, statistic, value), `realism.md` (real values beside each
population's, furthest off first) and, if wished, `realism.png`.

z is the mean of the real values less the population's, in the population's standard deviations between cases. Covered
is the share of real values within the population's central 95 %.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib
import nibabel
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage, stats

from glimpseg.data import nifti
from glimpseg.data.preprocess import Prepared, Preprocess, prepare
from glimpseg.modality import Modality
from glimpseg.phantom import Settings, generate
from glimpseg.phantom.variety import SHIFTED, STANDARD, WIDE, Variety
from glimpseg.region import CONVENTIONS, Label, Region, detect_convention, whole_numbers
from glimpseg.runtime.atomic import atomic_file, write_text
from glimpseg.study import Study
from glimpseg.volume import Volume, foreground

POPULATIONS: dict[str, Variety] = {"phantom-1": STANDARD, "wide": WIDE, "shifted": SHIFTED}
FIRST_SEED = 700_000
"""First seed of the measured phantoms."""
FILES = dict(zip(Modality, ("t1n", "t1c", "t2w", "t2f"), strict=True))
COLOURS = {Label.NCR: "tab:red", Label.ED: "tab:green", Label.ET: "gold", Label.RC: "tab:blue"}
REAL = "real"

LEAST_VOXELS = 30
"""Fewest voxels of a region whose intensities are described."""
APART_MM = 6.0
"""Smallest distance of normal-appearing brain from the tumour."""
WHITE_DEEP_MM, GREY_DEEP_MM = 5.0, 2.0
WHITE_PERCENTILES, GREY_PERCENTILES = (65, 92), (30, 45)
"""Normal tissues are looked for so far below the brain's surface, between these percentiles of flattened T1."""
BANDS_MM = (0.0, 2.0, 4.0, 8.0, 16.0)
"""Standard deviations of the blurs between which a band of detail lies."""
SHADING_MM = 20.0
"""Standard deviation of the blur that leaves of white matter what the coils do."""
FAR_MM = 6.0
"""The larger of the two distances at which texture is compared; the smaller is one voxel."""
QUANTILES = (1, 5, 25, 50, 75, 95, 99)
NORMAL_MAD = 0.6745
"""Median absolute deviation of a normal distribution with standard deviation 1."""
SEPARATED = {
    "WT:brain": ((1, 2, 3), (0,)),
    "ED:brain": ((2,), (0,)),
    "ET:rest": ((3,), (1, 2)),
    "TC:ED": ((1, 3), (2,)),
    "NCR:ET": ((1,), (3,)),
}
"""Labels whose intensities are told apart by an area under the ROC curve."""

Image = Float[np.ndarray, "x y z"]
Mask = Bool[np.ndarray, "x y z"]
Statistics = dict[str, float]


class Measured(NamedTuple):
    """A case and what was measured in it."""

    population: str
    name: str
    statistics: Statistics


class Shown(NamedTuple):
    """A case for the figure."""

    name: str
    case: Prepared


def main() -> None:
    """Measure patients and phantoms, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", default=[], metavar="CASE=CONVENTION")
    parser.add_argument("--phantoms", type=int, default=40)
    parser.add_argument("--spacing", type=float, default=2.0, help="at which both are measured, in mm")
    parser.add_argument("--drawn-at", type=float, help="spacing that phantoms are drawn at, if another")
    parser.add_argument("--population", nargs="+", choices=POPULATIONS, default=["phantom-1"])
    parser.add_argument("--figure", action="store_true")
    wanted = parser.parse_args()
    conventions = dict(pair.split("=") for pair in wanted.labels)
    patients = list(real_cases(wanted.cases, conventions, wanted.spacing))
    measured = [Measured(REAL, shown.name, measure(shown.case)) for shown in patients]
    drawn: list[Shown] = []
    for name in wanted.population:
        for shown in phantoms(name, wanted.phantoms, wanted.spacing, wanted.drawn_at or wanted.spacing):
            measured.append(Measured(name, shown.name, measure(shown.case)))
            drawn += [shown] if len(drawn) < 6 * (wanted.population.index(name) + 1) else []
    wanted.output.mkdir(parents=True, exist_ok=True)
    write_text(wanted.output / "realism.csv", lines(measured))
    write_text(wanted.output / "realism.md", table(measured, wanted.population, wanted.spacing))
    if wanted.figure:
        draw(patients + drawn, wanted.output / "realism.png")


# Cases


def real_cases(folder: Path, conventions: Mapping[str, str], spacing_mm: float) -> Iterator[Shown]:
    """Prepared labelled patients."""
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = {modality: list(place.glob(f"*{end}.nii.gz")) for modality, end in FILES.items()}
        images = {modality: nifti.read_volume(paths[0]) for modality, paths in found.items() if paths}
        labels = list(place.glob("*seg*.nii.gz"))
        if not images or not labels:
            continue
        numbers = whole_numbers(np.asarray(nibabel.load(labels[0]).dataobj))
        named = conventions.get(place.name)
        convention = CONVENTIONS[named] if named else detect_convention(np.unique(numbers), None, labels[0].name)
        study = Study(
            id=place.name, images=images, reference=labels[0], convention=convention, brain=_brain(place, images)
        )
        yield Shown(place.name, prepare(study, Preprocess(spacing_mm=spacing_mm)))


def _brain(place: Path, images: Mapping[Modality, Volume]) -> Volume | None:
    given, covered = list(place.glob("*brainmask.nii.gz")), list(place.glob("*covered.nii.gz"))
    if given:
        return nifti.read_volume(given[0])
    if not covered:
        return None
    scanned = nifti.read_volume(covered[0])
    head = np.logical_or.reduce([foreground(volume.voxels) for volume in images.values()])
    return Volume((head & (scanned.voxels > 0)).astype(np.uint8), scanned.affine)


def phantoms(population: str, count: int, spacing_mm: float, drawn_at_mm: float) -> Iterator[Shown]:
    """The first `count` cases of a population that have a tumour, prepared."""
    settings = Settings.at_spacing(drawn_at_mm, variety=POPULATIONS[population])
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        made = generate(seed, settings)
        if not made.labels.any():
            continue
        images = {
            modality: Volume(image.numpy(), made.affine) for modality, image in zip(Modality, made.images, strict=True)
        }
        study = Study(id=f"{population} {seed}", images=images, reference=Volume(made.labels.numpy(), made.affine))
        yield Shown(study.id, prepare(study, Preprocess(spacing_mm=spacing_mm)))


# Statistics


def measure(case: Prepared) -> Statistics:
    """Statistics of a case, named `kind/sequence/statistic`."""
    labels, spacing = case.target, float(case.grid.spacing_mm[0])
    assert labels is not None
    brain = np.logical_or.reduce(case.inside)
    found = shapes(labels, brain, spacing)
    apart = ndimage.distance_transform_edt(labels == 0, sampling=spacing)
    guide = Modality.T1 if Modality.T1 in case.available else Modality.T1C
    structure, head = case.image[_channel(guide)].astype(np.float64), case.inside[_channel(guide)]
    whole_white, whole_grey = normal_tissues(structure, head & (apart > APART_MM), head, spacing)
    for channel, modality in enumerate(Modality):
        if modality not in case.available:
            continue
        image, inside = case.image[channel].astype(np.float64), case.inside[channel] & brain
        normal = inside & (apart > APART_MM)
        white, grey = (tissue & inside for tissue in (whole_white, whole_grey))
        measured = (
            histogram(image[inside])
            | contrasts(image, labels, inside, normal, white & normal, grey & normal)
            | textures(image, labels, inside, white, spacing)
            | bands(image, inside, normal, spacing)
            | shading(image, white, spacing)
            | edges(image, labels, inside, float(image[normal].std()))
            | separability(image, labels, inside)
        )
        found |= {name.replace("/", f"/{modality.title}/", 1): value for name, value in measured.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _channel(modality: Modality) -> int:
    return list(Modality).index(modality)


def normal_tissues(structure: Image, normal: Mask, inside: Mask, spacing_mm: float) -> tuple[Mask, Mask]:
    """Approximate masks of normal white and grey matter: bright or medium on T1 for their surroundings, away from
    the surface."""
    depth = ndimage.distance_transform_edt(inside, sampling=spacing_mm)
    flat = structure - _blurred(structure, normal, SHADING_MM / spacing_mm)
    smooth = ndimage.gaussian_filter(flat, 1.0 / spacing_mm)
    white = np.percentile(smooth[normal], WHITE_PERCENTILES)
    grey = np.percentile(smooth[normal], GREY_PERCENTILES)
    return (
        normal & (depth > WHITE_DEEP_MM) & (smooth > white[0]) & (smooth < white[1]),
        normal & (depth > GREY_DEEP_MM) & (smooth > grey[0]) & (smooth < grey[1]),
    )


def histogram(values: Float[np.ndarray, "n"]) -> Statistics:
    """Histogram of normalised intensities in the brain."""
    found = {f"histogram/q{q:02d}": float(v) for q, v in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)}
    return found | {
        "histogram/skewness": float(stats.skew(values)),
        "histogram/kurtosis": float(stats.kurtosis(values)),
    }


def contrasts(
    image: Image, labels: UInt8[np.ndarray, "x y z"], inside: Mask, normal: Mask, white: Mask, grey: Mask
) -> Statistics:
    """Differences of means from normal brain, and spreads, in its standard deviations."""
    level, unit = float(image[normal].mean()), float(image[normal].std())
    regions = {label.name: inside & (labels == label) for label in Label} | {"white": white, "grey": grey}
    found = {"contrast/normal": level}
    for name, mask in regions.items():
        if mask.sum() >= LEAST_VOXELS:
            found[f"contrast/{name}"] = float(image[mask].mean() - level) / unit
            found[f"spread/{name}"] = float(image[mask].std()) / unit
    return found


def textures(
    image: Image, labels: UInt8[np.ndarray, "x y z"], inside: Mask, white: Mask, spacing_mm: float
) -> Statistics:
    """Spread inside eroded regions, how rough that is from voxel to voxel and from afar, and noise."""
    unit = float(image[inside].std())
    masks = {label.name: ndimage.binary_erosion(inside & (labels == label)) for label in Label}
    found: Statistics = {}
    for name, mask in (masks | {"white": ndimage.binary_erosion(white)}).items():
        if mask.sum() < LEAST_VOXELS:
            continue
        spread = float(image[mask].std())
        near = [_difference(image, mask, 1, axis) for axis in range(3)]
        far = [_difference(image, mask, max(round(FAR_MM / spacing_mm), 2), axis) for axis in range(3)]
        found |= {
            f"texture/{name} SD": spread / unit,
            f"texture/{name} roughness": float(np.mean(near)) / max(spread, 1e-6) ** 2,
            f"texture/{name} roughness 6 mm": float(np.mean(far)) / max(spread, 1e-6) ** 2,
        }
        if name == "white":
            found["texture/white z:xy"] = near[2] / float(np.mean(near[:2]))
    rest = ndimage.binary_erosion(inside, iterations=2)
    residual = ndimage.laplace(image) / math.sqrt(42)  # 6 neighbours and 6 times the middle: 6 + 36
    return found | {
        "noise/brain": float(np.median(np.abs(residual[rest]))) / NORMAL_MAD / unit,
        "noise/white": float(np.median(np.abs(residual[white]))) / NORMAL_MAD / unit,
    }


def _difference(image: Image, mask: Mask, step: int, axis: int) -> float:
    """Half the mean square of differences `step` voxels apart along an axis; white noise gives its variance."""
    first, second = np.split(np.arange(image.shape[axis]), [step])[1], np.arange(image.shape[axis] - step)
    both = mask.take(first, axis) & mask.take(second, axis)
    if both.sum() < LEAST_VOXELS // 3:
        return math.nan
    return float(((image.take(first, axis) - image.take(second, axis))[both] ** 2).mean() / 2)


def bands(image: Image, inside: Mask, normal: Mask, spacing_mm: float) -> Statistics:
    """Standard deviation of normal brain's detail between two blurs, relative to the whole brain's."""
    unit, kept = float(image[inside].std()), ndimage.binary_erosion(normal, iterations=2)
    levels = [_blurred(image, inside, sigma / spacing_mm) for sigma in BANDS_MM]
    return {
        f"band/{low:g}-{high:g} mm": float((one - two)[kept].std()) / unit
        for low, high, one, two in zip(BANDS_MM[:-1], BANDS_MM[1:], levels[:-1], levels[1:], strict=True)
    }


def shading(image: Image, white: Mask, spacing_mm: float) -> Statistics:
    """Change of white matter over long distances: its blurred values' standard deviation, and the slopes of a
    plane through them, all in the brain's standard deviations (a slope: over 100 mm)."""
    level = _blurred(image, white, SHADING_MM / spacing_mm)[white]
    at = np.argwhere(white) * spacing_mm / 100
    slopes, *_ = np.linalg.lstsq(np.column_stack([at, np.ones(len(at))]), level, rcond=None)
    return {"shading/SD": float(level.std())} | {
        f"shading/slope {axis}": abs(float(slope)) for axis, slope in zip("xyz", slopes[:3], strict=True)
    }


def _blurred(image: Image, inside: Mask, sigma: float) -> Image:
    """Blur that uses only voxels inside the mask."""
    if sigma == 0:
        return image
    weight = ndimage.gaussian_filter(inside.astype(np.float64), sigma)
    return ndimage.gaussian_filter(np.where(inside, image, 0), sigma) / np.maximum(weight, 1e-6)


def edges(image: Image, labels: UInt8[np.ndarray, "x y z"], inside: Mask, unit: float) -> Statistics:
    """Edge statistics of each region's border, in standard deviations of normal brain.

    The step between the shells two voxels inside and outside of it, near by, and the median gradient on it (a voxel).
    """
    slope = np.sqrt(sum(part**2 for part in np.gradient(image)))
    found: Statistics = {}
    for region in (Region.WT, Region.TC, Region.ET):
        mask = region.mask(labels) & inside
        if mask.sum() < LEAST_VOXELS:
            continue
        within = ndimage.distance_transform_edt(mask)
        outside = ndimage.distance_transform_edt(~mask)
        inner, outer = (within > 1) & (within <= 2), (outside > 1) & (outside <= 2) & inside
        border = mask & (within <= 1) & ndimage.binary_erosion(inside)
        step = np.abs(_near_mean(image, inner) - _near_mean(image, outer))[border]
        if border.sum() >= LEAST_VOXELS and np.isfinite(step).any():
            found[f"edge/{region.name} step"] = float(np.nanmean(step)) / unit
            found[f"edge/{region.name} gradient"] = float(np.median(slope[border])) / unit
    return found


def _near_mean(image: Image, shell: Mask) -> Image:
    """Mean over the shell's voxels in the 5 x 5 x 5 around each voxel; NaN where there are none."""
    count = ndimage.uniform_filter(shell.astype(np.float64), 5)
    total = ndimage.uniform_filter(np.where(shell, image, 0), 5)
    return np.where(count > 1e-6, total / np.maximum(count, 1e-6), np.nan)


def separability(image: Image, labels: UInt8[np.ndarray, "x y z"], inside: Mask) -> Statistics:
    """Areas under the ROC curve of intensity."""
    found: Statistics = {}
    for name, (positive, negative) in SEPARATED.items():
        one, two = image[inside & np.isin(labels, positive)], image[inside & np.isin(labels, negative)]
        if min(len(one), len(two)) >= LEAST_VOXELS:
            found[f"AUC/{name}"] = float(stats.mannwhitneyu(one, two).statistic) / (len(one) * len(two))
    return found


def shapes(labels: UInt8[np.ndarray, "x y z"], brain: Mask, spacing_mm: float) -> Statistics:
    """Volumes, compactness (1 for a ball, counted in voxels' faces 0.67) and parts of the regions."""
    millilitres = spacing_mm**3 / 1000
    volumes = {region.name: int(region.mask(labels).sum()) for region in (Region.WT, Region.TC, Region.ET)}
    found = {"shape/brain ml": float(brain.sum()) * millilitres}
    found |= {f"shape/{name} ml": count * millilitres for name, count in volumes.items()}
    if volumes["WT"]:
        found["shape/TC:WT"] = volumes["TC"] / volumes["WT"]
    if volumes["TC"]:
        found["shape/ET:TC"] = volumes["ET"] / volumes["TC"]
    for region in (Region.WT, Region.TC, Region.ET):
        mask = np.pad(region.mask(labels), 1)
        if mask.sum() < LEAST_VOXELS:
            continue
        faces = sum(int((np.diff(mask.astype(np.int8), axis=axis) != 0).sum()) for axis in range(3))
        found[f"shape/{region.name} compactness"] = (36 * math.pi * float(mask.sum()) ** 2) ** (1 / 3) / faces
        found[f"shape/{region.name} parts"] = float(ndimage.label(mask)[1])
    return found


# What is written


def lines(measured: list[Measured]) -> str:
    """Tidy CSV text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["population", "case", "statistic", "value"])
    for population, name, statistics in measured:
        writer.writerows([population, name, what, f"{value:.5g}"] for what, value in statistics.items())
    return text.getvalue()


class Compared(NamedTuple):
    """One statistic of the real cases against a population's."""

    mean: float
    deviation: float
    z: float
    covered: float


def compared(real: list[float], drawn: list[float]) -> Compared:
    """z and coverage, as the docstring above says."""
    mean, deviation = float(np.mean(drawn)), float(np.std(drawn, ddof=1))
    low, high = np.percentile(drawn, (2.5, 97.5))
    covered = float(np.mean([low <= value <= high for value in real]))
    return Compared(mean, deviation, (float(np.mean(real)) - mean) / max(deviation, 1e-9), covered)


def table(measured: list[Measured], populations: list[str], spacing_mm: float) -> str:
    """Markdown: one line a statistic, furthest off in the first population first."""
    real = [each for each in measured if each.population == REAL]
    names = sorted({what for each in real for what in each.statistics})
    rows: list[tuple[str, list[str], dict[str, Compared]]] = []
    for what in names:
        values = [each.statistics.get(what) for each in real]
        against: dict[str, Compared] = {}
        for population in populations:
            drawn = [e.statistics[what] for e in measured if e.population == population and what in e.statistics]
            if len(drawn) > 2:
                against[population] = compared([v for v in values if v is not None], drawn)
        if populations[0] in against:
            rows.append((what, ["-" if v is None else f"{v:.3g}" for v in values], against))
    rows.sort(key=lambda row: -abs(row[2][populations[0]].z))
    heads = [f"{name} mean +- SD | z | covered" for name in populations]
    text = [f"Patients against phantoms at {spacing_mm:g} mm.", ""]
    for name in populations:
        found = [against[name] for _, _, against in rows if name in against]
        text.append(
            f"* {name}: {100 * np.mean([c.covered for c in found]):.0f} % of the real values covered; median |z| "
            f"{np.median([abs(c.z) for c in found]):.2f}; "
            f"|z| > 2 in {sum(abs(c.z) > 2 for c in found)} of {len(found)}."
        )
    text += ["", f"| statistic | {' | '.join(each.name for each in real)} | {' | '.join(heads)} |"]
    text.append("|---" * (1 + len(real) + 3 * len(populations)) + "|")
    for what, values, against in rows:
        cells = [
            f"{c.mean:.3g} +- {c.deviation:.2g} | {c.z:+.1f} | {c.covered:.2f}"
            if (c := against.get(name))
            else "- | - | -"
            for name in populations
        ]
        text.append(f"| {what} | {' | '.join(values)} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def draw(cases: list[Shown], target: Path) -> None:
    """One row each: the axial slice with most tumour in every sequence, labels, histogram; patient's left at right."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(cases), 6, figsize=(19, 3.3 * len(cases)), squeeze=False, facecolor="black")
    for line, (name, case) in zip(axes, cases, strict=True):
        assert case.target is not None
        level = int((case.target > 0).sum((0, 1)).argmax())
        for axis in line[:5]:
            axis.set_axis_off()
        for channel, modality in enumerate(Modality):
            if modality not in case.available:
                continue
            image, inside = case.image[channel], case.inside[channel]
            low, high = np.percentile(image[inside], (1, 99.7))
            shown = np.where(inside, image, low)[..., level]
            line[channel].imshow(shown.T, origin="lower", cmap="gray", vmin=low, vmax=high)
            line[channel].set_title(f"{name if channel in (0, 1) else ''} {modality.title}", color="white", fontsize=9)
            line[5].hist(image[inside], bins=np.arange(-4, 5, 0.1), histtype="step", density=True, label=modality.title)
        line[4].imshow(shown.T, origin="lower", cmap="gray", vmin=low, vmax=high)
        for label, colour in COLOURS.items():
            if (case.target[..., level] == label).any():
                line[4].contour((case.target[..., level] == label).T, [0.5], colors=colour, linewidths=0.8)
        for axis in line[:5]:
            axis.invert_xaxis()
        line[5].legend(fontsize=7)
    figure.tight_layout()
    with atomic_file(target) as path:
        figure.savefig(path, dpi=70, facecolor="black", format="png")


if __name__ == "__main__":
    main()
