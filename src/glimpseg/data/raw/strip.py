"""The brain of a T1 or T1c image, by deepbet: a network whose weights come with its package."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import nibabel
import numpy as np

from glimpseg.data.notices import warn
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
from glimpseg.volume import Volume

INSTALL = "pip install 'glimpseg[skullstrip]'"
THICK_RATIO = 2.0
"""T1c is stripped in place of T1 if the slices of T1 are thicker by this. Ours."""
LARGEST_ML = 2300.0
"""deepbet's mask holds the fluid around the brain too: 1960 ml in Colin's head as MNI has it."""
SMALLEST_ML = 700.0


def skull_strip_source(images: Mapping[Modality, Volume]) -> Modality:
    """The sequence from which deepbet takes the brain: T1, or T1c where T1 is absent or much coarser.

    Raises: InputError if there is neither.
    """
    given = [modality for modality in (Modality.T1, Modality.T1C) if modality in images]
    if not given:
        raise InputError(
            "The head is still there, and deepbet finds the brain in T1 or T1c alone; this study has neither. Make a "
            "mask with a tool that takes any sequence (mri_synthstrip, hd-bet), and pass it with --brain-mask."
        )
    if len(given) == 2:
        thickness = [max(images[modality].grid.spacing_mm) for modality in given]
        return given[1] if thickness[0] > THICK_RATIO * thickness[1] else given[0]
    return given[0]


def brain_mask(image: Volume) -> Volume:
    """The brain mask (uint8, 0 or 1) of a T1-weighted head, on its grid; on the processor, in some seconds.

    Raises: UsageError without deepbet; InputError if what it finds is no brain.
    """
    mask = Volume(_masked(_deepbet(), image), image.affine)
    size = float(mask.voxels.sum()) * mask.grid.voxel_ml
    if not 0 < size <= LARGEST_ML:
        raise InputError(
            f"deepbet found {size:.0f} ml of brain, which cannot be right (at most {LARGEST_ML:.0f}). Look at the "
            "image; make a mask with another tool (mri_synthstrip, hd-bet), and pass it with --brain-mask."
        )
    if size < SMALLEST_ML:
        warn(f"deepbet found only {size:.0f} ml of brain. Is the field of view a slab? Look at the mask.")
    return mask


def _deepbet() -> Any:
    try:
        from deepbet import BrainExtraction  # type: ignore
    except ImportError as error:
        raise UsageError(
            f"The head is still there, and deepbet, which would find the brain, is not installed. Run: {INSTALL}  (or "
            "make a mask with another tool, as mri_synthstrip or hd-bet, and pass it with --brain-mask; --raw no if "
            "the images are stripped after all)."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's word on the form of deepbet's weights
        return BrainExtraction(no_gpu=True)


def _masked(network: Any, image: Volume) -> np.ndarray:
    try:
        _, mask, _ = network.run(nibabel.Nifti1Image(image.voxels.astype(np.float32), image.affine))
    except (ValueError, AssertionError, RuntimeError) as error:  # how deepbet says that it found nothing
        raise InputError(
            f"deepbet found no brain ({str(error).splitlines()[0] if str(error) else type(error).__name__}). Make a "
            "mask with another tool (mri_synthstrip, hd-bet), and pass it with --brain-mask."
        ) from error
    return (np.asanyarray(mask.dataobj) > 0).astype(np.uint8)
