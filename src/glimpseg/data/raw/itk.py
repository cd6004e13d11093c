"""Between our volumes (RAS, indices x y z) and SimpleITK's (LPS, arrays z y x), both ways and exactly."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from glimpseg.data.notices import warn
from glimpseg.errors import InputError, UsageError
from glimpseg.volume import Grid, Volume

if TYPE_CHECKING:
    import SimpleITK

INSTALL = "pip install 'glimpseg[register]'"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""World axes of ITK and DICOM from those of NIfTI; its own inverse."""
EXACT = 1e-5
"""Cosines of two axes that headers in single precision round to when they are perpendicular."""
SHEARED = 0.02
"""Cosine of two axes from which on the lattice is sheared (1.1 degrees): no rotation of a scanner, but a gantry's
tilt or a resampling by an affine registration."""


def simpleitk() -> ModuleType:
    """The library. Raises: UsageError with what to install."""
    try:
        import SimpleITK
    except ImportError as error:
        raise UsageError(
            f"Registering sequences needs SimpleITK, which is not installed. Run: {INSTALL}  (or register the "
            "sequences with another tool, and pass --raw no)."
        ) from error
    return SimpleITK


def as_itk(volume: Volume) -> SimpleITK.Image:
    """The volume as float32, at the same places in the world.

    Raises: UsageError without SimpleITK; InputError for a sheared lattice.
    """
    itk = simpleitk()
    turned = volume.ras()
    axes, spacing = axes_of(turned.grid)
    image = itk.GetImageFromArray(np.ascontiguousarray(turned.voxels.T, dtype=np.float32))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((LPS @ turned.affine)[:3, 3].tolist())
    image.SetDirection((LPS[:3, :3] @ axes).ravel().tolist())
    return image


def axes_of(grid: Grid) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """The lattice's axes as perpendicular unit vectors (columns), and the spacing along them in mm.

    ITK knows no others. Axes that are nearly perpendicular are turned to the nearest ones that are, with a warning
    when that moves a voxel by more than rounding does. Raises: InputError for a sheared lattice.
    """
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    axes = grid.affine[:3, :3] / spacing
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > SHEARED:
        angle = 90 - np.degrees(np.arccos(min(shear, 1.0)))
        raise InputError(
            f"The axes of an image are {angle:.1f} degrees from perpendicular (a sheared affine), so it cannot be "
            "registered rigidly. Take the image as it came from the scanner, or resample it to perpendicular axes."
        )
    left, _, right = np.linalg.svd(axes)
    if shear > EXACT:
        moved = np.abs((left @ right - axes) @ (spacing * (np.array(grid.shape) - 1) / 2)).max()
        warn(f"The axes of an image are not quite perpendicular; they are taken so (up to {moved:.2f} mm).")
    return left @ right, spacing


def matrix_of(transform: SimpleITK.Transform) -> Float[np.ndarray, "4 4"]:
    """A rigid ITK transform, from a point of the fixed image to its place in the moving one, in RAS millimetres."""
    places = [np.zeros(3), *np.eye(3)]
    mapped = np.array([transform.TransformPoint(place.tolist()) for place in places])
    matrix = np.eye(4)
    matrix[:3, :3] = (mapped[1:] - mapped[0]).T
    matrix[:3, 3] = mapped[0]
    return LPS @ matrix @ LPS
