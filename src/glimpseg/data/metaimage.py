"""Read MetaImage files (`.mha`, BraTS 2015 and earlier) as NIfTI images.

SimpleITK reads them too, and the tests compare with it. It is not used here, because its decoder is native code that a
damaged file can crash (a heap error in one of some thousand mutated files). The format is simple: a text header of
`key = value` lines, followed by a block of voxels, deflated or not. Rare variants are refused: voxels in other files,
as text, scaled, or with several channels.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Float, Shaped
from nibabel.filebasedimages import ImageFileError

SUFFIX = ".mha"
"""Suffix of the file name, in lower case."""
MAXIMAL_HEADER = 1 << 16
"""Most bytes of a header; usual headers have 400."""
SLACK_BYTES = 1024
"""Most bytes that may follow the last voxel."""
_LAST = "ElementDataFile"
"""Key that ends the header."""
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_PLAIN = {
    "ObjectType": "image", "NDims": "3", "BinaryData": "true", "ElementNumberOfChannels": "1", _LAST: "local",
    "HeaderSize": "0", "ElementToIntensityFunctionSlope": "1", "ElementToIntensityFunctionOffset": "0",
}  # fmt: skip
"""Required values of keys that the header may contain."""
_MATRIX, _OFFSET = ("TransformMatrix", "Rotation", "Orientation"), ("Offset", "Position", "Origin")
"""Spellings of the two keys. A file with none of them is refused, although the format has a default."""
_ZLIB_OR_GZIP = 47
"""Window bits with which zlib accepts both zlib and gzip streams, as MetaIO does."""


class _Voxels:
    """Voxels that are read only when they are converted to an array; shape and type come from the header."""

    def __init__(self, path: Path, header: Mapping[str, str], begin: int) -> None:
        i, j, k = _numbers(header, "DimSize", 3, int)
        self.path, self.begin, self.shape, self.ndim = path, begin, (i, j, k), 3
        large_first = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False")).lower() == "true"
        self.dtype = np.dtype((">" if large_first else "<") + _type(header))
        self.deflated = header.get("CompressedData", "False").lower() == "true"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Shaped[np.ndarray, "i j k"]:
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        with self.path.open("rb") as file:
            file.seek(self.begin)
            content = _inflated(file.read(), size) if self.deflated else file.read(size + SLACK_BYTES + 1)
        if len(content) < size:
            raise EOFError(f"it ends after {len(content):,} of {size:,} bytes")
        if len(content) > size + SLACK_BYTES:
            raise ImageFileError("it goes on after the last voxel")
        voxels = np.frombuffer(content, self.dtype, size // self.dtype.itemsize)
        return np.asarray(voxels.reshape(self.shape, order="F"), dtype or self.dtype.newbyteorder("="))


def load(path: Path) -> nibabel.Nifti1Image:
    """Open a MetaImage: read its header now, its voxels on first use.

    Reading the voxels raises EOFError, zlib.error or ImageFileError if they are damaged.

    Raises: ImageFileError if the file is no MetaImage, or a variant that is not read; OSError if it cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(MAXIMAL_HEADER)
    header, begin = _header(head)
    affine = _affine(header)
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ImageFileError("its axes are singular or not finite, so that no voxel has a place")
    return nibabel.Nifti1Image(_Voxels(path, header, begin), affine)


def _header(head: bytes) -> tuple[dict[str, str], int]:
    """Parse the header. Returns its keys with their values, and the position of the first voxel in bytes."""
    header: dict[str, str] = {}
    place = 0
    while _LAST not in header:
        end = head.find(b"\n", place)
        key, equals, value = head[place:end].decode("latin-1").partition("=")
        if end < 0 or not equals:
            raise ImageFileError("its header is none of a MetaImage")
        if key.strip() in header:
            raise ImageFileError(f"its header says {key.strip()} twice")
        header[key.strip()] = value.strip()
        place = end + 1
    for key, wanted in _PLAIN.items():
        if header.get(key, wanted).lower() != wanted:
            raise ImageFileError(f"its {key} is '{header[key][:40]}'; only '{wanted}' is read")
    return header, place


def _affine(header: Mapping[str, str]) -> Float[np.ndarray, "4 4"]:
    """Affine from voxel indices to RAS+ millimetres.

    MetaImage uses LPS+, in which x and y have the opposite sign. Its matrix has one row for each axis of the array.
    """
    matrix, offset = (next((key for key in keys if key in header), keys[0]) for keys in (_MATRIX, _OFFSET))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(_numbers(header, matrix, 9, float), (3, 3)).T * _numbers(
        header, "ElementSpacing", 3, float
    )
    affine[:3, 3] = _numbers(header, offset, 3, float)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _type(header: Mapping[str, str]) -> str:
    if header.get("ElementType") not in _TYPES:
        raise ImageFileError(f"its ElementType is '{header.get('ElementType', 'not there')[:40]}'")
    return _TYPES[header["ElementType"]]


def _numbers(header: Mapping[str, str], key: str, count: int, kind: type[int] | type[float]) -> list[Any]:
    try:
        numbers = [kind(word) for word in header[key].split()]
    except (KeyError, ValueError, OverflowError) as error:
        raise ImageFileError(f"its {key} is '{header.get(key, 'not there')[:40]}'") from error
    if len(numbers) != count or (kind is int and min(numbers) < 1):
        raise ImageFileError(f"its {key} should be {count} numbers and is '{header[key][:40]}'")
    return numbers


def _inflated(content: bytes, size: int) -> bytes:
    """Decompress at most `size` bytes and the allowed slack, with a check of the checksum."""
    stream = zlib.decompressobj(_ZLIB_OR_GZIP)
    voxels = stream.decompress(content, size + SLACK_BYTES + 1)
    if not stream.eof and len(voxels) <= size + SLACK_BYTES:
        raise EOFError("its deflated voxels end early")
    return voxels
