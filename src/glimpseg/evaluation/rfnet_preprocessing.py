"""Preprocessing of the protocol `rfnet`: absent sequences take part in the crop and the normalisation.

It follows the code that RFNet and mmFormer share. It serves to compare with published numbers only: nothing else in
glimpseg lets an absent sequence change a result. Reached through `Protocol.prepare`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from glimpseg.data import nifti
from glimpseg.data.preprocess import Prepared, Preprocess, reference_on
from glimpseg.errors import InputError
from glimpseg.modality import ALL, Modality
from glimpseg.study import Frame, Study
from glimpseg.volume import Volume, difference_in_words, same_grid

SMALLEST_SIDE = 128
"""Smallest side of the crop in voxels: the window of mmFormer."""


def prepare_rfnet(study: Study, settings: Preprocess) -> Prepared:
    """Crop and normalise all four sequences together.

    The axes keep the order of the files until the end; the result is RAS, as from `prepare`. The crop is that of
    `rfnet_box`. Each sequence gets mean 0 and standard deviation 1 over the voxels whose sum over the sequences is
    positive; the background is shifted along, and nothing is clipped. The reference keeps what lies inside the crop.

    Args:
        study: A study with all four sequences.
        settings: Preprocessing of the model's recipe; only its spacing is used.

    Raises:
        InputError: The study lacks a sequence, its sequences lie on several grids, its voxels do not have the spacing
            of the recipe, no voxel counts as brain, or a file cannot be used.
    """
    if study.available != ALL:
        raise InputError(
            f"Study {study.id}: the protocol rfnet crops and normalises by all four sequences, but "
            f"{(ALL & ~study.available).title} is missing. Use --protocol clinical."
        )
    volumes = {
        m: image if isinstance(image, Volume) else nifti.read_volume(image, f"{study.id}: {m.title}")
        for m, image in _ordered(study)
    }
    own = volumes[Modality.T1].grid
    for modality, volume in volumes.items():
        if not same_grid(own, volume.grid):
            raise InputError(
                f"Study {study.id}: the protocol rfnet needs all sequences on one grid, but {modality.title} lies "
                f"on another than T1 ({difference_in_words(own, volume.grid)}). Use --protocol clinical."
            )
    if np.abs(np.array(own.spacing_mm) - settings.spacing_mm).max() > 1e-3:
        raise InputError(
            f"Study {study.id}: the protocol rfnet resamples nothing, but the voxels are "
            f"{'x'.join(f'{side:.2g}' for side in own.spacing_mm)} mm and the model works on "
            f"{settings.spacing_mm:g} mm. Use --protocol clinical."
        )
    stack = np.stack([volume.voxels for volume in volumes.values()]).astype(np.float32)
    box = rfnet_box(stack)
    grid = own.crop(box)
    image = np.stack([Volume(values, grid.affine).ras().voxels for values in _normalised(stack[:, *box], study.id)])
    tissue = np.stack([Volume(values != 0, grid.affine).ras().voxels for values in stack[:, *box]])
    reference = reference_on(study, own)
    if reference is not None:
        inside = np.zeros_like(reference.voxels)
        inside[box] = reference.voxels[box]
        reference = Volume(inside, own.affine)
    return Prepared(
        id=study.id,
        image=image,
        inside=tissue,
        available=ALL,
        target=None if reference is None else Volume(reference.voxels[box], grid.affine).ras().voxels,
        grid=grid.ras(),
        own=own,
        reference=reference,
        margin=max(image.shape),  # so that no subset is cropped further
    )


def rfnet_box(stack: Float[np.ndarray, "m x y z"]) -> tuple[slice, slice, slice]:
    """Return the crop in voxels, with the axes as stored.

    Each side goes from the first voxel whose largest value over the sequences is not 0 to the last one, exclusive (as
    in their code). A side shorter than 128 grows by half of the missing voxels on each end, and by one more at the
    upper end. A start below 0 moves the whole side up; the end of the array cuts it off.

    Raises: InputError if every voxel is 0.
    """
    where = np.nonzero(stack.max(0))
    if not where[0].size:
        raise InputError("No brain was found: every sequence is 0 everywhere. Check the images.")
    x, y, z = (_side(int(index.min()), int(index.max()), n) for index, n in zip(where, stack.shape[1:], strict=True))
    return x, y, z


def _side(low: int, high: int, voxels: int) -> slice:
    if high - low < SMALLEST_SIDE:
        half = (SMALLEST_SIDE - (high - low)) // 2
        low, high = low - half, high + half + 1
    if low < 0:
        low, high = 0, high - low
    return slice(low, min(high, voxels))


def _normalised(stack: Float[np.ndarray, "m x y z"], study: str) -> Float[np.ndarray, "m x y z"]:
    brain = stack.sum(0) > 0
    if not brain.any():
        raise InputError(
            f"Study {study}: the protocol rfnet takes voxels whose sum over the sequences is positive for brain, and "
            "there is none. Are the images z-scored already? Use --protocol clinical."
        )
    values = stack[:, brain].astype(np.float64)
    mean, deviation = values.mean(1)[:, None, None, None], np.maximum(values.std(1), 1e-8)[:, None, None, None]
    return ((stack - mean) / deviation).astype(np.float32)


def _ordered(study: Study) -> list[tuple[Modality, Volume | Path | Frame]]:
    return [(modality, study.images[modality]) for modality in Modality]
