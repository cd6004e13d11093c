"""Segment phantoms after interpolation, with noise in the air, other backgrounds and spikes; print the Dice of WT.

    python tests/robustness/disturbed_images.py [--spacing 2 1] [--seed 901] [--only spike noise] [--subset t1c flair]

Each disturbed study is segmented by the shipped model. The reference is moved with the images. Exit code 1 if a row is
more than 0.03 away from the images as they are.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

import glimpseg
from glimpseg.data.nifti import write_image
from glimpseg.errors import InputError, UsageError
from glimpseg.metrics import dice
from glimpseg.modality import Modality
from glimpseg.model.loading import Model
from glimpseg.phantom import Settings, generate
from glimpseg.phantom.dataset import as_study
from glimpseg.region import Region
from glimpseg.segmentation.options import InferenceOptions
from glimpseg.segmentation.predict import segment_study
from glimpseg.study import Frame, Study
from glimpseg.volume import Grid, Volume, resample_labels

TOLERANCE = 0.03
SHIFT = 0.4
"""Shift of the resampling along each axis, in voxels."""
Images = dict[Modality, Volume]


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """One row."""

    name: str
    make: Callable[[Volume, np.random.Generator, Modality], np.ndarray]
    """Returns the disturbed voxels of one sequence."""
    moves: bool = False
    """True if the images are moved by `SHIFT`."""


def shifted(how: int) -> Callable[..., np.ndarray]:
    """Resample by `SHIFT` voxels, with an interpolation of ITK."""

    def made(volume: Volume, _: np.random.Generator, __: Modality) -> np.ndarray:
        image = sitk.GetImageFromArray(volume.voxels.astype(np.float32).T)
        moved = sitk.Resample(image, image, sitk.TranslationTransform(3, [SHIFT] * 3), how, 0.0)
        return sitk.GetArrayFromImage(moved).T

    return made


def cubic(volume: Volume, _: np.random.Generator, __: Modality) -> np.ndarray:
    """Resample by `SHIFT` voxels as scipy does."""
    return ndimage.shift(volume.voxels.astype(np.float32), [-SHIFT] * 3, order=3)


def noise(share: float, rician: bool = False) -> Callable[..., np.ndarray]:
    """Add noise of a share of the maximum to the whole image."""

    def made(volume: Volume, draw: np.random.Generator, _: Modality) -> np.ndarray:
        sigma = share * volume.voxels.max()
        real = volume.voxels + draw.normal(0, sigma, volume.voxels.shape)
        return np.hypot(real, draw.normal(0, sigma, real.shape)) if rician else real

    return made


def outside(level: float) -> Callable[..., np.ndarray]:
    """Set the air to a level."""
    return lambda volume, _, __: np.where(volume.voxels == 0, level, volume.voxels)


def offset(volume: Volume, _: np.random.Generator, modality: Modality) -> np.ndarray:
    """Add a constant, another one to each sequence."""
    return volume.voxels + {Modality.T1: -1000, Modality.T1C: 500, Modality.T2: 32, Modality.FLAIR: -50}[modality]


def ghost(volume: Volume, draw: np.random.Generator, _: Modality) -> np.ndarray:
    """Add a ghost of 5 %, moved by half of the field of view, and noise of 0.1 %."""
    moved = np.roll(volume.voxels, volume.voxels.shape[1] // 2, axis=1)
    return np.abs(volume.voxels + 0.05 * moved + draw.normal(0, 1e-3 * volume.voxels.max(), moved.shape))


def one_noisy(volume: Volume, draw: np.random.Generator, modality: Modality) -> np.ndarray:
    """Add noise of 1 % to FLAIR only."""
    return noise(1e-2)(volume, draw, modality) if modality is Modality.FLAIR else volume.voxels


def half_border(volume: Volume, draw: np.random.Generator, modality: Modality) -> np.ndarray:
    """Add Rician noise, and set the first third along x to 0, as a field of view that was moved."""
    voxels = noise(1e-2, rician=True)(volume, draw, modality)
    voxels[: voxels.shape[0] // 5] = 0
    return voxels


def not_finite(volume: Volume, draw: np.random.Generator, modality: Modality) -> np.ndarray:
    """Set the air to NaN."""
    return np.where(volume.voxels == 0, np.nan, volume.voxels)


def spikes(
    count: int, factor: float, *, only: Modality | None = None, together: bool = False
) -> Callable[..., np.ndarray]:
    """Multiply the median of the brain at `count` voxels of it."""

    def made(volume: Volume, draw: np.random.Generator, modality: Modality) -> np.ndarray:
        voxels = volume.voxels.astype(np.float32).copy()
        if only in (None, modality):
            places = np.argwhere(voxels != 0)
            start = draw.integers(len(places))
            nearest = np.argsort(((places - places[start]) ** 2).sum(1))[:count]
            chosen = places[nearest if together else draw.choice(len(places), count, replace=False)]
            voxels[tuple(chosen.T)] = factor * np.median(voxels[voxels != 0])
        return voxels

    return made


def wrapped(volume: Volume, _: np.random.Generator, __: Modality) -> np.ndarray:
    """Scale to 40,000 and wrap at 16 bits."""
    scaled = np.rint(volume.voxels * (40_000 / volume.voxels.max()))
    return np.where(scaled > 32_767, scaled - 65_536, scaled)


DISTURBANCES = (
    Disturbance(name="linear, 0.4 voxel", make=shifted(sitk.sitkLinear), moves=True),
    Disturbance(name="cubic (scipy), 0.4 voxel", make=cubic, moves=True),
    Disturbance(name="B-spline (ITK), 0.4 voxel", make=shifted(sitk.sitkBSpline), moves=True),
    Disturbance(name="Lanczos (ITK), 0.4 voxel", make=shifted(sitk.sitkLanczosWindowedSinc), moves=True),
    *(Disturbance(name=f"noise of {share:g} of the maximum", make=noise(share)) for share in (1e-4, 1e-3, 1e-2)),
    Disturbance(name="Rician noise of 0.01", make=noise(1e-2, rician=True)),
    Disturbance(name="noise of 0.01 in FLAIR only", make=one_noisy),
    Disturbance(name="ghost of 5 %", make=ghost),
    Disturbance(name="Rician noise, a fifth of the array 0", make=half_border),
    Disturbance(name="air of -1000", make=outside(-1000)),
    Disturbance(name="air of NaN", make=not_finite),
    Disturbance(name="another offset in each sequence", make=offset),
    Disturbance(name="wrapped at 16 bits", make=wrapped),
    *(
        Disturbance(name=f"spike: {count} x {factor:g}", make=spikes(count, factor))
        for count in (1, 8, 20, 200)
        for factor in (10, 110, 1000, 32767)
    ),
    Disturbance(name="spike: 20 x 110, side by side", make=spikes(20, 110, together=True)),
    Disturbance(name="spike: 200 x 32767, side by side", make=spikes(200, 32767, together=True)),
    Disturbance(name="spike: 8 x 32767, T1c only", make=spikes(8, 32767, only=Modality.T1C)),
    Disturbance(name="spike: 200 x 10, T2 only", make=spikes(200, 10, only=Modality.T2)),
    Disturbance(name="spike: 200 x -100", make=spikes(200, -100)),
)


def main() -> None:
    """Print a table, a row for each disturbance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spacing", type=float, nargs="+", default=[2.0, 1.0])
    parser.add_argument("--seed", type=int, default=901)
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name contains one of these")
    parser.add_argument("--subset", nargs="+", default=["t1", "t1c", "t2", "flair"])
    parser.add_argument("--raw", default="auto")
    parser.add_argument("--warnings", action="store_true", help="print the warnings, not their number")
    wanted = parser.parse_args()
    logging.disable(logging.WARNING)
    model, failed = glimpseg.load(device="cpu"), False
    chosen = [modality for modality in Modality if modality.name.lower() in wanted.subset]
    print("| spacing | disturbance | WT | warnings |\n|---|---|---|---|")
    for spacing in wanted.spacing:
        study = as_study(generate(wanted.seed, Settings.at_spacing(spacing)))
        images = {m: image for m, image in study.images.items() if m in chosen and isinstance(image, Volume)}
        right = score(study, images, model, wanted.raw)[0]
        print(f"| {spacing:g} | as it is | {right:.3f} | |", flush=True)
        for row in DISTURBANCES:
            if any(part in row.name for part in wanted.only):
                found, warnings = score(moved(study) if row.moves else study, made(row, images), model, wanted.raw)
                bad = abs(found - right) > TOLERANCE
                failed |= bad
                says = " / ".join(warnings) if wanted.warnings else len(warnings)
                print(f"| {spacing:g} | {row.name} | {found:.3f}{' !' if bad else ''} | {says} |", flush=True)
    sys.exit(int(failed))


def made(row: Disturbance, images: Images) -> Images:
    """Return the disturbed sequences; the same for each run."""
    draw = np.random.default_rng(7)
    return {m: Volume(np.asarray(row.make(image, draw, m), np.float32), image.affine) for m, image in images.items()}


def moved(study: Study) -> Study:
    """Return the study with its reference moved by `SHIFT`, as the images of a row that moves them."""
    assert isinstance(study.reference, Volume)
    grid = study.reference.grid
    target = grid.affine.copy()
    target[:3, 3] += grid.affine[:3, :3] @ np.full(3, SHIFT)
    labels = resample_labels(study.reference, Grid(grid.shape, target)).voxels
    return replace(study, reference=Volume(labels, grid.affine))


def score(study: Study, images: Images, model: Model, raw: str) -> tuple[float, Sequence[str]]:
    """Return the Dice of WT and the warnings, from NIfTI files as a user has them."""
    with TemporaryDirectory() as place:
        files: dict[Modality, Volume | Path | Frame] = {m: Path(place, f"{m.name.lower()}.nii") for m in images}
        for m, file in files.items():
            write_image(str(file), images[m])
        given = replace(study, images=files, reference=None)
        try:
            result = segment_study(given, model, InferenceOptions(raw=raw, uncertainty="none"))
        except (InputError, UsageError) as error:
            return float("nan"), [str(error)]
    assert isinstance(study.reference, Volume)
    return dice(*(Region.WT.mask(labels.voxels) for labels in (result.labels, study.reference))), result.warnings


if __name__ == "__main__":
    main()
