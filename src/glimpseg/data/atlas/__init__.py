"""Average brain (ICBM 152): phantoms deform it, and the appearance check locates tissue with it."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True, eq=False)
class AverageBrain:
    """Maps of the average brain; axes RAS. README.md beside this file describes how they were derived."""

    maps: Float[np.ndarray, "4 x y z"]
    """Four maps of 1 mm: depth (mm below the surface, down to -2 outside), probability of grey matter, probability of
    white matter, T1 intensity (0 to 1)."""
    ventricles: Float[np.ndarray, "x2 y2 z2"]
    """Lateral ventricles, 0 to 1, on voxels of 2 mm."""
    centre: Float[np.ndarray, "3"]
    """Voxel of `maps` at the centre of the head."""


@functools.cache
def average_brain() -> AverageBrain:
    """Return the average brain; it is read from the package at the first call and kept in memory."""
    packed = (resources.files(__name__) / "mni152.npz").read_bytes()
    with np.load(io.BytesIO(packed), allow_pickle=False) as halves:
        whole = {name: _mirrored(halves[name]) for name in ("depth", "grey", "white", "t1", "ventricles")}
        centre = halves["centre"].astype(np.float64)
    scaled: list[np.ndarray] = [whole["depth"] / 10 - 2, whole["grey"] / 127, whole["white"] / 127, whole["t1"] / 63]
    return AverageBrain(np.stack(scaled).astype(np.float32), whole["ventricles"] / 255, centre)


def _mirrored(half: UInt8[np.ndarray, "x y z"]) -> UInt8[np.ndarray, "x2 y z"]:
    """Complete a symmetric map from its right half."""
    return np.concatenate([half[:0:-1], half])
