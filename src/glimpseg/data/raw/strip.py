"""Skull-stripping of a T1 or T1c image with deepbet, a network whose package includes its weights."""

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
"""Command that installs deepbet."""
THICK_RATIO = 2.0
"""Ratio of the slice thickness of T1 to that of T1c above which T1c is stripped in place of T1. Our choice."""
LARGEST_ML = 2300.0
"""Largest plausible mask. The mask of deepbet includes the fluid around the brain: 1960 ml in the Colin 27 head in MNI
space."""
SMALLEST_ML = 700.0
"""Mask volume below which the user is warned."""


def skull_strip_source(images: Mapping[Modality, Volume]) -> Modality:
    """Choose the sequence that deepbet strips: T1, or T1c if T1 is absent or much coarser.

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
    """Compute the brain mask (uint8, 0 or 1) of a T1-weighted head on its grid; on the CPU, in some seconds.

    Raises: UsageError without deepbet; InputError if the result is no brain.
    """
    mask = Volume(_mask_voxels(_deepbet(), image), image.affine)
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
        warnings.simplefilter("ignore", DeprecationWarning)  # from torch, about the format of the weights of deepbet
        return BrainExtraction(no_gpu=True)


def _mask_voxels(network: Any, image: Volume) -> np.ndarray:
    try:
        _, mask, _ = network.run(nibabel.Nifti1Image(image.voxels.astype(np.float32), image.affine))
    except (ValueError, AssertionError, RuntimeError) as error:  # deepbet raises these when it finds nothing
        raise InputError(
            f"deepbet found no brain ({str(error).splitlines()[0] if str(error) else type(error).__name__}). Make a "
            "mask with another tool (mri_synthstrip, hd-bet), and pass it with --brain-mask."
        ) from error
    return (np.asanyarray(mask.dataobj) > 0).astype(np.uint8)
