"""Random intensity changes of a view: parameters are drawn first, then applied, so that a view is reproducible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from glimpseg.methods.voxmmsd.config import Intensities


@dataclass(frozen=True)
class IntensityChange:
    """Intensity changes of one view, applied in the order of the fields; m counts the modalities."""

    noise: Float[np.ndarray, "m x y z"]
    blur_voxels: Float[np.ndarray, "m"]
    """Standard deviation of the blur, in voxels; 0: no blur."""
    gain: Float[np.ndarray, "m"]
    shift: Float[np.ndarray, "m"]
    """Number that is added, as a share of the modality's range; 0: none."""
    contrast: Float[np.ndarray, "m"]
    """Factor on the difference from the mean, within the range of values; 1: no change."""
    exponent: Float[np.ndarray, "m"]
    """Exponent (gamma) of the values scaled to 0 ... 1 over the view, and back; 1: no change."""


def random_change(settings: Intensities, shape: tuple[int, ...], rng: np.random.Generator) -> IntensityChange:
    """Return random changes of one view.

    The number of random draws does not depend on their values.

    Args:
        settings: probabilities and ranges.
        shape: shape of the view, m x y z.
        rng: source of random numbers; advances.
    """
    m = shape[0]

    def some(whole: float, each: float, values: np.ndarray, otherwise: float) -> np.ndarray:
        happens = (rng.random() < whole) & (rng.random(m) < each)
        return np.where(happens, values, otherwise)

    below, above = rng.uniform(settings.contrasts[0], 1, m), rng.uniform(1, settings.contrasts[1], m)
    return IntensityChange(
        noise=settings.noise_sd * rng.standard_normal(shape, np.float32),
        blur_voxels=some(settings.blur, 0.5, rng.uniform(*settings.blur_voxels, m), 0.0),
        gain=some(settings.gain, 0.5, rng.uniform(*settings.gains, 1), 1.0),
        shift=some(settings.shift, settings.shifted_share, rng.uniform(0, settings.largest_shift, m), 0.0),
        contrast=some(settings.contrast, 1.0, np.where(rng.random(m) < 0.5, below, above), 1.0),
        exponent=some(1.0, settings.gamma, rng.uniform(*settings.exponents, m), 1.0),
    )


def apply_change(
    change: IntensityChange, view: Float[np.ndarray, "m x y z"], unit: Float[np.ndarray, "m"]
) -> Float[np.ndarray, "m x y z"]:
    """Return the changed view, a new array.

    Args:
        change: what to change.
        view: images of one crop.
        unit: range of intensities of each modality; noise and shift are shares of it.
    """
    wide = unit[:, None, None, None].astype(np.float32)
    return np.stack(
        [_changed_channel(change, channel, values, unit) for channel, values in enumerate(view + change.noise * wide)]
    )


def _changed_channel(
    change: IntensityChange, channel: int, values: Float[np.ndarray, "x y z"], unit: Float[np.ndarray, "m"]
) -> Float[np.ndarray, "x y z"]:
    if change.blur_voxels[channel]:
        values = gaussian_filter(values, change.blur_voxels[channel])
    values *= change.gain[channel]
    values += change.shift[channel] * unit[channel]
    if change.contrast[channel] != 1:
        lowest, highest, mean = values.min(), values.max(), values.mean()
        values = np.clip((values - mean) * change.contrast[channel] + mean, lowest, highest)
    lowest, span = values.min(), np.ptp(values)
    if change.exponent[channel] != 1 and span:
        values = ((values - lowest) / span) ** change.exponent[channel] * span + lowest
    return values
