"""MetaImage files (`.mha`, BraTS 2015 and before) as NIfTI images, through SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Float, Shaped
from nibabel.filebasedimages import ImageFileError

from glimpseg.errors import UsageError

SUFFIX = ".mha"


class _Voxels:
    """Voxels that are read when an array is made of them; shape and type are known from the header."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.shape, self.dtype, self.ndim = path, shape, dtype, len(shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Shaped[np.ndarray, "..."]:
        sitk = _simpleitk()
        try:
            voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(self.path)))
        except RuntimeError as error:
            raise ImageFileError(_reason(error)) from error
        return np.asarray(voxels.T, dtype)  # SimpleITK's arrays are z y x


def load(path: Path) -> nibabel.Nifti1Image:
    """The image, its header read and its voxels not yet.

    Raises: UsageError if SimpleITK is not installed; ImageFileError if it cannot read the header.
    """
    sitk = _simpleitk()
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")  # whatever the content claims to be
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        dtype = sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID(), 1)).dtype
    except (RuntimeError, KeyError) as error:
        raise ImageFileError(_reason(error)) from error
    if reader.GetNumberOfComponents() != 1:
        raise ImageFileError("it holds colours or vectors, not intensities")
    return nibabel.Nifti1Image(_Voxels(path, reader.GetSize(), dtype), _affine(reader))


def _affine(reader: Any) -> Float[np.ndarray, "4 4"]:
    """Voxel index to RAS+ millimetres. MetaImage says it in LPS+."""
    from monai.data.utils import orientation_ras_lps  # here: importing MONAI takes seconds

    axes = reader.GetDimension()
    lps = np.eye(4)
    lps[:axes, :axes][:3, :3] = (np.reshape(reader.GetDirection(), (axes, axes)) @ np.diag(reader.GetSpacing()))[:3, :3]
    lps[: min(axes, 3), 3] = reader.GetOrigin()[:3]
    return np.asarray(orientation_ras_lps(lps))


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise UsageError(
            "Files of BraTS 2015 (.mha) are read by SimpleITK, which is not installed. Run: pip install "
            "'glimpseg[register]'."
        ) from error
    return SimpleITK


def _reason(error: Exception) -> str:
    """The last line of ITK's message, which has the cause, without the file's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
