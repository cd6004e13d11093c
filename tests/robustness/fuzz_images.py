"""Damaged images: NIfTI files, NIfTI pairs and MetaImage; see `fuzz_files.py`."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from fuzz_bytes import NASTY, cut, flip, flip_header, insert

SHAPE = (14, 16, 12)
AFFINE = np.array([[3.0, 0, 0, -20], [0, 3.0, 0, -25], [0, 0, 3.0, -15], [0, 0, 0, 1]])
TYPES = ("u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")


def nifti(rng: np.random.Generator, folder: Path) -> Path:
    """A NIfTI file with one to three things wrong."""
    two, packed = rng.random() < 0.2, rng.random() < 0.5
    content = bytearray(_nifti(rng, two))
    for _ in range(int(rng.integers(1, 4))):
        rng.choice([flip, flip_header, _field, _field, _field, _affine, cut, insert, _voxels, _extension])(rng, content)
    path = folder / ("t1c.nii.gz" if packed else "t1c.nii")
    path.write_bytes(_packed(rng, bytes(content)) if packed != (rng.random() < 0.03) else bytes(content))
    (folder / "flair.nii").write_bytes(_nifti(np.random.default_rng(0), two=False))
    return path


def pair(rng: np.random.Generator, folder: Path) -> Path:
    """A NIfTI pair, header and voxels in a file each, with one to three things wrong."""
    two = rng.random() < 0.2
    content = _nifti(rng, two)
    offset = (nibabel.Nifti2Image if two else nibabel.Nifti1Image).from_bytes(content).dataobj.offset
    head, body = bytearray(content[: 540 if two else 348]), bytearray(content[offset:])
    at, word, place = (4, b"ni2\0", slice(168, 176)) if two else (344, b"ni1\0", slice(108, 112))
    head[at : at + 4] = word
    head[place] = bytes(place.stop - place.start)  # the voxels begin at once
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.7:
            rng.choice([flip_header, _field, _field, _field, _affine, cut, insert])(rng, head)
        else:
            rng.choice([flip, cut, insert, _voxels])(rng, body)
    packed = rng.random() < 0.4
    for name, part in (("t1c.hdr", head), ("t1c.img", body)):
        unlike = rng.random() < 0.05
        ending = ".gz" if packed else ""
        (folder / (name + ending)).write_bytes(_packed(rng, bytes(part)) if packed != unlike else bytes(part))
    if rng.random() < 0.05:
        next(iter(folder.glob("*.img*"))).unlink()
    elif rng.random() < 0.05:
        (folder / "T1C.IMG").write_bytes(b"another")
    (folder / "flair.nii").write_bytes(_nifti(np.random.default_rng(0), two=False))
    return next(iter(sorted(folder.glob("t1c.*"))))


def _nifti(rng: np.random.Generator, two: bool) -> bytes:
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    voxels = np.where((place**2).sum(0) < 0.7, rng.uniform(50, 100, SHAPE), 0)
    if rng.random() < 0.2:
        voxels = np.minimum(voxels, 3)  # what a label map holds
    order = str(rng.choice(["<", ">"]))
    kind = nibabel.Nifti2Image if two else nibabel.Nifti1Image
    header = kind.header_class(endianness=order)
    stored = voxels.astype(order + str(rng.choice(TYPES)))
    image = kind(stored, AFFINE, header, dtype=stored.dtype)
    if rng.random() < 0.3:
        image.header.set_slope_inter(0.5, 3)
    if rng.random() < 0.3:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * int(rng.integers(1, 99))))
    if rng.random() < 0.5:
        image.set_sform(None, 0)
    return image.to_bytes()


def _field(rng: np.random.Generator, content: bytearray, names: tuple[str, ...] = ()) -> None:
    """A value that is none, in a field of the header."""
    two = content[:4] in (struct.pack("<i", 540), struct.pack(">i", 540))
    kind = nibabel.Nifti2Header if two else nibabel.Nifti1Header
    if len(content) < kind.sizeof_hdr:
        return
    order = ">" if content[0] == 0 else "<"
    fields: dict[str, Any] = dict(kind.template_dtype.newbyteorder(order).fields)  # type: ignore[arg-type]
    name = str(rng.choice(names or sorted(fields)))
    dtype, start = fields[name][:2]
    base = dtype.base
    at = int(start) + int(rng.integers(dtype.itemsize // base.itemsize)) * base.itemsize
    value: Any = NASTY[int(rng.integers(len(NASTY)))]
    if base.kind in "iu":
        limits = np.iinfo(base)
        value = (
            int(np.clip(np.nan_to_num(value), limits.min, limits.max))
            if base.itemsize < 8
            else int(np.nan_to_num(value, posinf=2**62, neginf=-(2**62))) % 2**62
        )
    if base.kind == "S":
        content[at : at + base.itemsize] = rng.bytes(base.itemsize)
    else:
        with np.errstate(all="ignore"):
            content[at : at + base.itemsize] = np.array(value).astype(base).tobytes()


def _affine(rng: np.random.Generator, content: bytearray) -> None:
    for _ in range(int(rng.integers(1, 5))):
        _field(
            rng, content, ("pixdim", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "sform_code", "qform_code")
        )


def _voxels(rng: np.random.Generator, content: bytearray) -> None:
    """NaN, infinity and extremes, if the voxels are floats."""
    for at in rng.integers(140, max(len(content) // 4, 141), size=5):
        value = NASTY[int(rng.integers(len(NASTY)))]
        with np.errstate(all="ignore"):
            content[4 * int(at) : 4 * int(at) + 4] = np.float32(value).tobytes()


def _extension(rng: np.random.Generator, content: bytearray) -> None:
    if len(content) < 600:
        return
    size = int(rng.choice([0, 8, 15, 16, -16, 2**31 - 1, 1 << 20]))
    content[348:352] = b"\x01\0\0\0"
    content[352:360] = struct.pack("<ii", size, int(rng.choice([0, 2, 4, 6, 32])))
    content[108:112] = struct.pack("<f", float(rng.choice([352, 368, 1 << 20, 1e9, 3e38])))


def _packed(rng: np.random.Generator, content: bytes) -> bytes:
    """gzip, with something wrong in half of the cases."""
    packed = gzip.compress(content, 1, mtime=0)
    match int(rng.integers(10)):
        case 0:
            return gzip.compress(packed, 1, mtime=0)
        case 1:
            flipped = bytearray(packed)
            flip(rng, flipped)
            return bytes(flipped)
        case 2:
            return packed[: int(rng.integers(len(packed) + 1))]
        case 3:
            return packed + gzip.compress(bytes(int(rng.integers(1, 1 << 23))), 1, mtime=0)
        case 4:
            return packed + rng.bytes(int(rng.integers(1, 100)))
    return packed


def read_image(path: Path) -> None:
    """Read an image in every way: as labels, a grid, a study with another sequence, and the way back.

    The other sequence is the file `flair.nii` beside it.
    """
    from glimpseg.data import nifti
    from glimpseg.data.preprocess import Preprocess, prepare
    from glimpseg.errors import InputError
    from glimpseg.modality import Modality
    from glimpseg.study import Study
    from glimpseg.volume import Volume, resample

    for read in (nifti.read_labels, nifti.read_header):
        try:
            read(path)
        except InputError:
            continue
    for images in ({Modality.T1C: path}, {Modality.T1C: path, Modality.FLAIR: path.parent / "flair.nii"}):
        prepared = prepare(Study("fuzz", images), Preprocess(spacing_mm=3.0))
        back = resample(Volume(prepared.image[1], prepared.grid.affine), prepared.own)
        assert np.isfinite(prepared.image).all(), "NaN or infinity reached the network's input"
        assert back.voxels.shape == prepared.own.shape


# MetaImage

_LINES = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False", "TransformMatrix": "-1 0 0 0 -1 0 0 0 1", "Offset": "20 25 -15",
    "CenterOfRotation": "0 0 0", "AnatomicalOrientation": "RAI", "ElementSpacing": "3 3 3", "DimSize": "14 16 12",
    "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
}  # fmt: skip
_META_TYPES = {"MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_FLOAT": "f4",
               "MET_DOUBLE": "f8"}  # fmt: skip
_VALUES = (
    "", "0", "-1", "1", "2", "4", "1 1", "0 0 0", "-3 3 3", "1e308 1e308 1e308", "nan nan nan", "inf 3 3", "1e-300 3 3",
    "14 16", "14 16 12 1", "14 16 0", "14 16 -12", "65535 65535 65535", "1 1 99999999999999999999", "14.0 16.0 12.0",
    "1_4 1_6 1_2", "14,16,12", "\u0661\u0664 16 12", "0x0e 16 12", "true", "yes", "LIST", "other.raw",
    "../../outside.raw",
    "MET_STRING", "MET_FLOAT", "MET_DOUBLE", "MET_LONG_LONG", "met_short", "1 0 0 0 1 0 0 0 0", "0 0 0 0 0 0 0 0 0",
    "1 0 0 0 1 0 0 1 1e-9", "1e400 0 0 0 1 0 0 0 1", "9" * 5000, "x" * 70000, "a\0b", "\x1b[31mred",
    "1 0 0 0 1 0 0 0 1 0",
)  # fmt: skip


def metaimage(rng: np.random.Generator, folder: Path) -> Path:
    """A MetaImage with one to three things wrong."""
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    voxels = np.where((place**2).sum(0) < 0.7, rng.uniform(50, 100, SHAPE), 0)
    name = str(rng.choice(sorted(_META_TYPES)))
    order = ">" if rng.random() < 0.2 else "<"
    body = bytearray(
        np.minimum(voxels, 3 if rng.random() < 0.2 else 100).astype(order + _META_TYPES[name]).tobytes("F")
    )
    lines = [*{**_LINES, "ElementType": name, "BinaryDataByteOrderMSB": str(order == ">")}.items()]
    deflated = rng.random() < 0.4
    damages = [int(rng.integers(9)) for _ in range(int(rng.integers(1, 4)))]
    for damage in damages:
        if damage in (0, 1, 2):
            at = int(rng.integers(len(lines)))
            lines[at] = (lines[at][0], str(rng.choice(_VALUES)))
        elif damage == 3:
            del lines[int(rng.integers(len(lines)))]
        elif damage == 4:
            key = str(
                rng.choice(["HeaderSize", "ElementNumberOfChannels", "Offset", "Comment", "Modality", "", "\xff"])
            )
            lines.insert(int(rng.integers(len(lines))), (key, str(rng.choice(_VALUES))))
        elif damage == 5:
            rng.choice([flip, cut, insert, _voxels])(rng, body)
    if deflated:
        lines = [(key, "True" if key == "CompressedData" else value) for key, value in lines]
        body = bytearray(_deflated(rng, bytes(body)))
    ends = str(rng.choice(["\n"] * 8 + ["\r\n", "\r\n", "\r"]))
    equals = str(rng.choice([" = ", "=", " =", "\t=\t"]))
    content = bytearray(
        "".join(f"{key}{equals}{value}{ends}" for key, value in lines).encode("utf-8", "replace") + body
    )
    for damage in damages:
        if damage >= 7:
            rng.choice([flip, flip_header, cut, insert])(rng, content)
    (folder / "t1c.mha").write_bytes(content)
    (folder / "flair.nii").write_bytes(_nifti(np.random.default_rng(0), two=False))
    return folder / "t1c.mha"


def _deflated(rng: np.random.Generator, body: bytes) -> bytes:
    packed = zlib.compress(body)
    match int(rng.integers(8)):
        case 0:
            flipped = bytearray(packed)
            flip(rng, flipped)
            return bytes(flipped)
        case 1:
            return packed[: int(rng.integers(len(packed) + 1))]
        case 2:
            return zlib.compress(body + bytes(1 << 26))  # a bomb
        case 3:
            return packed + rng.bytes(int(rng.integers(1, 5000)))
        case 4:
            return gzip.compress(body, mtime=0)
        case 5:
            return zlib.compress(body)[2:-4]  # no header and no checksum
    return packed
