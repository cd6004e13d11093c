"""Time Dice and HD95 of one case (3 regions, 15 subsets, 240x240x155 voxels) against MONAI.

    python benchmarks/metrics.py [--repeat 5] [--seed 4] [--record FILE]

The reference is a phantom of 1 mm, the predictions are the reference with a smoothly moved outline, a little further
off for each subset. The contestants and the results are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage

from glimpseg import metrics
from glimpseg.metrics import Surface, SurfaceDistances
from glimpseg.modality import SUBSETS, Modality
from glimpseg.phantom import generate
from glimpseg.region import Region
from glimpseg.volume import bounding_box, foreground
from turns import Contest, add_options, in_turns, tell

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what MONAI's imports say of themselves
    from monai.metrics import compute_dice, compute_hausdorff_distance

SPACING_MM = (1.0, 1.0, 1.0)
REGIONS = (Region.WT, Region.TC, Region.ET)
WAVE_MM = 6.0
"""Standard deviation of the Gaussian that smooths the noise by which an outline is moved."""
SHIFTS_MM = (1.5, 3.0)
"""Standard deviation of that noise, for the first and the last subset."""
SURROUNDINGS = 24
"""Voxels around the tumour in which a prediction may lie."""
AGREEMENT = 1e-5
"""Largest relative difference that is allowed between two programs; MONAI computes in single precision."""

Masks = Sequence[np.ndarray]
Scores = np.ndarray
"""Array of subset, region, (Dice, HD95)."""


def main() -> None:
    """Measure and print. Raises: SystemExit if values disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=4, help="of the phantom")
    add_options(parser, repeat=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")

    phantom = generate(arguments.seed)
    labels = phantom.labels.numpy()
    brain = bounding_box(foreground(phantom.images[list(Modality).index(Modality.T1)].numpy()))
    assert brain is not None, "a phantom has a brain"
    reference = [region.mask(labels) for region in REGIONS]
    predictions = [moved(reference, subset) for subset in range(len(SUBSETS))]
    truth = one_hot(reference)
    shown = [one_hot(masks) for masks in predictions]
    contestants: dict[str, Callable[[], Scores]] = {
        "glimpseg, `dice` and `hd95` of whole grids": lambda: of_masks(predictions, reference),
        "glimpseg, as `evaluate`: the brain's box, the reference's surface kept": lambda: of_surfaces(
            predictions, reference, brain
        ),
        "MONAI, `compute_dice` and `compute_hausdorff_distance`": lambda: of_monai(shown, truth),
    }

    scores = {name: run() for name, run in contestants.items()}  # also warms up
    ours, kept, theirs = contestants
    apart = max(np.abs(scores[name] - scores[theirs]).max() for name in (ours, kept))
    for name in (ours, kept):
        if not np.allclose(scores[name], scores[theirs], rtol=AGREEMENT, atol=AGREEMENT):
            raise SystemExit(f"'{name}' does not agree with MONAI: {apart:.1e}.")
    volumes = ", ".join(
        f"{region.name} {mask.sum() / 1000:.1f}" for region, mask in zip(REGIONS, reference, strict=True)
    )
    low, high = scores[ours].min((0, 1)), scores[ours].max((0, 1))
    setting = (
        f"Phantom {arguments.seed}, {'x'.join(map(str, labels.shape))} voxels, {volumes} ml; 15 predictions, Dice "
        f"{low[0]:.2f} to {high[0]:.2f}, HD95 {low[1]:.1f} to {high[1]:.1f} mm"
    )
    tell(
        [
            Contest(
                question="Dice and HD95 of 3 regions in 15 subsets",
                setting=setting,
                unit="s",
                ours=kept,
                rounds=in_turns(contestants, arguments.repeat),
                agreement=f"Largest difference of a value to MONAI's: {apart:.1e}",
            )
        ],
        arguments.record,
    )


def moved(reference: Masks, subset: int) -> list[np.ndarray]:
    """A nested prediction of all regions: outlines moved by smooth noise, further for later subsets."""
    box = tuple(
        slice(max(side.start - SURROUNDINGS, 0), side.stop + SURROUNDINGS)
        for side in ndimage.find_objects(reference[0].view(np.uint8))[0]
    )
    rng = np.random.default_rng(subset)
    strength = np.linspace(*SHIFTS_MM, len(SUBSETS))[subset]
    masks: list[np.ndarray] = []
    for mask in reference:
        inside = mask[box]
        depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
        noise = ndimage.gaussian_filter(rng.normal(size=inside.shape), WAVE_MM)
        found = np.zeros_like(mask)
        found[box] = depth + strength * noise / noise.std() > 0
        masks.append(found & masks[-1] if masks else found)
    return masks


def one_hot(masks: Masks) -> torch.Tensor:
    """[1, region, x, y, z] as MONAI's transforms hand it to its metrics."""
    return torch.from_numpy(np.stack(masks)[None]).float()


def of_masks(predictions: Sequence[Masks], reference: Masks) -> Scores:
    """Scores by our two functions on whole grids."""
    return np.array(
        [
            [
                (metrics.dice(found, true), metrics.hd95(found, true, SPACING_MM))
                for found, true in zip(masks, reference, strict=True)
            ]
            for masks in predictions
        ]
    )


def of_surfaces(predictions: Sequence[Masks], reference: Masks, brain: tuple[slice, slice, slice]) -> Scores:
    """Scores as `glimpseg evaluate` computes them: in the brain's box, with the reference's surfaces made once."""
    predictions = [[mask[brain].copy() for mask in masks] for masks in predictions]
    reference = [mask[brain].copy() for mask in reference]
    surfaces = [Surface(mask, SPACING_MM) for mask in reference]
    return np.array(
        [
            [
                (metrics.dice(found, true), SurfaceDistances.between(Surface(found, SPACING_MM), surface).hd95)
                for found, true, surface in zip(masks, reference, surfaces, strict=True)
            ]
            for masks in predictions
        ]
    )


def of_monai(predictions: Sequence[torch.Tensor], reference: torch.Tensor) -> Scores:
    """Scores by MONAI's functions, called as its documentation says."""
    return np.stack(
        [
            torch.stack(
                [
                    compute_dice(found, reference, include_background=True)[0],
                    compute_hausdorff_distance(found, reference, include_background=True, percentile=95)[0],
                ],
                dim=-1,
            ).numpy()
            for found in predictions
        ]
    )


if __name__ == "__main__":
    main()
