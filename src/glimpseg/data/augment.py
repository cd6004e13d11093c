"""Data augmentation as in nnU-Net: parameters are sampled on the CPU and applied to a batch on its device.

A `Transform` holds the parameters of one sample. Sampling it takes microseconds. Applying it needs one resampling of
image and target and a few elementwise operations. Background stays exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated
from torch import Tensor
from torch.nn import functional

from glimpseg.modality import Modality


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Augment:
    """Strength of the augmentation. Defaults are those of nnU-Net v2, where it has them."""

    rotation_degrees: float = 30.0
    """Largest rotation about each axis, in degrees."""
    rotation: float = 0.2
    """Probability of a rotation."""
    one_plane: bool = False
    """True to rotate in one of the three planes by whole degrees, with nearest neighbours, and to fill with -1, as in
    RFNet and related methods."""
    zoom: tuple[float, float] = (0.7, 1.4)
    """Range of the isotropic scale factor."""
    zooming: float = 0.2
    """Probability of scaling."""
    mirror: tuple[bool, bool, bool] = (True, True, True)
    """Axes along which a crop is mirrored with probability 0.5."""
    noise: float = 0.1
    """Probability of Gaussian noise, with a variance of up to 0.1."""
    blur: float = 0.2
    """Probability of Gaussian blur, in half of the modalities, with a standard deviation of 0.5 to 1 voxel."""
    brightness: float = 0.15
    """Probability of a brightness change: intensities are multiplied by 0.75 to 1.25."""
    contrast: float = 0.15
    """Probability of a contrast change: each modality is scaled by 0.75 to 1.25 around its mean."""
    low_resolution: float = 0.25
    """Probability of simulated low resolution, in half of the modalities: 0.5 to 1 of the original."""
    gamma: float = 0.3
    """Probability of a gamma curve with exponent 0.7 to 1.5; mean and standard deviation are kept."""
    plane_jitter: float = 0.0
    """Largest change of gain and offset, drawn for each plane along the first axis and each modality.
    RFNet and related methods: 0.1."""

    def __post_init__(self) -> None:
        if self.one_plane and self.rotation_degrees < 1:
            raise ValueError(f"rotation_degrees should be at least 1 with one_plane, not {self.rotation_degrees}.")


MILD = Augment(rotation_degrees=15, rotation=0.3, zoom=(0.85, 1.2), blur=0.1, low_resolution=0.1)
"""Augmentation for the small networks and few steps of the `phantom` recipes: about half the strength of nnU-Net."""
RFNET = Augment(
    rotation_degrees=10, rotation=1, one_plane=True, zooming=0, noise=0, blur=0, brightness=0, contrast=0,
    low_resolution=0, gamma=0, plane_jitter=0.1,
)  # fmt: skip
"""Augmentation in the code of RFNet and mmFormer: -10 to 9 degrees, and each axis mirrored with probability 0.5."""


@dataclass(frozen=True)
class Transform:
    """Augmentation parameters of one sample. Arrays of length m hold one number for each modality."""

    matrix: Float[np.ndarray, "3 3"]
    """Matrix from voxel offsets relative to the centre of the result to offsets in the source."""
    nearest: bool
    """True for nearest-neighbour interpolation of the image, with -1 outside the crop; False for linear interpolation,
    with background outside."""
    noise_sd: float
    """Standard deviation of the Gaussian noise; 0 for none."""
    noise_seed: int
    """Seed for noise and plane jitter."""
    plane_jitter: float
    """Largest change of gain and offset for each plane; 0 for none."""
    blur_voxels: Float[np.ndarray, "m"]
    """Standard deviation of the blur; 0 for none."""
    gain: Float[np.ndarray, "m"]
    """Factor of the intensities."""
    contrast: Float[np.ndarray, "m"]
    """Factor around the mean."""
    resolution: Float[np.ndarray, "m"]
    """Simulated resolution as a share of the original; 1 for no change."""
    exponent: Float[np.ndarray, "m"]
    """Exponent of the gamma curve; 1 for no change."""


def sample(settings: Augment, rng: np.random.Generator) -> Transform:
    """Draw the augmentation parameters of one sample; under the same settings `rng` always advances equally far."""
    m = len(Modality)
    angles = _sometimes(rng, settings.rotation, np.radians(rng.uniform(-1, 1, 3) * settings.rotation_degrees), 0.0)
    if settings.one_plane:
        degrees = rng.integers(-round(settings.rotation_degrees), round(settings.rotation_degrees))
        angles = _sometimes(rng, settings.rotation, np.radians(degrees) * (np.arange(3) == rng.integers(3)), 0.0)
    scale = _sometimes(rng, settings.zooming, rng.uniform(*settings.zoom, 1), 1.0)
    mirror = np.where((rng.random(3) < 0.5) & np.array(settings.mirror), -1.0, 1.0)
    return Transform(
        matrix=_rotation(angles) @ np.diag(mirror) / scale,
        nearest=settings.one_plane,
        noise_sd=float(_sometimes(rng, settings.noise, np.sqrt(rng.uniform(0, 0.1, 1)), 0.0)[0]),
        noise_seed=int(rng.integers(2**62)),
        plane_jitter=settings.plane_jitter,
        blur_voxels=_sometimes_in_half(rng, settings.blur, rng.uniform(0.5, 1.0, m), 0.0),
        gain=_sometimes(rng, settings.brightness, rng.uniform(0.75, 1.25, m), 1.0),
        contrast=_sometimes(rng, settings.contrast, rng.uniform(0.75, 1.25, m), 1.0),
        resolution=_sometimes_in_half(rng, settings.low_resolution, rng.uniform(0.5, 1.0, m), 1.0),
        exponent=_sometimes(rng, settings.gamma, rng.uniform(0.7, 1.5, m), 1.0),
    )


def _sometimes(rng: np.random.Generator, probability: float, values: np.ndarray, otherwise: float) -> np.ndarray:
    return np.where(rng.random() < probability, values, otherwise)


def _sometimes_in_half(
    rng: np.random.Generator, probability: float, values: np.ndarray, otherwise: float
) -> np.ndarray:
    return np.where(rng.random(len(values)) < 0.5, _sometimes(rng, probability, values, otherwise), otherwise)


def apply(
    transforms: Sequence[Transform],
    image: Float[Tensor, "b m x y z"],
    labels: Int[Tensor, "b *n x y z"] | None,
) -> tuple[Float[Tensor, "b m x y z"], Int[Tensor, "b *n x y z"] | None]:
    """Apply one transform to each sample of a batch.

    Label maps are resampled with nearest neighbours. The image is resampled linearly, unless the transforms say
    `nearest`, which must be the same in all of them.

    Args:
        transforms: one for each sample.
        image: normalised intensities with background 0.
        labels: label maps of the batch, one or several for each sample, or None.

    Returns:
        The new image and labels.
    """
    image, labels = apply_spatial(transforms, image, labels)
    background = image == 0
    for sample_index, transform in enumerate(transforms):
        image[sample_index] = _apply_intensity(image[sample_index], transform)
    return torch.where(background, 0, image), labels


def apply_spatial(
    transforms: Sequence[Transform],
    image: Float[Tensor, "b m x y z"],
    labels: Int[Tensor, "b *n x y z"] | None,
) -> tuple[Float[Tensor, "b m x y z"], Int[Tensor, "b *n x y z"] | None]:
    """Apply only the spatial part of the transforms, with background outside the crop, or -1 with `nearest`.

    Arguments are those of `apply`; labels are 0 outside the crop. If no sample is transformed, the result is a copy of
    the image, and `labels` themselves.
    """
    size = torch.tensor(image.shape[2:], dtype=torch.float64)
    matrices = torch.as_tensor(np.stack([transform.matrix for transform in transforms]))
    if torch.equal(matrices, torch.eye(3, dtype=torch.float64).expand_as(matrices)):
        return image.clone(), labels
    # affine_grid uses coordinates from -1 to 1 along each axis, and the axes in reverse order.
    relative = (matrices * size / size[:, None]).flip(1, 2)
    theta = torch.cat([relative, torch.zeros(len(transforms), 3, 1)], 2).to(image)
    grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
    assert len({transform.nearest for transform in transforms}) == 1
    if transforms[0].nearest:
        turned = functional.grid_sample(image + 1, grid, "nearest", "zeros", align_corners=False) - 1
    else:
        turned = functional.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)
    if labels is None:
        return turned, None
    maps = labels.reshape(len(labels), -1, *image.shape[2:]).to(image)
    turned_maps = functional.grid_sample(maps, grid, "nearest", "zeros", align_corners=False)
    return turned, turned_maps.round().to(labels.dtype).reshape(labels.shape)


def _apply_intensity(image: Float[Tensor, "m x y z"], transform: Transform) -> Float[Tensor, "m x y z"]:
    if transform.noise_sd:
        generator = torch.Generator(image.device).manual_seed(transform.noise_seed)
        image = image + transform.noise_sd * torch.randn(image.shape, generator=generator, device=image.device)
    if transform.plane_jitter:
        drawn = np.random.default_rng(transform.noise_seed).uniform(-1, 1, (2, *image.shape[:2], 1, 1))
        gain, level = torch.as_tensor(transform.plane_jitter * drawn).to(image)
        image = image * (1 + gain) + level
    for channel, blur in enumerate(transform.blur_voxels):
        if blur:
            image[channel] = blurred(image[channel], float(blur))
    image = image * torch.as_tensor(transform.gain).to(image)[:, None, None, None]
    if (transform.contrast != 1).any():
        mean = image.mean((1, 2, 3), keepdim=True)
        image = mean + (image - mean) * torch.as_tensor(transform.contrast).to(image)[:, None, None, None]
    for channel, resolution in enumerate(transform.resolution):
        if resolution < 1:
            image[channel] = _coarsened(image[channel], float(resolution))
    for channel, exponent in enumerate(transform.exponent):
        if exponent != 1:
            image[channel] = _gamma(image[channel], float(exponent))
    return image


def blurred(image: Float[Tensor, "x y z"], sd_voxels: float) -> Float[Tensor, "x y z"]:
    """Apply a Gaussian filter, with 0 outside the image.

    The kernel has the integral of the Gaussian over each voxel, up to four standard deviations.
    """
    radius = int(max(4 * sd_voxels, 0.5) + 0.5)
    edges = torch.arange(-radius, radius + 2, dtype=torch.float) - 0.5
    kernel = (edges * (0.5**0.5 / torch.tensor(sd_voxels))).erf().diff().mul(0.5).to(image)
    blurred = image[None, None]
    for axis in range(3):
        shape, padding = [1] * 5, [0] * 3
        shape[axis + 2], padding[axis] = -1, radius
        blurred = functional.conv3d(blurred, kernel.reshape(shape), padding=padding)
    return blurred[0, 0]


def _coarsened(image: Float[Tensor, "x y z"], resolution: float) -> Float[Tensor, "x y z"]:
    small = [max(round(n * resolution), 1) for n in image.shape]
    coarse = functional.interpolate(image[None, None], small, mode="nearest")
    return functional.interpolate(coarse, image.shape, mode="trilinear", align_corners=False)[0, 0]


def _gamma(image: Float[Tensor, "x y z"], exponent: float) -> Float[Tensor, "x y z"]:
    low, span = image.min(), (image.max() - image.min()).clamp_min(1e-7)
    curved = ((image - low) / span) ** exponent * span + low
    return (curved - curved.mean()) / curved.std().clamp_min(1e-7) * image.std() + image.mean()


def _rotation(angles: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    cosines, sines = np.cos(angles), np.sin(angles)
    turn = np.eye(3)
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        single = np.eye(3)
        single[one, one] = single[two, two] = cosines[axis]
        single[one, two], single[two, one] = -sines[axis], sines[axis]
        turn = turn @ single
    return turn
