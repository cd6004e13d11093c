"""Images of the four sequences: signal of the tissues, coil sensitivity, slices, noise and file values."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glimpseg.modality import Modality
from glimpseg.phantom.anatomy import Brain
from glimpseg.phantom.artefacts import axis_matrices
from glimpseg.phantom.atlas import PARTS as PARTS_OF_BRAIN
from glimpseg.phantom.distractors import infarct_shares, vessel_share, white_matter_lesion_share
from glimpseg.phantom.lattice import Fields, separable
from glimpseg.phantom.looks import apply_looks
from glimpseg.phantom.plan import Acquisition, Brightening, Plan, Scanner
from glimpseg.phantom.settings import keyed_generator
from glimpseg.phantom.signal import tissue_signal
from glimpseg.phantom.structures import STRUCTURES, structure_shares
from glimpseg.phantom.tumour import PARTS, Lesion

TEXTURE = {"white": (0.025, 9.0), "grey": (0.03, 7.0)}
"""Variation of T1 in normal tissues: relative standard deviation and correlation length in mm."""
UNEVEN_GREY, UNEVEN_GREY_MM = (-0.3, -0.3, 0.8, 1.0), 30.0
"""Brightness of uneven grey matter in each sequence, relative to FLAIR, and its correlation length."""
RESIDUAL_MEAN = 0.7
"""Mean of the atlas's average T1 image inside the brain."""
INT16_CEILING = 32000
REGIONS = PARTS_OF_BRAIN[:4]
"""Parts of the brain with a signal of their own."""
GREY_REGIONS = ("nuclei", "cerebellar_grey")
"""Those that are grey matter."""


def brain_signal(plan: Plan, brain: Brain, lesion: Lesion | None, fields: Fields) -> Float[Tensor, "m n"]:
    """Return the signal of every brain voxel in every sequence, relative to normal white matter.

    Args:
        plan: Random decisions of the case.
        brain: Brain voxels and their normal tissue.
        lesion: Tissue of the tumour; None for a healthy head.
        fields: Random fields of the case.
    """
    basis, names = _tissue_shares(plan, brain, fields)
    textures = torch.stack(
        [share * sd * brain.gather(fields.on(brain.lattice, f"texture {name}", length))
         for share, (name, (sd, length)) in zip(_textured(basis, names), TEXTURE.items(), strict=True)]
    )  # fmt: skip
    weights, slopes = _normal_signals(plan.scanner, names)
    total = weights.to(fields.device) @ basis + slopes.to(fields.device) @ textures
    if plan.head.uneven_grey:
        uneven = plan.head.uneven_grey * _textured(basis, names)[1] * _alike_on_both_sides(brain, fields)
        total *= 1 + torch.tensor(UNEVEN_GREY, device=fields.device)[:, None] * uneven
    if lesion is not None:
        total[:, lesion.touched] *= 1 - lesion.shares.sum(0)
        total[:, lesion.touched] += _lesion_signal(plan.scanner, lesion)
        total = apply_looks(plan, brain, lesion, signal=total, fields=fields)
    for channel, (modality, acquisition) in enumerate(zip(Modality, plan.scanner.acquisitions, strict=True)):
        nuclei = acquisition.nuclei * (brain.t1 - RESIDUAL_MEAN)
        total[channel] *= 1 + nuclei if modality in Modality.T1 | Modality.T1C else 1 - nuclei
    return total


def _alike_on_both_sides(brain: Brain, fields: Fields) -> Float[Tensor, "n"]:
    """Return a random field of the brain that is the same on the left and on the right."""
    x, y, z = brain.lattice.axes
    folded = replace(brain.lattice, axes=(np.abs(x), y, z))
    return brain.gather(fields.on(folded, "uneven grey", UNEVEN_GREY_MM))


def _tissue_shares(plan: Plan, brain: Brain, fields: Fields) -> tuple[Float[Tensor, "k n"], tuple[str, ...]]:
    """Return the shares of all tissues except the tumour's, which sum to 1, and the names of the tissues."""
    white, grey, fluid = brain.normal
    ill, vessel = white_matter_lesion_share(plan, brain, fields), vessel_share(plan, brain, fields)
    if brain.regional is not None and plan.structures is not None:
        ill = torch.maximum(ill, plan.structures.lesions * brain.regional.parts[PARTS_OF_BRAIN.index("lesions")])
    kept = (1 - ill) * (1 - vessel)
    basis = torch.stack([white * kept, grey * kept, fluid * kept, ill * (1 - vessel), vessel])
    if plan.distractors.infarct is not None:
        swollen, hollow = infarct_shares(plan.distractors.infarct, brain, fields)
        basis = basis * (1 - swollen - hollow)
        basis[2] += hollow
        basis[3] += swollen
    names = ("white", "grey", "fluid", "oedema", "vessel")
    if brain.regional is None:
        return basis, names
    return _regional_shares(plan, brain, basis, fields), (*names, *REGIONS, *STRUCTURES)


def _regional_shares(plan: Plan, brain: Brain, basis: Float[Tensor, "5 n"], fields: Fields) -> Float[Tensor, "13 n"]:
    """Return the shares with those of `REGIONS` and `STRUCTURES`, which displace the others."""
    assert brain.regional is not None
    structures = structure_shares(plan, brain, fields)
    free = 1 - structures.sum(0)
    basis = basis * free
    regions = brain.regional.parts[: len(REGIONS)] * free
    taken = torch.zeros_like(basis[:2])
    shares = []
    for name, region in zip(REGIONS, regions, strict=True):
        of = 1 if name in GREY_REGIONS else 0
        share = torch.minimum(region, basis[of] - taken[of]).clamp(min=0)
        taken[of] += share
        shares.append(share)
    basis[:2] -= taken
    return torch.cat([basis, torch.stack(shares), structures])


def _textured(basis: Tensor, names: tuple[str, ...]) -> Float[Tensor, "2 n"]:
    """Return the shares of all white and of all grey matter."""
    if REGIONS[0] not in names:
        return basis[:2]
    white, grey = basis[0].clone(), basis[1].clone()
    for name in REGIONS:
        (grey if name in GREY_REGIONS else white).add_(basis[names.index(name)])
    return torch.stack([white, grey])


def _normal_signals(scanner: Scanner, names: tuple[str, ...]) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m 2"]]:
    """Return each tissue's signal in each sequence (white matter: 1), and its slope in log T1 for textured tissues."""
    weights, slopes = torch.zeros(len(Modality), len(names)), torch.zeros(len(Modality), len(TEXTURE))
    for channel, (modality, acquisition) in enumerate(zip(Modality, scanner.acquisitions, strict=True)):
        after_contrast = modality is Modality.T1C
        gains = [acquisition.gains.get(name, 1.0) for name in names]
        signal = [
            gain * tissue_signal(acquisition.sequence, scanner.tissues[name], after_contrast)
            for gain, name in zip(gains, names, strict=True)
        ]
        longer = [
            gain * tissue_signal(acquisition.sequence, scanner.tissues[name], after_contrast, t1_factor=1.01)
            for gain, name in zip(gains, TEXTURE, strict=False)
        ]
        weights[channel] = torch.stack(signal) / signal[0]
        if acquisition.flatness != 1:
            for name in ("grey", *GREY_REGIONS):
                if name in names:
                    weights[channel, names.index(name)] **= acquisition.flatness
        slopes[channel] = (torch.stack(longer) / torch.stack(signal[: len(TEXTURE)]) - 1) / 0.01
    return weights, slopes * weights[:, : len(TEXTURE)]


def _lesion_signal(scanner: Scanner, lesion: Lesion) -> Float[Tensor, "m t"]:
    """Return the signal of the lesion's tissues in the voxels it touches, relative to normal white matter."""
    total = torch.zeros((len(Modality), len(lesion.touched)), device=lesion.shares.device)
    for channel, (modality, acquisition) in enumerate(zip(Modality, scanner.acquisitions, strict=True)):
        after_contrast = modality is Modality.T1C
        unit = float(tissue_signal(acquisition.sequence, scanner.tissues["white"], after_contrast))
        for share, name in zip(lesion.shares, PARTS, strict=True):
            uptake = lesion.uptake if name == "enhancing" else 1.0
            signal = tissue_signal(
                acquisition.sequence,
                scanner.tissues[name],
                after_contrast,
                t1_factor=lesion.t1_factor,
                t2_factor=lesion.t2_factor,
                uptake=uptake,
            )
            signal = acquisition.gains.get(name, 1.0) * signal
            if acquisition.flatness != 1 and modality in Modality.T1 | Modality.T1C:
                # The contrast of tissue darker than white matter changes in the same way as that of grey matter.
                signal = torch.where(signal < unit, unit * (signal / unit) ** acquisition.flatness, signal)
            total[channel] += share * signal / unit
    return total


def scan_images(plan: Plan, brain: Brain, signal: Float[Tensor, "m n"], fields: Fields) -> Float[Tensor, "m n"]:
    """Return the brain voxels of the images as whole numbers from 1 to 32000, or 0 where a sequence was not scanned.

    Args:
        plan: Random decisions of the case.
        brain: Brain voxels.
        signal: Signal in each sequence, from `brain_signal`.
        fields: Random fields of the case.
    """
    return torch.stack(
        [_scan_sequence(plan, brain, signal[k], acquisition, fields=fields, name=modality.key)
         for k, (modality, acquisition) in enumerate(zip(Modality, plan.scanner.acquisitions, strict=True))]
    )  # fmt: skip


def _scan_sequence(
    plan: Plan, brain: Brain, signal: Tensor, acquisition: Acquisition, *, fields: Fields, name: str
) -> Float[Tensor, "n"]:
    tissues = plan.scanner.tissues
    after_contrast = name == Modality.T1C.key
    fluid = tissue_signal(acquisition.sequence, tissues["fluid"], after_contrast) / tissue_signal(
        acquisition.sequence, tissues["white"], after_contrast
    )
    coils = brain.gather(fields.on(brain.lattice, f"bias {name}", acquisition.bias_mm))
    sensitivity = torch.exp(acquisition.bias * coils)
    if acquisition.brightening is not None:
        sensitivity = sensitivity * _central_gain(acquisition.brightening, brain).to(fields.device)
    if acquisition.stripes:
        sensitivity = sensitivity * brain.gather(_slice_gains(plan.seed, acquisition, brain, name)).to(fields.device)
    along = axis_matrices(acquisition, brain.lattice.shape, plan.settings.spacing_mm)
    # Noise passes through the same slices and resampling as the signal. Division by their gain keeps its level.
    gain = math.prod(float(np.sqrt((m[len(m) // 2] ** 2).sum())) for m in along)
    count = len(signal)
    noisy = signal * sensitivity + acquisition.noise / gain * fields.white(count, f"noise {name}")
    # The brain is surrounded by fluid here, so that blurred slices do not darken the cortex.
    seen = brain.gather(separable(brain.scatter(noisy, fill=acquisition.surround * float(fluid)), along))
    magnitude = torch.hypot(seen, acquisition.noise * fields.white(count, f"noise {name} imaginary"))
    if acquisition.ceiling is not None:
        magnitude = magnitude.clamp(max=acquisition.ceiling)
    values = (acquisition.scale * magnitude**acquisition.gamma).round().clamp(1, INT16_CEILING)
    return values * _coverage_mask(acquisition, brain) if any(acquisition.cut_mm) else values


def _central_gain(brightening: Brightening, brain: Brain) -> Float[Tensor, "n"]:
    """Return the factor of the central brightening for each brain voxel."""
    away = brain.positions_mm(torch.device("cpu")) - torch.tensor(brightening.middle_mm)[:, None]
    return 1 + brightening.strength * torch.exp(-0.5 * (away / brightening.width_mm).square().sum(0))


def _slice_gains(seed: int, acquisition: Acquisition, brain: Brain, name: str) -> Float[Tensor, "x y z"]:
    """Return the brightness of each slice; neighbours are independent, as with interleaved acquisition."""
    axis = acquisition.slice_axis
    at = torch.from_numpy(brain.lattice.axes[axis])
    number = ((at - at[0]) / max(acquisition.slice_mm, brain.lattice.spacing_mm)).floor().long()
    drawn = keyed_generator(seed, f"stripes {name}").standard_normal(int(number.max()) + 1).astype(np.float32)
    slices = 1 + acquisition.stripes * torch.from_numpy(drawn)[number]
    return slices.reshape([-1 if k == axis else 1 for k in range(3)]).expand(brain.lattice.shape)


def _coverage_mask(acquisition: Acquisition, brain: Brain) -> Float[Tensor, "n"]:
    """Return 1 where the sequence covers the brain, and 0 at the bottom and top that it lacks."""
    height = torch.from_numpy(brain.lattice.axes[2].astype(np.float32)).expand(brain.lattice.shape)
    height = brain.gather(height).to(brain.depth_mm.device)
    bottom, top = acquisition.cut_mm
    return ((height >= height.min() + bottom) & (height <= height.max() - top)).float()
