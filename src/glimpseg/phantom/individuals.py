"""Heads of individuals: label maps with FreeSurfer's numbers, read and turned into an `Atlas`."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from torch import Tensor

from glimpseg.data.nifti import read_volume
from glimpseg.errors import InputError
from glimpseg.phantom.atlas import FAR_MM, PARTS, Atlas, Places, growth_direction
from glimpseg.phantom.lattice import blur, linear_matrix, separable, signed_distance
from glimpseg.volume import Volume, bounding_box, resample_labels

CLASSES = ("outside", "white", "grey", "fluid", *PARTS)
"""Tissue classes of a label map. `PARTS` count as grey or white matter, too."""
FREESURFER: dict[str, tuple[int, ...]] = {
    "white": (2, 41, 85, 251, 252, 253, 254, 255, 5001, 5002),
    "grey": (3, 17, 18, 42, 53, 54, 19, 55, 20, 56, 80, 81, 82),
    "fluid": (4, 5, 14, 15, 24, 30, 43, 44, 62, 72),
    "nuclei": (9, 10, 11, 12, 13, 26, 48, 49, 50, 51, 52, 58),
    "cerebellar_grey": (8, 47),
    "cerebellar_white": (7, 46),
    "brainstem": (16, 28, 60, 170, 171, 172, 173, 174, 175, 178, 179),
    "plexus": (31, 63, 136, 137, 163, 164),
    "lesions": (25, 57, 77, 78, 79),
}
"""Numbers of FreeSurfer's table (aseg) for each class, and those that SynthSeg's maps add (25, 57, 136, 137, 163 and
164). Cortical parcels (aparc+aseg: 1000 to 2999) are grey matter, white-matter parcels (3000 to 4999) are white matter.
Numbers from 500 to 999 are outside the brain.
"""
OUTSIDE = (500, 999)
CORTEX, PARCELS = (1000, 2999), (3000, 4999)
LATERAL_VENTRICLES = (4, 5, 43, 44)
CEREBELLUM, STEM = (7, 8, 46, 47), (16, 28, 60)
LEFT, RIGHT = (2, 3), (41, 42)
NEEDED: dict[str, tuple[int, ...]] = {
    "white matter (2, 41)": (2, 41),
    "cortex (3, 42 or parcels)": (3, 42),
    "lateral ventricles (4, 43)": (4, 43),
    "cerebellum (7, 8, 46, 47)": CEREBELLUM,
}
CLOSING_MM = 8.0
"""Sulci and fissures up to twice this wide belong to the head's volume (morphological closing)."""
FLUID_MM = 0.2
"""Thickness of the fluid around the brain."""
MARGIN_MM = 10
"""Voxels around the brain that are kept."""
SMALLEST_ML, LARGEST_ML = 700.0, 2200.0
"""Brain volumes of living adults and older children, with room on both sides."""
AVERAGE_MM = (145.0, 181.0, 143.0)
"""Width, length and height (top to the bottom of the cerebellum) of the average brain."""
BELOW_CENTRE = 0.535
"""Share of the height that lies above the atlas's centre, in the average brain."""
T1_INSIDE = 0.7
"""Mean of the average brain's T1 map; individuals have no T1 map."""
KEPT = 32
"""Label maps that stay in memory, 10 MB each."""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Label map of one head, cropped to the brain; axes RAS."""

    name: str
    classes: UInt8[np.ndarray, "x y z"]
    """Index into `CLASSES`; voxels of 1 mm."""
    smooth: Float[np.ndarray, "3 x2 y2 z2"]
    """Depth below the surface of the head's volume (mm, negative outside), distance above the tentorium, distance from
    the brainstem (mm); voxels of 2 mm."""
    ventricles: Float[np.ndarray, "x2 y2 z2"]
    """Share of lateral ventricle, smoothed over 2 mm."""
    centre: np.ndarray
    midline: tuple[float, float, float]
    size: float


def load_individual(folder: str | Path, name: str, pool: int) -> Atlas:
    """Load one head on the CPU.

    Args:
        folder: Folder of label maps.
        name: File name.
        pool: Edge length in mm of the atlas's voxels, a whole number from 1 on.

    Raises:
        InputError: The file cannot be read, or it is no label map of a whole head.
    """
    return _as_atlas(str(folder), name, pool)


@functools.lru_cache(maxsize=2)
def _as_atlas(folder: str, name: str, pool: int) -> Atlas:
    drawn = load_label_map(str(Path(folder) / name))
    classes = torch.from_numpy(drawn.classes)
    depth = _enlarged(torch.from_numpy(drawn.smooth[:1]), classes.shape, pool)[0]
    one = {
        label: _pooled((classes == k).float(), pool)
        for k, label in enumerate(CLASSES)
        if label not in ("outside", "fluid")
    }
    white = one["white"] + one["cerebellar_white"] + one["brainstem"] + one["lesions"]
    grey = one["grey"] + one["cerebellar_grey"] + one["nuclei"]
    pools = drawn.ventricles
    smooth = torch.from_numpy(np.stack([pools, np.zeros_like(pools), *growth_direction(pools)]))
    return Atlas(
        maps=torch.stack([depth, grey, white, torch.full_like(grey, T1_INSIDE)]),
        smooth=smooth.float(),
        centre=drawn.centre,
        places=Places(
            tentorium_mm=torch.from_numpy(drawn.smooth[1]),
            stem_mm=torch.from_numpy(drawn.smooth[2]),
            midline=drawn.midline,
        ),
        parts=torch.stack([one[part] for part in PARTS]),
        name=name,
        size=drawn.size,
        pool=pool,
    )


def _pooled(share: Float[Tensor, "x y z"], pool: int) -> Float[Tensor, "u v w"]:
    return share if pool == 1 else torch.nn.functional.avg_pool3d(share[None], pool)[0]


def _enlarged(maps: Float[Tensor, "c u v w"], shape: torch.Size, pool: int) -> Float[Tensor, "c x y z"]:
    """Interpolate maps of 2 mm to voxels of `pool` mm."""
    matrices = [
        linear_matrix((np.arange(n // pool) + 0.5) * pool - 0.5, np.arange(m) * 2.0 + 0.5)
        for n, m in zip(shape, maps.shape[1:], strict=True)
    ]
    return separable(maps, matrices)


@functools.lru_cache(maxsize=KEPT)
def load_label_map(path: str) -> LabelMap:
    """Read a label map, and compute what phantoms need of it; cached.

    Raises:
        InputError: The file cannot be read, or it is no label map of a whole head.
    """
    name = Path(path).name
    numbers = _read_numbers(path, name)
    classes = _classes(numbers, name)
    tissue = (classes > 0) & (classes != CLASSES.index("fluid"))
    sides = bounding_box(tissue)
    assert sides is not None
    box = tuple(slice(max(side.start - MARGIN_MM, 0), side.stop + MARGIN_MM) for side in sides)
    numbers, classes, tissue = numbers[box], classes[box], tissue[box]
    even = tuple(slice(0, n - n % 2) for n in classes.shape)
    numbers, classes, tissue = numbers[even], classes[even], tissue[even]
    coarse = _coarse(tissue) >= 0.5
    hull = _closed(coarse, CLOSING_MM / 2)
    depth = 2.0 * blur(signed_distance(torch.from_numpy(hull)), 0.6).numpy() + FLUID_MM
    below = _coarse(np.isin(numbers, CEREBELLUM)) >= 0.5
    above = _coarse(np.isin(classes, [CLASSES.index(c) for c in ("white", "grey", "lesions")])) >= 0.5
    stem = _coarse(np.isin(numbers, STEM)) >= 0.5
    ventricles = blur(torch.from_numpy(_coarse(np.isin(numbers, LATERAL_VENTRICLES))), 1.0).numpy()
    centre, size, midline = _frame(numbers, tissue, below)
    tentorium = (_distance(below) - _distance(above)) / 2
    smooth = np.stack([depth, tentorium.clip(-FAR_MM, FAR_MM), _distance(stem).clip(0, FAR_MM)]).astype(np.float32)
    return LabelMap(
        name=name, classes=classes, smooth=smooth, ventricles=ventricles, centre=centre, midline=midline, size=size
    )


def _read_numbers(path: str, name: str) -> Int[np.ndarray, "x y z"]:
    volume = read_volume(path)
    if not np.array_equal(volume.voxels, np.rint(volume.voxels)):
        raise InputError(
            f"{name}: a label map has whole numbers, and this file has others. Was it interpolated, or is it an image?"
        )
    numbers = volume.voxels.astype(np.int32)
    volume = Volume(numbers, volume.affine).ras()
    fine = volume.grid.at_spacing(1.0)
    return resample_labels(volume, fine).voxels if fine.shape != volume.voxels.shape else volume.voxels


def _classes(numbers: np.ndarray, name: str) -> UInt8[np.ndarray, "x y z"]:
    """Return the class of each voxel."""
    largest = int(numbers.max())
    table = np.full(max(largest, PARCELS[1]) + 1, 255, np.uint8)
    table[0] = 0
    table[OUTSIDE[0] : OUTSIDE[1] + 1] = 0
    table[CORTEX[0] : CORTEX[1] + 1] = CLASSES.index("grey")
    table[PARCELS[0] : PARCELS[1] + 1] = CLASSES.index("white")
    for label, members in FREESURFER.items():
        for number in members:
            if number <= largest:
                table[number] = CLASSES.index(label)
    if int(numbers.min()) < 0:
        raise InputError(f"{name}: a label map has numbers from 0 on; {int(numbers.min())} came.")
    found = np.unique(numbers)
    unknown = [int(n) for n in found if table[n] == 255]
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (" ..." if len(unknown) > 8 else "")
        raise InputError(
            f"{name}: the numbers {shown} are not in FreeSurfer's or SynthSeg's table as glimpseg knows it. Give a map "
            "with these numbers (aseg, aparc+aseg, SynthSeg), or change them to 0."
        )
    present = set(found.tolist())
    missing = [
        words
        for words, needed in NEEDED.items()
        if not present & set(needed) and not ("cortex" in words and any(CORTEX[0] <= n <= CORTEX[1] for n in present))
    ]
    if missing:
        raise InputError(f"{name}: a whole head is needed; this map has no {', no '.join(missing)}.")
    classes = table[numbers]
    millilitres = int(((classes > 0) & (classes != CLASSES.index("fluid"))).sum()) / 1000
    if not SMALLEST_ML <= millilitres <= LARGEST_ML:
        raise InputError(
            f"{name}: the brain measures {millilitres:.0f} ml; {SMALLEST_ML:.0f} to {LARGEST_ML:.0f} ml are expected. "
            "Check the voxel size in the file's header."
        )
    return classes


def _frame(
    numbers: np.ndarray, tissue: np.ndarray, cerebellum: np.ndarray
) -> tuple[np.ndarray, float, tuple[float, float, float]]:
    """Return the head's centre (mm from voxel 0), its size relative to the average brain, and its midline."""
    side = np.isin(numbers, RIGHT).astype(np.float32) - np.isin(numbers, LEFT)
    width, length, height = (np.flatnonzero(tissue.any(axis=tuple({0, 1, 2} - {k}))) for k in range(3))
    bottom = 2 * int(np.flatnonzero(cerebellum.any(axis=(0, 1)))[0])
    y = (length[0] + length[-1]) / 2
    z = height[-1] - BELOW_CENTRE * (height[-1] - bottom)
    x = (width[0] + width[-1]) / 2
    at = np.argwhere(side != 0)[::7]
    near = np.abs(at[:, 0] - x) < 15
    at, value = at[near], side[tuple(at[near].T)]
    design = np.column_stack([np.ones(len(at)), at[:, 0], at[:, 1] - y, at[:, 2] - z])
    constant, along_x, along_y, along_z = np.linalg.lstsq(design, value, rcond=None)[0]
    midline = (float(-constant / along_x), float(-along_y / along_x), float(-along_z / along_x))
    own = (width[-1] - width[0] + 1, length[-1] - length[0] + 1, height[-1] - bottom + 1)
    size = float(np.prod([mine / average for mine, average in zip(own, AVERAGE_MM, strict=True)]) ** (1 / 3))
    return np.array([midline[0], y, z]), size, midline


def _coarse(mask: np.ndarray) -> np.ndarray:
    """Return the share of a mask in voxels of 2 mm."""
    x, y, z = (n // 2 for n in mask.shape)
    return mask.reshape((x, 2, y, 2, z, 2)).mean(axis=(1, 3, 5), dtype=np.float32)


def _closed(mask: Bool[np.ndarray, "x y z"], radius: float) -> Bool[np.ndarray, "x y z"]:
    """Return the morphological closing of a mask by a ball of `radius` voxels."""
    pad = math.ceil(radius) + 1
    near = ndimage.distance_transform_edt(~np.pad(mask, pad)) <= radius
    inner = ndimage.distance_transform_edt(near) > radius
    return ndimage.binary_fill_holes(inner)[pad:-pad, pad:-pad, pad:-pad]


def _distance(mask: np.ndarray) -> np.ndarray:
    """Return the distance in mm of each voxel of 2 mm to a mask."""
    return 2.0 * ndimage.distance_transform_edt(~mask)
