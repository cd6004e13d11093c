"""MRI signal equations, and the tissue parameters that they use.

T1 and T2 of normal tissue are of the order of magnitude reported by Wansapura et al. (J Magn Reson Imaging 1999) and
Stanisz et al. (Magn Reson Med 2005). All values are effective ones: they were calibrated so that the contrast between
regions matches that of patients. They are no measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

RELAXIVITY = 4.2e-3
"""Longitudinal relaxivity of a gadolinium chelate, per ms and mM (order of magnitude at clinical field strengths)."""
ECHO_STAR = 0.7
"""T2* as a share of T2 in gradient-echo sequences, which have no refocusing pulse."""


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """MRI parameters of one tissue in one case."""

    density: float
    """Proton density; water is 1."""
    t1_ms: float
    t2_ms: float
    gadolinium_mm: float = 0.0
    """Concentration of contrast agent after injection, in mmol/l."""


@dataclass(frozen=True, kw_only=True)
class TissueRange:
    """Distribution that the parameters of a tissue are drawn from."""

    density: float
    t1_ms: tuple[float, float]
    """Mean T1 at 3 T and at 1.5 T."""
    t2_ms: float
    spread: float
    """Standard deviation of the logarithm of T1 and of T2 between cases; the density varies by 0.3 times this value."""
    gadolinium_mm: tuple[float, float]


Row = tuple[str, float, float, float, float, float, tuple[float, float]]


def _tissue_ranges(rows: Iterable[Row]) -> dict[str, TissueRange]:
    """Return the distributions of a table: name, density, T1 at 3 T and at 1.5 T, T2, spread, gadolinium."""
    return {
        name: TissueRange(density=density, t1_ms=(t1_3t, t1_15t), t2_ms=t2, spread=spread, gadolinium_mm=gadolinium)
        for name, density, t1_3t, t1_15t, t2, spread, gadolinium in rows
    }


TISSUES = _tissue_ranges(
    (
        ("white", 0.70, 850, 640, 78, 0.04, (0.004, 0.012)),
        ("grey", 0.82, 1330, 1010, 92, 0.04, (0.012, 0.03)),
        ("fluid", 1.00, 4200, 4100, 1900, 0.04, (0.0, 0.003)),
        ("vessel", 0.60, 1650, 1400, 50, 0.10, (0.5, 1.5)),
        ("oedema", 0.88, 1480, 1170, 190, 0.10, (0.0, 0.02)),
        ("solid", 0.87, 1400, 1100, 138, 0.12, (0.0, 0.03)),
        ("enhancing", 0.87, 1350, 1070, 124, 0.10, (0.05, 0.22)),
        ("necrosis", 0.90, 1600, 1270, 160, 0.24, (0.0, 0.012)),
        ("cavity", 0.98, 3400, 3200, 1100, 0.10, (0.0, 0.02)),
        ("blood", 0.78, 780, 620, 60, 0.15, (0.0, 0.03)),
    )
)
"""Tissue parameters by name.

`solid` is tumour that does not enhance. `vessel` is flowing blood; its low density models the flow void.
"""

REGIONAL = _tissue_ranges(
    (
        ("nuclei", 0.78, 1130, 860, 76, 0.03, (0.008, 0.02)),
        ("cerebellar_grey", 0.83, 1290, 980, 94, 0.03, (0.012, 0.03)),
        ("cerebellar_white", 0.71, 890, 670, 80, 0.03, (0.004, 0.012)),
        ("brainstem", 0.74, 960, 730, 82, 0.03, (0.006, 0.014)),
        ("plexus", 0.88, 1700, 1400, 180, 0.15, (0.30, 1.20)),
        ("sinus", 0.80, 1650, 1400, 75, 0.30, (0.60, 2.50)),
        ("dura", 0.70, 1050, 850, 48, 0.20, (0.20, 1.00)),
        ("remains", 0.72, 520, 420, 62, 0.35, (0.02, 0.15)),
    )
)
"""Tissues that `phantom-2` adds: parts of the brain, venous blood, dura, and remains outside the brain."""

NORMAL = ("white", "grey", "fluid", "vessel")
LESION = ("necrosis", "solid", "enhancing", "cavity", "oedema", "blood")


@dataclass(frozen=True, kw_only=True)
class SpinEcho:
    """Two-dimensional spin echo, or turbo spin echo at its effective echo time."""

    tr_ms: float
    te_ms: float
    planar: ClassVar[bool] = True

    def signal(self, density: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        """Return the signal: saturation recovery with T2 decay until the echo."""
        return density * (1 - torch.exp(-self.tr_ms / t1)) * torch.exp(-self.te_ms / t2)


@dataclass(frozen=True, kw_only=True)
class InversionGradientEcho:
    """Three-dimensional inversion-prepared gradient echo (MPRAGE)."""

    tr_ms: float
    ti_ms: float
    planar: ClassVar[bool] = False

    def signal(self, density: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        """Return the signal: magnitude of the inverted magnetisation in mid-readout; independent of T2."""
        return density * (1 - 2 * torch.exp(-self.ti_ms / t1) / (1 + torch.exp(-self.tr_ms / t1))).abs()


@dataclass(frozen=True, kw_only=True)
class SpoiledGradientEcho:
    """Three-dimensional spoiled gradient echo (SPGR, FLASH)."""

    tr_ms: float
    te_ms: float
    flip_degrees: float
    planar: ClassVar[bool] = False

    def signal(self, density: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        """Return the signal: Ernst's steady state with T2* decay until the echo."""
        flip, decay = math.radians(self.flip_degrees), torch.exp(-self.tr_ms / t1)
        steady = math.sin(flip) * (1 - decay) / (1 - math.cos(flip) * decay)
        return density * steady * torch.exp(-self.te_ms / (ECHO_STAR * t2))


@dataclass(frozen=True, kw_only=True)
class InversionSpinEcho:
    """Two-dimensional inversion recovery with turbo spin echo; FLAIR if the inversion time suppresses fluid."""

    tr_ms: float
    te_ms: float
    ti_ms: float
    planar: ClassVar[bool] = True

    def signal(self, density: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        """Return the signal: magnitude of the recovered magnetisation with T2 decay until the echo."""
        recovered = (1 - 2 * torch.exp(-self.ti_ms / t1) + torch.exp(-self.tr_ms / t1)).abs()
        return density * recovered * torch.exp(-self.te_ms / t2)


@dataclass(frozen=True, kw_only=True)
class VolumeSpinEcho(SpinEcho):
    """Three-dimensional turbo spin echo, at its effective echo time."""

    planar: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class VolumeInversionSpinEcho(InversionSpinEcho):
    """Three-dimensional inversion recovery with turbo spin echo, such as three-dimensional FLAIR."""

    planar: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class GradientEcho(SpoiledGradientEcho):
    """Two-dimensional gradient echo with a late echo, weighted by T2*."""

    planar: ClassVar[bool] = True


Sequence = SpinEcho | InversionGradientEcho | SpoiledGradientEcho | InversionSpinEcho


def nulling_inversion_ms(tr_ms: float, t1_ms: float) -> float:
    """Return the inversion time at which a tissue with T1 `t1_ms` gives no signal."""
    return t1_ms * math.log(2 / (1 + math.exp(-tr_ms / t1_ms)))


def tissue_signal(
    sequence: Sequence,
    tissue: Tissue,
    contrast: bool,
    t1_factor: Tensor | float = 1.0,
    t2_factor: Tensor | float = 1.0,
    uptake: Tensor | float = 1.0,
) -> Tensor:
    """Return the signal of a tissue, optionally with voxel-wise variation.

    Args:
        sequence: Sequence and its timing.
        tissue: Tissue parameters.
        contrast: True if gadolinium has been given.
        t1_factor: Factor on T1, scalar or per voxel.
        t2_factor: Factor on T2, scalar or per voxel.
        uptake: Factor on the concentration of contrast agent, scalar or per voxel; unused without `contrast`.

    Returns:
        Signal in arbitrary units; one value per voxel if a factor is per voxel, else a scalar.
    """
    t1 = torch.as_tensor(tissue.t1_ms * t1_factor)
    t2 = torch.as_tensor(tissue.t2_ms * t2_factor)
    if contrast:
        t1 = 1 / (1 / t1 + RELAXIVITY * tissue.gadolinium_mm * uptake)
    return sequence.signal(torch.as_tensor(tissue.density), t1, t2)


def draw_tissue(rng: np.random.Generator, kind: TissueRange, field_strength: float) -> Tissue:
    """Draw the parameters of a tissue for one case.

    Args:
        rng: Random generator.
        kind: Distribution of the tissue.
        field_strength: 3.0 or 1.5 tesla.
    """
    density, t1, t2 = rng.standard_normal(3) * kind.spread
    return Tissue(
        density=kind.density * (1 + 0.3 * density),
        t1_ms=kind.t1_ms[0 if field_strength == 3.0 else 1] * math.exp(t1),
        t2_ms=kind.t2_ms * math.exp(t2),
        gadolinium_mm=float(rng.uniform(*kind.gadolinium_mm)),
    )
