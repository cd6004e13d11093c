"""Shapes of real tumours: label maps of BraTS, from which a phantom takes its core, oedema and enhancement."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from glimpseg.data.nifti import read_labels
from glimpseg.errors import InputError
from glimpseg.phantom.atlas import interpolate
from glimpseg.phantom.lattice import Fields, Lattice, rotation_matrix
from glimpseg.phantom.plan import Placement
from glimpseg.region import CONVENTIONS, Convention, Label
from glimpseg.volume import Volume, bounding_box, resample_labels

SMALLEST_ML = 0.2
"""Smallest whole tumour that a shape file may hold."""
LITTLE_ENHANCEMENT = 0.05
"""Share of a real core that enhances, below which the tumour is low-grade: its core is solid and not necrotic."""
KEPT = 128
"""Shapes that stay in memory, about 1 MB each."""
BENDS_MM = ((28.0, 2.5), (12.0, 1.0))
"""Correlation length and standard deviation of the components of a shape's random deformation."""
BORDER = 3
"""Empty voxels around a shape."""


@dataclass(frozen=True, eq=False)
class Shape:
    """Label map of one tumour, cropped; axes RAS, voxels of 1 mm."""

    labels: UInt8[np.ndarray, "x y z"]
    """`Label` values."""
    middle_mm: np.ndarray
    """Centroid of the tumour from voxel 0 of `labels`."""
    place_mm: np.ndarray
    """Centroid from the middle of the file's field of view."""
    volumes_ml: dict[Label, float]

    @property
    def enhancing(self) -> float:
        """Share of the core that enhances; 0 without a core."""
        core = self.volumes_ml[Label.ET] + self.volumes_ml[Label.NCR]
        return self.volumes_ml[Label.ET] / core if core else 0.0


@functools.lru_cache(maxsize=KEPT)
def load_shape(path: str) -> Shape:
    """Read the label map of a tumour; cached.

    Raises:
        InputError: The file cannot be read, has other numbers than BraTS's, or holds less than 0.2 ml of tumour.
    """
    name = Path(path).name
    volume = read_labels(path).ras()
    volume = Volume(_convention(np.unique(volume.voxels), name).read(volume.voxels, name), volume.affine)
    fine = volume.grid.at_spacing(1.0)
    if fine.shape != volume.voxels.shape:
        volume = resample_labels(volume, fine)
    labels = np.asarray(volume.voxels).astype(np.uint8)
    box = bounding_box(labels > 0)
    if box is None or (labels > 0).sum() < SMALLEST_ML * 1000:
        raise InputError(
            f"{name}: a tumour of at least {SMALLEST_ML:g} ml is needed; this map holds "
            f"{(labels > 0).sum() / 1000:.2f} ml. "
            "Take the file out of the folder of shapes."
        )
    cropped = np.pad(labels[box], BORDER)
    middle = np.argwhere(cropped > 0).mean(0)
    first = np.array([side.start - BORDER for side in box])
    return Shape(
        labels=cropped,
        middle_mm=middle,
        place_mm=first + middle - (np.array(labels.shape) - 1) / 2,
        volumes_ml={label: float((cropped == label).sum()) / 1000 for label in Label},
    )


def _convention(numbers: np.ndarray, name: str) -> Convention:
    """Return the convention of a map before surgery: 3 is enhancing tumour since 2023, 4 was it up to 2021."""
    found = set(numbers.tolist())
    if {3, 4} <= found:
        raise InputError(
            f"{name}: shapes are tumours before surgery, numbered 1, 2, 4 (BraTS up to 2021) or 1, 2, 3 (since 2023); "
            "this map holds 3 and 4. Take the maps after surgery out of the folder."
        )
    return CONVENTIONS["brats2023" if 3 in found else "brats2021"]


@dataclass(frozen=True, eq=False)
class PlacedShape:
    """Shape at its place in the head, turned, scaled and bent."""

    shape: Shape
    matrix: np.ndarray
    """From millimetres in the head to millimetres in the shape."""
    origin_mm: tuple[float, float, float]
    """Position of the shape's centroid, from the middle of the field of view."""
    fields: Fields

    @property
    def volume_ml(self) -> float:
        """Volume of the whole tumour at its place."""
        return sum(self.shape.volumes_ml.values()) / abs(float(np.linalg.det(self.matrix)))

    def shares(self, lattice: Lattice, device: torch.device) -> Float[Tensor, "4 x y z"]:
        """Return the share of each `Label` (NCR, ED, ET, RC) in the voxels of a lattice."""
        maps = torch.stack([torch.from_numpy(self.shape.labels == label) for label in Label]).float().to(device)
        at = self._coordinates(lattice, device)
        return interpolate(maps, at.flatten(1)).reshape(len(Label), *lattice.shape)

    def _coordinates(self, lattice: Lattice, device: torch.device) -> Float[Tensor, "3 x y z"]:
        bend = [
            sum(
                (
                    sd * self.fields.on(lattice, f"2 bend {length:g} {axis}", length).to(device)
                    for length, sd in BENDS_MM
                ),
                start=torch.zeros(lattice.shape, device=device),
            )
            for axis in "xyz"
        ]
        found = torch.stack(bend)
        for k in range(3):
            found[k] += float(self.shape.middle_mm[k])
            for axis in range(3):
                line = (self.matrix[k, axis] * (lattice.axes[axis] - self.origin_mm[axis])).astype(np.float32)
                found[k] += torch.from_numpy(line).to(device).reshape([-1 if axis == n else 1 for n in range(3)])
        return found


def place_shape(folder: str | Path, placement: Placement, fields: Fields) -> PlacedShape:
    """Return the shape of a plan at its place.

    Args:
        folder: Folder of label maps.
        placement: File, position, turn and size.
        fields: Random fields of the case, which bend the shape.

    Raises:
        InputError: As `load_shape`.
    """
    shape = load_shape(str(Path(folder) / placement.name))
    side = -1.0 if placement.mirrored else 1.0
    matrix = np.diag([side, 1.0, 1.0]) @ rotation_matrix(placement.angles_degrees) / placement.scale
    x, y, z = shape.place_mm
    dx, dy, dz = placement.shift_mm
    return PlacedShape(shape, matrix, (float(side * x + dx), float(y + dy), float(z + dz)), fields)
