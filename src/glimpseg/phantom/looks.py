"""Measured signal of a tumour's label regions: mean, unevenness and its correlation between sequences.

Tissue tables and signal equations give each part of a tumour a signal. Patients' tumours vary more, and differently. A
`Look` therefore moves each region's mean to a measured one and adds the variation that the region lacks.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glimpseg.modality import Modality
from glimpseg.phantom.anatomy import Brain
from glimpseg.phantom.lattice import Fields
from glimpseg.phantom.plan import Look, Plan
from glimpseg.phantom.tumour import PARTS, Lesion
from glimpseg.region import Label

COARSE_MM, FINE_MM = 8.0, 2.6
"""Correlation lengths of the variation inside a region."""
SAMPLE = 100_000
"""Brain voxels from which the normal brain's median and spread are estimated."""
LEAST_VARIATION = 0.4
"""Smallest factor on the variation that the tissue tables give."""
DARKEST = 0.03
"""Lowest signal, relative to normal white matter."""
WIDEST = (0.31, 0.36, 0.60, 0.18)
"""Largest robust standard deviation of the normal brain relative to its median; T1, T1c, T2, FLAIR (measured: at most
0.31, 0.30, 0.60 and 0.18). A head with much fluid has a wider one, but its tumour is not brighter."""
BRIGHTEST = (1.3, 2.4, 2.6, 2.4)
"""Largest mean of a region relative to the median of the normal brain (measured: 1.1, 1.9, 2.2, 2.1)."""
MEMBERS = {Label.NCR: ("necrosis", "solid", "blood"), Label.ED: ("oedema",), Label.ET: ("enhancing",)}
"""Parts of each label region."""
FULL_SHARE = 0.5
"""Share of a region's mean share from which a voxel belongs to it fully."""


def robust_scale(values: Float[Tensor, "m n"]) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
    """Return median and robust standard deviation (0.7413 times the interquartile range) of each row."""
    quartiles = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], device=values.device), dim=1)
    return quartiles[1], 0.7413 * (quartiles[2] - quartiles[0])


def apply_looks(
    plan: Plan, brain: Brain, lesion: Lesion, *, signal: Float[Tensor, "m n"], fields: Fields
) -> Float[Tensor, "m n"]:
    """Return the signal with the measured looks of the plan's tumour; changes `signal` in place.

    Args:
        plan: Random decisions of the case.
        brain: Brain voxels.
        lesion: Tissue of the tumour.
        signal: Signal of every brain voxel in every sequence, relative to normal white matter.
        fields: Random fields of the case.
    """
    if plan.tumour is None or not plan.tumour.looks or not len(lesion.touched):
        return signal
    normal = torch.ones(signal.shape[1], dtype=torch.bool, device=signal.device)
    normal[lesion.touched] = False
    values = signal[:, normal]
    middle, scale = robust_scale(values[:, :: max(1, values.shape[1] // SAMPLE)])
    scale = torch.minimum(scale, middle * torch.tensor(WIDEST, device=middle.device))
    here, labels = signal[:, lesion.touched], lesion.labels[lesion.touched]
    fields_here = _variation(brain, lesion, fields)
    changed = here.clone()
    for label, look in plan.tumour.looks.items():
        share = sum(lesion.shares[PARTS.index(name)] for name in MEMBERS[label])
        assert isinstance(share, Tensor)
        chosen = labels == label
        if not bool(chosen.any()):
            continue
        belongs = (share / (FULL_SHARE * share[chosen].mean()).clamp(min=1e-3)).clamp(0, 1)
        for channel in range(len(Modality)):
            varied = _varied(
                here[channel], chosen, look, channel=channel, unit=(middle[channel], scale[channel]), fields=fields_here
            )
            changed[channel] += belongs * varied
    signal[:, lesion.touched] = changed.clamp(min=DARKEST)
    return signal


def _varied(
    values: Tensor, chosen: Tensor, look: Look, *, channel: int, unit: tuple[Tensor, Tensor], fields: Tensor
) -> Float[Tensor, "t"]:
    """Return what a region's look adds to the signal of one sequence.

    Args:
        values: Signal in the voxels of the lesion.
        chosen: True in the region.
        look: Measured signal of the region.
        channel: Number of the sequence.
        unit: Median and robust standard deviation of the normal brain.
        fields: Random fields from `_variation`.
    """
    middle, scale = unit
    mean, spread = values[chosen].mean(), values[chosen].std(correction=0)
    wanted = math.hypot(look.coarse[channel], look.fine[channel])
    kept = (wanted * scale / spread.clamp(min=1e-6)).clamp(LEAST_VARIATION, 1)
    missing = ((wanted * scale) ** 2 - (kept * spread) ** 2).clamp(min=0).sqrt()
    mixing = np.linalg.cholesky(np.array(look.together))[channel].astype(np.float32)
    coarse, fine = torch.einsum("k,lkt->lt", torch.from_numpy(mixing).to(fields.device), fields)
    field = (look.coarse[channel] * coarse + look.fine[channel] * fine) / max(wanted, 1e-6)
    away = (values - mean).clamp(-3 * float(spread), 3 * float(spread))
    target = torch.minimum(middle + look.means[channel] * scale, BRIGHTEST[channel] * middle)
    return target - mean + (kept - 1) * away + missing * field.clamp(-2.5, 2.5)


def _variation(brain: Brain, lesion: Lesion, fields: Fields) -> Float[Tensor, "2 4 t"]:
    """Return a coarse and a fine random field for each sequence, in the voxels of the lesion."""
    _, y, z = brain.lattice.shape
    flat = brain.inside[lesion.touched]
    at = torch.stack([flat // (y * z), flat // z % y, flat % z])
    low, high = at.amin(1).tolist(), at.amax(1).tolist()
    lattice = brain.lattice.crop((slice(low[0], high[0] + 1), slice(low[1], high[1] + 1), slice(low[2], high[2] + 1)))
    i, j, k = (at[axis] - low[axis] for axis in range(3))
    fine = max(FINE_MM, 1.5 * brain.lattice.spacing_mm)
    return torch.stack(
        [
            torch.stack([fields.on(lattice, f"2 look {kind} {m.key}", length)[i, j, k] for m in Modality])
            for kind, length in (("coarse", COARSE_MM), ("fine", fine))
        ]
    )
