"""Rule on the alignment of the sequences: edges of one image lie where those of another lie."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import fft, ndimage

from glimpseg.modality import Modality
from glimpseg.segmentation.quality.evidence import Evidence
from glimpseg.segmentation.quality.finding import Finding, finding
from glimpseg.volume import bounding_box

COARSE_MM = 3.0
"""Smallest voxel side at which edges are compared; finer evidence is averaged over cubes of two voxels."""
RIM_MM = 7.0
"""Depth of brain that is left out: all brains have an edge there."""
FARTHEST_MM = 24.0
"""Largest displacement along an axis that is looked for."""
FAR_MM = 6.0
"""Displacement of one sequence from which on a person should look."""
LEAST_CORRELATION = {2: 0.2, 3: 0.25, 4: 0.3}
"""Correlation of the edges with the most similar other sequence below which a person should look, by the number of
sequences."""
FEWEST_VOXELS = 500
"""Fewest voxels for a correlation."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Comparison of the edges of two images."""

    direct: float
    """Correlation of the images as they are."""
    best: float
    """Highest correlation over all displacements."""
    displaced_mm: float
    """Displacement with the highest correlation."""
    mirrored: float
    """Correlation if one of them is mirrored left-right."""


def alignment(evidence: Evidence) -> list[Finding] | str:
    """Judge the displacement, the mirroring and the likeness of the edges of each sequence against the others."""
    if len(evidence.images) == 1:
        return "there is one sequence"
    maps = edge_maps(evidence)
    if min(int((edge != 0).sum()) for edge in maps.values()) < FEWEST_VOXELS:
        return "too little normal brain is left"
    spacing = evidence.spacing_mm * _step(evidence)
    pairs = {frozenset((a, b)): match(maps[a], maps[b], spacing) for a, b in itertools.combinations(maps, 2)}
    least = LEAST_CORRELATION[len(maps)]
    return [one for modality in maps for one in _findings(modality, pairs, least)]


def _findings(modality: Modality, pairs: Mapping[frozenset[Modality], Match], least: float) -> list[Finding]:
    """Judge one sequence by its most similar partner, at the displacement and mirroring that fits best."""
    mine = {pair: one for pair, one in pairs.items() if modality in pair}
    pair, closest = max(mine.items(), key=lambda item: max(item[1].best, item[1].mirrored))
    (other,) = pair - {modality}
    near = max(one.direct for one in mine.values())
    moved = closest.displaced_mm if closest.best > closest.mirrored else 0.0
    unlike = f"the edges of {modality.title} do not lie where those of the other sequences lie"
    said = {
        "moved": f"{modality.title} and {other.title} are displaced by about {moved:.0f} mm",
        "mirrored": f"{modality.title} and {other.title} fit better if one of them is mirrored left-right",
        "unlike": f"{unlike} (correlation {near:.2f}): another patient, or not registered",
    }
    scores = {
        "moved": moved / FAR_MM,
        "mirrored": closest.mirrored / max(closest.best, 1e-3) if closest.mirrored > least else 0.0,
        "unlike": (1 - near) / (1 - least),
    }
    return [finding("alignment", scores[name], said[name]) for name in scores]


def edge_maps(evidence: Evidence) -> dict[Modality, Float[np.ndarray, "i j k"]]:
    """Return a map of the edges of each image: ranks of the size of the gradient, from -0.5 to 0.5.

    It is 0 outside of the normal tissue that lies deep in the brain. The maps are cropped to the brain.
    """
    box = bounding_box(evidence.brain)
    assert box is not None, "a prepared study has a brain"
    deep, step = evidence.normal & (evidence.depth_mm > RIM_MM), _step(evidence)
    maps = {}
    for modality, image in evidence.images.items():
        edges = _thinned(ndimage.gaussian_gradient_magnitude(image, 1.0)[box], step)
        where = _thinned((deep & evidence.inside[modality])[box].astype(np.float32), step) > 0.5
        maps[modality] = np.zeros(edges.shape, np.float32)
        maps[modality][where] = ranks(edges[where]) - 0.5
    return maps


def match(one: Float[np.ndarray, "i j k"], two: Float[np.ndarray, "i j k"], spacing_mm: float) -> Match:
    """Compare two maps of edges as they are, displaced, and mirrored along the first axis.

    Each correlation is over the voxels where both maps are not 0.
    """
    reach = max(int(FARTHEST_MM // spacing_mm), 1)
    table = displaced_correlations(one, two, reach)
    place = np.unravel_index(int(table.argmax()), table.shape)
    flipped = displaced_correlations(one, np.flip(two, 0), 1)
    return Match(
        direct=float(table[reach, reach, reach]),
        best=float(table[place]),
        displaced_mm=spacing_mm * math.dist(place, (reach, reach, reach)),
        mirrored=float(flipped.max()),
    )


def displaced_correlations(
    one: Float[np.ndarray, "i j k"], two: Float[np.ndarray, "i j k"], reach: int
) -> Float[np.ndarray, "n n n"]:
    """Return the correlation of two maps for each displacement of up to `reach` voxels along each axis.

    The sums over the common voxels come from Fourier transforms. Displacements with fewer than a third of the voxels
    in common get 0. The middle of the result is no displacement.
    """
    shape = [fft.next_fast_len(n + reach, real=True) for n in one.shape]
    first, second = (
        [fft.rfftn(part.astype(np.float32), shape) for part in (edge, edge != 0, edge**2)] for edge in (one, two)
    )

    def summed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        table = np.roll(fft.irfftn(a * np.conj(b), shape), (reach,) * 3, (0, 1, 2))
        return np.asarray(table[: 2 * reach + 1, : 2 * reach + 1, : 2 * reach + 1])

    shared = summed(first[1], second[1])
    powers = summed(first[2], second[1]) * summed(first[1], second[2])
    enough = shared > min((one != 0).sum(), (two != 0).sum()) / 3
    return np.where(enough, summed(first[0], second[0]) / np.sqrt(np.maximum(powers, 1e-6)), 0)


def ranks(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Return the rank of each value, from 0 to 1."""
    order = np.empty(len(values), np.float32)
    order[values.argsort(kind="stable")] = np.linspace(0, 1, len(values), dtype=np.float32)
    return order


def _step(evidence: Evidence) -> int:
    return 2 if evidence.spacing_mm < COARSE_MM else 1


def _thinned(values: np.ndarray, step: int) -> Float[np.ndarray, "i j k"]:
    """Average over cubes of `step` voxels; what is left over at the ends is dropped."""
    i, j, k = (n // step for n in values.shape)
    cut = values[: i * step, : j * step, : k * step]
    return np.asarray(cut.reshape((i, step, j, step, k, step)).mean((1, 3, 5)), np.float32)
