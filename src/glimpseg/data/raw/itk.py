"""Exact conversion between our volumes (RAS, indices x y z) and SimpleITK images (LPS, arrays z y x)."""

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
"""Command that installs SimpleITK."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Matrix from the world axes of NIfTI (RAS) to those of ITK and DICOM (LPS); it is its own inverse."""
EXACT = 1e-5
"""Largest cosine between two perpendicular axes that rounding of headers to single precision causes."""
SHEARED = 0.02
"""Cosine between two axes above which a grid counts as sheared (1.1 degrees from perpendicular). The cause is a gantry
tilt or a resampling by an affine registration, not the orientation of the scan."""


def simpleitk() -> ModuleType:
    """Import SimpleITK. Raises: UsageError that names the command to install it."""
    try:
        import SimpleITK
    except ImportError as error:
        raise UsageError(
            f"Registering sequences needs SimpleITK, which is not installed. Run: {INSTALL}  (or register the "
            "sequences with another tool, and pass --raw no)."
        ) from error
    return SimpleITK


def as_itk(volume: Volume) -> SimpleITK.Image:
    """Convert a volume to a SimpleITK image, float32, at the same world coordinates.

    Raises: UsageError without SimpleITK; InputError for a sheared grid.
    """
    itk = simpleitk()
    ras = volume.ras()
    axes, spacing = perpendicular_axes(ras.grid)
    image = itk.GetImageFromArray(np.ascontiguousarray(ras.voxels.T, dtype=np.float32))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((LPS @ ras.affine)[:3, 3].tolist())
    image.SetDirection((LPS[:3, :3] @ axes).ravel().tolist())
    return image


def perpendicular_axes(grid: Grid) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Return the axes of a grid as perpendicular unit vectors (columns), and the spacing along them in mm.

    ITK supports perpendicular axes only. Nearly perpendicular axes are replaced by the nearest perpendicular ones, with
    a warning when this moves a voxel by more than rounding does.

    Raises: InputError for a sheared grid.
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


def ras_matrix(transform: SimpleITK.Transform) -> Float[np.ndarray, "4 4"]:
    """Convert a rigid ITK transform to a matrix in RAS millimetres.

    The matrix maps a point of the fixed image to the corresponding point of the moving image.
    """
    points = [np.zeros(3), *np.eye(3)]
    mapped = np.array([transform.TransformPoint(point.tolist()) for point in points])
    matrix = np.eye(4)
    matrix[:3, :3] = (mapped[1:] - mapped[0]).T
    matrix[:3, 3] = mapped[0]
    return LPS @ matrix @ LPS
