"""From tissues to the four images of a scanner: signal, coils, slices, noise, file values."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glimpseg.data.phantom.anatomy import Brain
from glimpseg.data.phantom.field import Fields, gaussian_matrix, separable
from glimpseg.data.phantom.plan import Acquisition, Plan, Scanner
from glimpseg.data.phantom.signal import response
from glimpseg.data.phantom.tumour import PARTS, Lesion
from glimpseg.modality import Modality

TEXTURE = {"white": (0.025, 9.0), "grey": (0.03, 7.0)}
"""Variation of normal tissues' T1: relative standard deviation, correlation length in mm."""
RESIDUAL = 0.05
"""How much of the atlas' own T1 contrast, such as that of the deep nuclei, is kept beside the tissues'."""
RESIDUAL_MEAN = 0.7
"""Mean of the atlas' T1 average inside the brain."""
IN_PLANE_DEVIATION = 0.45
"""Blur within a slice, standard deviation in mm at 1 mm voxels."""
MINIMAL_SIGMA = 0.2
"""In voxels; below it a sampled Gaussian is the identity."""
PROFILE = 2.355
"""Full width at half maximum of a Gaussian, in standard deviations."""
INT16_CEILING = 32000
LESION_SHARE = 0.8
"""How much of a voxel a white-matter lesion takes where it is strongest."""


def contrasts(plan: Plan, brain: Brain, lesion: Lesion | None, fields: Fields) -> Float[Tensor, "m n"]:
    """Signal of every brain voxel in every sequence, relative to normal white matter's."""
    basis, names = _composition(plan, brain, fields)
    textures = torch.stack(
        [share * sd * brain.gather(fields.on(brain.lattice, f"texture {name}", length))
         for share, (name, (sd, length)) in zip(basis[:2], TEXTURE.items(), strict=True)]
    )  # fmt: skip
    weights, slopes = _normal_signals(plan.scanner, names)
    total = weights.to(fields.device) @ basis + slopes.to(fields.device) @ textures
    if lesion is not None:
        total[:, lesion.touched] *= 1 - lesion.shares.sum(0)
        total[:, lesion.touched] += _lesion_signal(plan.scanner, lesion)
    nuclei = RESIDUAL * (brain.t1 - RESIDUAL_MEAN)
    for channel, modality in enumerate(Modality):
        total[channel] *= 1 + nuclei if modality in Modality.T1 | Modality.T1C else 1 - nuclei
    return total


def _composition(plan: Plan, brain: Brain, fields: Fields) -> tuple[Float[Tensor, "k n"], tuple[str, ...]]:
    """Shares of all tissues without the tumour, and their names; they sum to 1."""
    white, grey, fluid = brain.normal
    spots = (
        brain.gather(fields.on(brain.lattice, "white-matter lesions", 7.0)) - plan.distractors.white_matter_lesions
    ) * 3
    ill = LESION_SHARE * 2 * spots.clamp(0, 1) * white * (white - 0.6).clamp(0, 1)
    vessel = _vessels(plan, brain, fields)
    kept = (1 - ill) * (1 - vessel)
    return torch.stack([white * kept, grey * kept, fluid * kept, ill * (1 - vessel), vessel]), (
        "white", "grey", "fluid", "oedema", "vessel",
    )  # fmt: skip


def _vessels(plan: Plan, brain: Brain, fields: Fields) -> Float[Tensor, "n"]:
    """Share of flowing blood: lines where two random fields vanish, mostly in fluid, and the choroid plexus."""
    a, b = (brain.gather(fields.on(brain.lattice, f"vessels {k}", 16.0)) for k in "ab")
    width = 0.10 * max(1.0, math.sqrt(plan.settings.spacing_mm))
    fluid = brain.normal[2]
    lines = 0.9 * torch.exp(-(a**2 + b**2) / (2 * width**2)) * (0.25 + 0.75 * fluid)
    tufts = (3 * (brain.gather(fields.on(brain.lattice, "choroid plexus", 5.0)) - 1.5)).clamp(0, 1)
    chamber = (4 * brain.ventricles).clamp(0, 1) * (fluid - 0.8).clamp(0, 1)
    plexus = 3 * plan.distractors.choroid_plexus * tufts * chamber
    return (lines + plexus).clamp(0, 0.9)


def _normal_signals(scanner: Scanner, names: tuple[str, ...]) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m 2"]]:
    """Signal of each tissue in each sequence, white matter 1, and its slope in log T1 for those with texture."""
    weights, slopes = torch.zeros(len(Modality), len(names)), torch.zeros(len(Modality), len(TEXTURE))
    for channel, (modality, acquisition) in enumerate(zip(Modality, scanner.acquisitions, strict=True)):
        given = modality is Modality.T1C
        signal = [response(acquisition.sequence, scanner.tissues[name], given) for name in names]
        longer = [response(acquisition.sequence, scanner.tissues[name], given, t1_factor=1.01) for name in TEXTURE]
        weights[channel] = torch.stack(signal) / signal[0]
        slopes[channel] = (torch.stack(longer) / torch.stack(signal[: len(TEXTURE)]) - 1) / 0.01
    return weights, slopes * weights[:, : len(TEXTURE)]


def _lesion_signal(scanner: Scanner, lesion: Lesion) -> Float[Tensor, "m t"]:
    """What the lesion's tissues add in the voxels it touches, relative to normal white matter."""
    total = torch.zeros((len(Modality), len(lesion.touched)), device=lesion.shares.device)
    for channel, (modality, acquisition) in enumerate(zip(Modality, scanner.acquisitions, strict=True)):
        given = modality is Modality.T1C
        unit = float(response(acquisition.sequence, scanner.tissues["white"], given))
        for share, name in zip(lesion.shares, PARTS, strict=True):
            uptake = lesion.uptake if name == "enhancing" else 1.0
            signal = response(
                acquisition.sequence, scanner.tissues[name], given, lesion.t1_factor, lesion.t2_factor, uptake
            )
            total[channel] += share * signal / unit
    return total


def scan(plan: Plan, brain: Brain, signal: Float[Tensor, "m n"], fields: Fields) -> Float[Tensor, "m n"]:
    """The images' brain voxels as whole numbers from 1 to 32000."""
    return torch.stack(
        [_scanned(plan, brain, signal[k], acquisition, fields, modality.key)
         for k, (modality, acquisition) in enumerate(zip(Modality, plan.scanner.acquisitions, strict=True))]
    )  # fmt: skip


def _scanned(
    plan: Plan, brain: Brain, signal: Tensor, acquisition: Acquisition, fields: Fields, name: str
) -> Float[Tensor, "n"]:
    tissues = plan.scanner.tissues
    given = name == Modality.T1C.key
    fluid = response(acquisition.sequence, tissues["fluid"], given) / response(
        acquisition.sequence, tissues["white"], given
    )
    sensitivity = torch.exp(acquisition.bias * brain.gather(fields.on(brain.lattice, f"bias {name}", 110.0)))
    profile = _profile(acquisition, brain.lattice.shape, plan.settings.spacing_mm)
    # Noise passes through the same slices and resampling as the signal; dividing by their gain keeps its level.
    gain = math.prod(float(np.sqrt((m[len(m) // 2] ** 2).sum())) for m in profile)
    count = len(signal)
    noisy = signal * sensitivity + acquisition.noise / gain * fields.white(count, f"noise {name}")
    # Around the brain lies fluid, so blurred slices do not darken the cortex as a cut-out would.
    seen = brain.gather(separable(brain.spread(noisy, fill=float(fluid)), profile))
    magnitude = torch.hypot(seen, acquisition.noise * fields.white(count, f"noise {name} imaginary"))
    return (acquisition.scale * magnitude**acquisition.gamma).round().clamp(1, INT16_CEILING)


def _profile(acquisition: Acquisition, shape: tuple[int, int, int], spacing_mm: float) -> list[np.ndarray]:
    """Blur and leftover shift along each axis, as matrices."""
    sigmas = [IN_PLANE_DEVIATION / spacing_mm] * 3
    sigmas[acquisition.slice_axis] = max(IN_PLANE_DEVIATION, acquisition.slice_mm / PROFILE) / spacing_mm
    return [
        gaussian_matrix(n, max(sigma, MINIMAL_SIGMA), shift / spacing_mm)
        for n, sigma, shift in zip(shape, sigmas, acquisition.shift_mm, strict=True)
    ]
