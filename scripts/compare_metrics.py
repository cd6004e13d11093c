"""Compares HD95 with medpy, MONAI and surface-distance on 50 random pairs of masks, and prints the largest differences.

    python scripts/compare_metrics.py

Pairs: smooth blobs, blobs that reach the border, single voxels, empty masks; five spacings, isotropic and not.
"""

from __future__ import annotations

import itertools
import warnings

import medpy.metric.binary
import numpy as np
import surface_distance
import torch
from scipy import ndimage

from glimpseg import metrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.metrics import compute_hausdorff_distance

SHAPE = (30, 34, 28)
SPACINGS = ((1.0, 1.0, 1.0), (0.9375, 0.9375, 1.2), (0.5, 0.5, 3.0), (2.0, 1.1, 3.3), (0.2, 0.7, 1.0))
KINDS = ("blobs", "blobs at the border", "blob and voxel", "voxels", "one empty", "both empty")
PAIRS = 50


def main() -> None:
    """Prints a line for each kind of pair, on 1 mm voxels and on others."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number, (spacing, kind) in zip(range(PAIRS), itertools.cycle(itertools.product(SPACINGS, KINDS)), strict=False):
        a, b = pair(kind, np.random.default_rng(number))
        group = kind, "1 mm" if spacing == (1.0, 1.0, 1.0) else "other"
        found.setdefault(group, []).append(differences(a, b, spacing))
    names = ["pooled, medpy", "directed, MONAI", "surface-distance", "in voxels", "the stated rule"]
    print(f"{'largest difference, mm':26}{'pairs':>6}" + "".join(f"{name:>18}" for name in names))
    for (kind, grid), entries in sorted(found.items()):
        cells = (f"{max(e[name] for e in entries):18.2g}" if name in entries[0] else f"{'':18}" for name in names)
        print(f"{kind + ', ' + grid:26}{len(entries):6}{''.join(cells)}")


def pair(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two masks of a kind."""
    noise = [ndimage.gaussian_filter(rng.normal(size=SHAPE), 3) for _ in range(2)]
    inside = np.pad(np.ones(tuple(n - 8 for n in SHAPE), bool), 4)
    blobs = [(field > 0.03) & (inside if kind == "blobs" else True) for field in noise]
    voxels = [field == field.max() for field in noise]
    empty = np.zeros(SHAPE, bool)
    return {
        "blobs": (blobs[0], blobs[1]),
        "blobs at the border": (blobs[0], blobs[1]),
        "blob and voxel": (blobs[0], voxels[1]),
        "voxels": (voxels[0], voxels[1]),
        "one empty": (blobs[0], empty),
        "both empty": (empty, empty),
    }[kind]


def differences(a: np.ndarray, b: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, float]:
    """From each program, where it is defined; for empty masks, from the stated rule."""
    ours, pooled = metrics.hd95(a, b, spacing), metrics.hd95_pooled(a, b, spacing)
    if not a.any() or not b.any():
        rule = float(np.linalg.norm(np.array(SHAPE) * spacing)) if a.any() or b.any() else 0.0
        return {"the stated rule": abs(ours - rule) + abs(pooled - rule)}
    tensors = [torch.from_numpy(mask)[None, None] for mask in (a, b)]
    monai = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
    theirs = surface_distance.compute_robust_hausdorff(surface_distance.compute_surface_distances(a, b, spacing), 95)
    return {
        "pooled, medpy": abs(pooled - medpy.metric.binary.hd95(a, b, voxelspacing=spacing)),
        "directed, MONAI": abs(ours - float(monai)),
        "surface-distance": abs(ours - theirs),
        "in voxels": abs(ours - theirs) / float(np.linalg.norm(spacing)),
    }


if __name__ == "__main__":
    main()
