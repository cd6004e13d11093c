"""Files with something wrong, and what `glimpseg` has to say of them; rows of `fault_table.py`, and of the tests.

A row makes its files from a good study and gives the command to run. `fault_sources.py` has DICOM and archives.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import nibabel.orientations as nio
import numpy as np

Word = str | Path
Scans = Mapping[str, nibabel.Nifti1Image]
"""A good study: by flag (`t1`, `t1c`, `t2`, `flair`), and its labels (`seg`)."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row: what is wrong, the command, and how it has to end."""

    name: str
    make: Callable[[Path, Scans], Sequence[Word]]
    """Writes the files into a folder and returns the command without model and output."""
    code: int
    says: str = ""
    """The whole message; where the command succeeds, all of its warnings, a line each. Names in braces are those of
    `numbers_of`; `WORDS` and `NUMBER` stand for what another program decides."""
    same: bool = False
    """True if the labels must equal those of the good study, in its place."""
    group: str = ""
    """Rows of one group are one line of the table."""


def command(words: Sequence[Word], model: Path, output: Path) -> list[str]:
    """All of a command's words: those of a row, the model, the output."""
    whole = [model if word == "MODEL" else word for word in words]
    return [*map(os.fspath, whole), *([] if "MODEL" in words else ["-m", str(model)]), "-o", str(output)]


WORDS = "[words]"
"""Placeholder for words of another program in a message: zlib, nibabel, the system."""
NUMBER = "[number]"
"""Placeholder for the size of a compressed file."""


def whole_message(fault: Fault, place: Path, scans: Scans) -> re.Pattern[str]:
    """Matches all that a row has to say of its files in `place`."""
    return pattern_of(fault.says, place=place, **numbers_of(scans))


def pattern_of(message: str, **names: Any) -> re.Pattern[str]:
    """Matches a message in which names in braces are filled in, and `WORDS` and `NUMBER` stand for anything."""
    text = re.escape(message.format(**names))
    return re.compile(text.replace(re.escape(WORDS), ".+").replace(re.escape(NUMBER), r"[\d,]+"))


def numbers_of(scans: Scans) -> dict[str, Any]:
    """The numbers of a good study that occur in messages."""
    scan = scans["t1c"]
    (x, y, z), sizes = scan.shape, scan.header.get_zooms()
    air = int((voxels(scan) == 0).sum())
    return {
        "x": x, "y": y, "z": z,
        "more": z + 1, "fewer": z - 1,
        "shape": f"{x}x{y}x{z}",
        "half_shape": f"{math.ceil(x / 2)}x{math.ceil(y / 2)}x{z}",
        "one_less": f"{x - 1}x{y}x{z}",
        "size": "x".join(f"{size:g}" for size in sizes),
        "half_size": f"{2 * sizes[0]:g}x{2 * sizes[1]:g}x{sizes[2]:g}",
        "size_m": "x".join(f"{1000 * size:g}" for size in sizes), "three": f"{3 * sizes[2]:.0f}",
        "size_y": f"{sizes[1]:g}", "size_z": f"{sizes[2]:g}",
        "moved": f"{1.5 / sizes[0]:.2g}",
        "far": f"{(x - 1) * 3e6:.3g}",
        "axes": "".join(nio.aff2axcodes(scan.affine)),
        "air": f"{air:,}", "tissue": f"{x * y * z - air:,}",
        "slice_bytes": f"{2 * x * y:,}", "cut_bytes": f"{2 * x * y - 500:,}",
        "before": f"{scan.affine[2, 3] + 4 * sizes[2]:.1f}", "after": f"{scan.affine[2, 3] + 6 * sizes[2]:.1f}",
        "step": f"{sizes[2]:.2f}",
        "second": f"{scan.affine[2, 3] + sizes[2]:.1f}", "fourth": f"{scan.affine[2, 3] + 3 * sizes[2]:.1f}",
        "apart": f"{_two_forms_apart(scan):.2f}",
        "flat": _rows(scan.affine * np.array([[1], [1], [0], [1]])),
        "not_finite": _rows(_with(0, 0, np.nan)(scan.affine.copy())),
        "leaning": _rows(_sheared(9)(scan.affine.copy())),
    }  # fmt: skip


def _two_forms_apart(scan: nibabel.Nifti1Image) -> float:
    """Largest displacement of a corner if the voxels are twice as large."""
    ends = itertools.product(*[(0, side - 1) for side in scan.shape])
    return max(float(np.linalg.norm(scan.affine[:3, :3] @ end)) for end in ends)


def _rows(affine: np.ndarray) -> str:
    return "; ".join(" ".join(f"{number:g}" for number in row) for row in affine[:3])


# Parts


def voxels(scan: nibabel.Nifti1Image) -> np.ndarray:
    """Intensities, whole numbers as the phantom's, so that every number format can hold them."""
    return np.rint(np.asarray(scan.dataobj, np.float32))


def save(path: Path, array: np.ndarray, affine: np.ndarray, change: Callable[[Any], None] | None = None) -> Path:
    """A NIfTI file, perhaps with another header."""
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    if change:
        change(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def with_bytes(path: Path, at: int, content: bytes) -> Path:
    """The same file with other bytes (of what a gz file holds, if it is one)."""
    packed = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    data[at : at + len(content)] = content
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    return path


def segment(t1c: Path, *more: Word) -> list[Word]:
    """The command for one sequence."""
    return ["segment", "--t1c", t1c, *more]


def plain(place: Path, scans: Scans, name: str = "t1c.nii.gz") -> Path:
    """The T1c as it should be."""
    return save(place / name, voxels(scans["t1c"]), scans["t1c"].affine)


def header_row(
    name: str, at: int, content: bytes, code: int, says: str, suffix: str = ".nii.gz", same: bool = False
) -> Fault:
    """A row whose file has other bytes in its header."""

    def make(place: Path, scans: Scans) -> list[Word]:
        return segment(with_bytes(plain(place, scans, f"t1c{suffix}"), at, content))

    return Fault(name=name, make=make, code=code, says=says, same=same)


def slices_row(name: str, more: int, suffix: str, says: str) -> Fault:
    """A row whose header claims some slices more than there are."""

    def make(place: Path, scans: Scans) -> list[Word]:
        path = plain(place, scans, f"t1c{suffix}")
        return segment(with_bytes(path, 46, struct.pack("<h", scans["t1c"].shape[2] + more)))

    return Fault(name=name, make=make, code=3, says=says)


def voxel_row(
    name: str, change: Callable[[np.ndarray], np.ndarray], code: int, says: str = "", same: bool = False
) -> Fault:
    """A row whose file has other voxels."""

    def make(place: Path, scans: Scans) -> list[Word]:
        return segment(save(place / "t1c.nii.gz", change(voxels(scans["t1c"])), scans["t1c"].affine))

    return Fault(name=name, make=make, code=code, says=says, same=same)


def affine_row(
    name: str, change: Callable[[np.ndarray], np.ndarray], code: int, says: str = "", same: bool = False
) -> Fault:
    """A row whose file has another sform."""

    def make(place: Path, scans: Scans) -> list[Word]:
        path = plain(place, scans, "t1c.nii")
        matrix = change(scans["t1c"].affine.copy())
        with_bytes(path, 252, struct.pack("<hh", 0, 1))
        return segment(with_bytes(path, 280, matrix[:3].astype("<f4").tobytes()))

    return Fault(name=name, make=make, code=code, says=says, same=same)


def pair_row(
    name: str, change: Callable[[Path, nibabel.Nifti1Image], Path], code: int, says: str = "", same: bool = False
) -> Fault:
    """A row with a good T1c and a FLAIR that does not suit it."""

    def make(place: Path, scans: Scans) -> list[Word]:
        return segment(plain(place, scans), "--flair", change(place / "flair.nii.gz", scans["flair"]), "--raw", "no")

    return Fault(name=name, make=make, code=code, says=says, same=same)


# Damaged files


def _flipped(place: Path, scans: Scans) -> list[Word]:
    path = plain(place, scans)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    return segment(path)


def _cut(place: Path, scans: Scans) -> list[Word]:
    path = plain(place, scans)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return segment(path)


def _cut_plain(place: Path, scans: Scans) -> list[Word]:
    path = plain(place, scans, "t1c.nii")
    path.write_bytes(path.read_bytes()[:-1000])
    return segment(path)


def _no_checksum(place: Path, scans: Scans) -> list[Word]:
    path = plain(place, scans)
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    return segment(path)


def _text(place: Path, scans: Scans) -> list[Word]:
    (place / "t1c.nii.gz").write_text("<html>404</html>")
    return segment(place / "t1c.nii.gz")


def _empty(place: Path, scans: Scans) -> list[Word]:
    (place / "t1c.nii").touch()
    return segment(place / "t1c.nii")


def _longer(place: Path, scans: Scans) -> list[Word]:
    path = plain(place, scans)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(64 << 20), 1))
    return segment(path)


def _bomb(shape: tuple[int, int, int], content: int) -> Callable[[Path, Scans], list[Word]]:
    def make(place: Path, scans: Scans) -> list[Word]:
        head = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.float64), np.eye(4)).to_bytes()[:352]
        with gzip.open(place / "t1c.nii.gz", "wb", compresslevel=9) as stream:
            stream.write(head[:42] + struct.pack("<hhh", *shape) + head[48:])
        piece = gzip.compress(bytes(1 << 24), 9)  # a gz file may have many parts
        with (place / "t1c.nii.gz").open("ab") as stream:
            for _ in range(content >> 24):
                stream.write(piece)
        return segment(place / "t1c.nii.gz")

    return make


def _extension(place: Path, scans: Scans) -> list[Word]:
    path = with_bytes(plain(place, scans, "t1c.nii"), 108, struct.pack("<f", 368))
    content = path.read_bytes()
    path.write_bytes(content[:348] + struct.pack("<iii", 1, 2**31 - 1, 6) + bytes(8) + content[352:])
    return segment(path)


_NOT_READ = (
    "{{place}}/{} is damaged: its header promises {} voxels, and reading them failed ({}). Copy or export it again."
)
_NO_HEADER = "{{place}}/{} cannot be read as NIfTI ({}). Export it again."
_TOO_MANY = (
    "{{place}}/t1c.nii.gz claims {} voxels; at most 1024 along an axis and 200,000,000 in all are read. Its header is "
    "damaged, or it should be resampled."
)
_TOO_FAR = (
    "{{place}}/t1c.nii{} claims {{shape}} voxels of {} mm, up to {} mm from the scanner's centre; read are voxels from "
    "0.01 mm, sides up to 1024 mm and distances up to 100000 mm. Its header is damaged, or its unit is not the "
    "millimetre."
)
_GOES_ON = "it goes on after the last voxel"
_MORE, _FEWER = "{x}x{y}x{more}", "{x}x{y}x{fewer}"
# 1024 x 1024 x 190 voxels of 8 bytes, and 352 bytes before them.
_BOMB = (1024, 1024, 190), "1024x1024x190", "1,593,835,872"


DAMAGED = (
    Fault(name="gz with a flipped bit", make=_flipped, code=3, says=_NOT_READ.format("t1c.nii.gz", "{shape}", WORDS)),
    Fault(name="gz cut in half", make=_cut, code=3, says=_NOT_READ.format("t1c.nii.gz", "{shape}", WORDS)),
    Fault(
        name="gz whose checksum is wrong", make=_no_checksum, code=3,
        says=_NOT_READ.format("t1c.nii.gz", "{shape}", WORDS),
    ),
    Fault(name=".nii cut short", make=_cut_plain, code=3, says=_NOT_READ.format("t1c.nii", "{shape}", WORDS)),
    Fault(name="a web page called .nii.gz", make=_text, code=3, says=_NO_HEADER.format("t1c.nii.gz", WORDS)),
    Fault(
        name="an empty file", make=_empty, code=3,
        says=_NO_HEADER.format("t1c.nii", "it has 0 bytes, too few for a header"),
    ),
    Fault(
        name="gz that goes on for 64 MB after its last voxel", make=_longer, code=3,
        says=_NOT_READ.format("t1c.nii.gz", "{shape}", _GOES_ON),
    ),
    Fault(
        name="bomb: 1.6 GB that the header promises, in 1.6 MB", make=_bomb(_BOMB[0], 1520 << 20), code=3,
        says=_NOT_READ.format(
            "t1c.nii.gz", _BOMB[1], f"it would grow from {NUMBER} to {_BOMB[2]} bytes, which no scan does"
        ),
    ),
    Fault(
        name="1.6 GB promised, in 1 kB", make=_bomb(_BOMB[0], 0), code=3,
        says=_NOT_READ.format("t1c.nii.gz", _BOMB[1], f"a gz file of {NUMBER} bytes cannot hold {_BOMB[2]}"),
    ),
    header_row(
        "header that claims 32767 x 32767 x 32767", 42, b"\xff\x7f" * 3, 3, _TOO_MANY.format("32767x32767x32767")
    ),
    slices_row(
        "header that claims one slice more than there is, .nii", 1, ".nii", _NOT_READ.format("t1c.nii", _MORE, WORDS)
    ),
    slices_row(
        "header that claims one slice more than there is", 1, ".nii.gz", _NOT_READ.format("t1c.nii.gz", _MORE, WORDS)
    ),
    slices_row(
        "header that claims one slice fewer than there are, .nii", -1, ".nii",
        _NOT_READ.format("t1c.nii", _FEWER, _GOES_ON),
    ),
    slices_row(
        "header that claims one slice fewer than there are", -1, ".nii.gz",
        _NOT_READ.format("t1c.nii.gz", _FEWER, _GOES_ON),
    ),
    header_row("negative dimension", 42, struct.pack("<h", -40), 3, _TOO_MANY.format("-40x{y}x{z}")),
    header_row(
        "first voxel at byte 1e9", 108, struct.pack("<f", 1e9), 3,
        _NO_HEADER.format("t1c.nii", "its voxels are said to begin at byte 1,000,000,000"), ".nii",
    ),
    Fault(name="extension that claims 2 GB", make=_extension, code=0, same=True),
    header_row("unknown number format", 70, struct.pack("<h", 77), 3, _NO_HEADER.format("t1c.nii.gz", WORDS)),
    header_row(
        "voxels of 3 km", 280, struct.pack("<f", 3e6), 3, _TOO_FAR.format(".gz", "3e+06x{size_y}x{size_z}", "{far}")
    ),
)  # fmt: skip


# Voxels


def _at_centre(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[tuple(n // 2 for n in array.shape)] = value
        return array

    return change


def _background_nan(array: np.ndarray) -> np.ndarray:
    return np.where(array == 0, np.nan, array).astype(np.float32)


def _stray_nan(array: np.ndarray) -> np.ndarray:
    array[0, 0, :3] = np.nan
    return array


def _noisy(array: np.ndarray) -> np.ndarray:
    return array + np.random.default_rng(0).normal(0, 0.01 * array.max(), array.shape).astype(np.float32)


def _spiked(array: np.ndarray) -> np.ndarray:
    spiked, places = array.astype(np.float32), np.argwhere(array)
    spiked[tuple(places[:: len(places) // 19].T)] = 110 * np.median(array[array != 0])
    return spiked


def _scaled(slope: float, inter: float) -> Callable[[Path, Scans], list[Word]]:
    def make(place: Path, scans: Scans) -> list[Word]:
        path = save(place / "t1c.nii", voxels(scans["t1c"]).astype("<i2"), scans["t1c"].affine)
        return segment(with_bytes(path, 112, struct.pack("<ff", slope, inter)))

    return make


def _stored(kind: str, factor: float = 1.0) -> Callable[[Path, Scans], list[Word]]:
    def make(place: Path, scans: Scans) -> list[Word]:
        array = (voxels(scans["t1c"]).astype(np.float64) * factor).astype(kind)
        header = nibabel.Nifti1Header(endianness=kind[0])
        nibabel.save(nibabel.Nifti1Image(array, scans["t1c"].affine, header, dtype=array.dtype), place / "t1c.nii")
        return segment(place / "t1c.nii")

    return make


def _colours(place: Path, scans: Scans) -> list[Word]:
    array = np.zeros(scans["t1c"].shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    array["R"] = voxels(scans["t1c"]) % 255
    return segment(save(place / "t1c.nii.gz", array, scans["t1c"].affine))


_BROKEN = (
    "{{place}}/t1c.nii{} holds {} NaN or infinite voxels, {}. Segmenting it would be a guess: export it again, or "
    "leave this sequence out."
)
_IN_BRAIN = _BROKEN.format(".gz", "1", "1 of them inside the brain")
_THRESHOLD = (
    "study: T1c: the air is not one value (noise, ringing or ghosts). The brain was found by a threshold of "
    f"{WORDS} above the air ({NUMBER} ml). Check the brain in the preview; if it is wrong, give a mask with "
    "--brain-mask."
)
_SPIKES = "study: T1c: {} intensities that no tissue has (spikes) were replaced by their neighbours."
_STRAY = "study: T1c: {} NaN or infinite voxels in the background were set to it."
_ONE_VALUE = (
    "{{place}}/t1c.nii.gz holds the single value {} and no image. Leave this sequence out: glimpseg works with any "
    "that remain."
)
_NO_INTENSITIES = (
    "{{place}}/t1c.nii.gz holds colours or complex numbers ({}), not intensities. Give the magnitude image."
)
_NOT_3D = (
    "{{place}}/t1c.nii.gz should be one three-dimensional volume but its shape is ({}): {}. Give the file of one "
    "volume, or split it (fslsplit, nibabel.four_to_three)."
)
_SERIES = "a series of volumes (functional, diffusion, or several echoes)"


VOXELS = (
    voxel_row("one NaN in the brain", _at_centre(np.nan), 3, _IN_BRAIN),
    voxel_row("one infinity in the brain", _at_centre(np.inf), 3, _IN_BRAIN),
    voxel_row(
        "NaN everywhere", lambda array: np.full_like(array, np.nan), 3,
        "{place}/t1c.nii.gz holds no finite voxel. Export it again.",
    ),
    voxel_row("three NaN in the air", _stray_nan, 0, _STRAY.format("3"), same=True),
    voxel_row("air of NaN", _background_nan, 0, _STRAY.format("{air}"), same=True),
    voxel_row("noise in the air", _noisy, 0, _THRESHOLD),
    voxel_row("20 spikes of 110 times the median", _spiked, 0, _SPIKES.format(20)),
    voxel_row("a single value", lambda array: np.full_like(array, 7), 3, _ONE_VALUE.format(7)),
    voxel_row("zeros", np.zeros_like, 3, _ONE_VALUE.format(0)),
    Fault(name="scl_slope 0", make=_scaled(0, 0), code=0, same=True),
    Fault(name="scl_slope NaN", make=_scaled(np.nan, np.nan), code=0, same=True),
    Fault(name="scl_slope infinite", make=_scaled(np.inf, 0), code=0, same=True),
    Fault(
        name="scl_inter NaN beside a slope", make=_scaled(2, np.nan), code=3, says=_NO_HEADER.format("t1c.nii", WORDS)
    ),
    Fault(name="scl_slope 2, scl_inter 10", make=_scaled(2, 10), code=0),
    Fault(name="int16, big-endian", make=_stored(">i2"), code=0, same=True),
    Fault(name="uint64", make=_stored("<u8"), code=0, same=True),
    Fault(name="float64, big-endian", make=_stored(">f8"), code=0, same=True),
    Fault(name="float64 around 1e30", make=_stored("<f8", 1e30), code=0, same=True),
    Fault(name="float64 around 1e-30", make=_stored("<f8", 1e-30), code=0, same=True),
    Fault(
        name="float64 around 1e300", make=_stored("<f8", 1e300), code=3,
        says=_BROKEN.format("", "{tissue}", "too many to be stray"),
    ),
    Fault(
        name="colours (RGB)", make=_colours, code=3,
        says=_NO_INTENSITIES.format("[('R', 'u1'), ('G', 'u1'), ('B', 'u1')]"),
    ),
    voxel_row("complex numbers", lambda array: array.astype(np.complex64), 3, _NO_INTENSITIES.format("complex64")),
    voxel_row("one slice (2-D)", lambda array: array[:, :, 20], 3, _NOT_3D.format("{x}, {y}", "a single slice")),
    voxel_row(
        "four-dimensional, one volume", lambda array: array[..., None], 0,
        "study: T1c has the shape ({x}, {y}, {z}, 1); its single volume is used.", same=True,
    ),
    voxel_row(
        "four-dimensional, three volumes", lambda array: np.stack([array] * 3, -1), 3,
        _NOT_3D.format("{x}, {y}, {z}, 3", _SERIES),
    ),
    voxel_row(
        "five-dimensional", lambda array: np.stack([array] * 2, -1)[..., None, :], 3,
        _NOT_3D.format("{x}, {y}, {z}, 1, 2", _SERIES),
    ),
)  # fmt: skip


# Places


def _turned(degrees: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(affine: np.ndarray) -> np.ndarray:
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        return turn @ affine

    return change


def _with(row: int, column: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(affine: np.ndarray) -> np.ndarray:
        affine[row, column] = value
        return affine

    return change


def _sheared(share: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(affine: np.ndarray) -> np.ndarray:
        affine[:3, 2] += share * affine[:3, 1]
        return affine

    return change


def _two_forms(place: Path, scans: Scans) -> list[Word]:
    affine = scans["t1c"].affine

    def change(image: Any) -> None:
        image.set_sform(affine, 1)
        image.set_qform(affine @ np.diag([2, 2, 2, 1]), 1)

    return segment(save(place / "t1c.nii.gz", voxels(scans["t1c"]), affine, change))


def _no_form(place: Path, scans: Scans) -> list[Word]:
    path = plain(place, scans, "t1c.nii")
    return segment(with_bytes(path, 252, struct.pack("<hh", 0, 0)))


def _no_size(place: Path, scans: Scans) -> list[Word]:
    path = with_bytes(plain(place, scans, "t1c.nii"), 252, struct.pack("<hh", 1, 0))
    return segment(with_bytes(path, 80, struct.pack("<fff", 0, 0, 0)))


def _stored_as(axes: str) -> Callable[[Path, Scans], list[Word]]:
    def make(place: Path, scans: Scans) -> list[Word]:
        words: list[Word] = ["segment"]
        for flag in ("t1c", "flair"):
            scan = scans[flag]
            turn = nio.ornt_transform(nio.io_orientation(scan.affine), nio.axcodes2ornt(axes))
            array = np.ascontiguousarray(nio.apply_orientation(voxels(scan), turn))
            path = save(place / f"{flag}.nii.gz", array, scan.affine @ nio.inv_ornt_aff(turn, scan.shape))
            words += [f"--{flag}", path]
        return words

    return make


AXES = ["".join(codes) for axes in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*axes)]
_AFFINE = "{{place}}/t1c.nii has {}: {}. Export the image again, or set the header from the scanner's geometry."
_NOWHERE = "an affine that places no voxel (singular or not finite)"


PLACES = (
    affine_row("oblique, 25 degrees", _turned(25), 0),
    affine_row("sheared as by a gantry tilt", _sheared(0.2), 0),
    affine_row(
        "axes nearly in one plane", _sheared(9), 3, _AFFINE.format("axes that nearly lie in one plane", "{leaning}")
    ),
    affine_row(
        "singular affine", lambda affine: affine * np.array([[1], [1], [0], [1]]), 3,
        _AFFINE.format(_NOWHERE, "{flat}"),
    ),
    affine_row("NaN in the affine", _with(0, 0, np.nan), 3, _AFFINE.format(_NOWHERE, "{not_finite}")),
    affine_row("an origin 1e30 mm away", _with(0, 3, 1e30), 3, _TOO_FAR.format("", "{size}", "1e+30")),
    Fault(
        name="qform and sform differ", make=_two_forms, code=0, same=True,
        says="study: T1c: sform and qform differ by up to {apart} mm at a corner; the sform is used, as the standard "
        "asks.",
    ),
    Fault(
        name="neither sform nor qform", make=_no_form, code=0,
        says="study: T1c says nothing of its orientation (sform and qform code 0); its axes are taken as stored.",
    ),
    Fault(
        name="qform alone, voxels of size 0", make=_no_size, code=3,
        says=_NO_HEADER.format("t1c.nii", "its header gives no size of the voxels: [0.0, 0.0, 0.0]"),
    ),
    *(Fault(name=axes, make=_stored_as(axes), code=0, same=True, group="all 48 axis codes") for axes in AXES),
)  # fmt: skip


# Sequences that do not belong together


def _moved(millimetres: float) -> Callable[[Path, nibabel.Nifti1Image], Path]:
    def change(path: Path, scan: nibabel.Nifti1Image) -> Path:
        affine = scan.affine.copy()
        affine[0, 3] += millimetres
        return save(path, voxels(scan), affine)

    return change


def _coarser(path: Path, scan: nibabel.Nifti1Image) -> Path:
    return save(path, voxels(scan)[::2, ::2], scan.affine @ np.diag([2, 2, 1, 1]))


def _rotated(path: Path, scan: nibabel.Nifti1Image) -> Path:
    """Around its own centre, so that its field of view still holds the other's."""
    middle = np.eye(4)
    middle[:3, 3] = (scan.affine @ [*(np.array(scan.shape) / 2), 1])[:3]
    return save(path, voxels(scan), middle @ _turned(20)(np.linalg.inv(middle) @ scan.affine))


def _twice(place: Path, scans: Scans) -> list[Word]:
    path = plain(place, scans)
    return segment(path, "--t2", path)


def _copy(place: Path, scans: Scans) -> list[Word]:
    path = plain(place, scans)
    return segment(path, "--t2", plain(place, scans, "t2.nii"))


def _hard_link(place: Path, scans: Scans) -> list[Word]:
    path = plain(place, scans)
    os.link(path, place / "t2.nii.gz")
    return segment(path, "--t2", place / "t2.nii.gz")


def _soft_link(place: Path, scans: Scans) -> list[Word]:
    path = plain(place, scans)
    (place / "t2.nii.gz").symlink_to(path)
    return segment(path, "--t2", place / "t2.nii.gz")


def _through_link(place: Path, scans: Scans) -> list[Word]:
    (place / "here.nii.gz").symlink_to(plain(place, scans))
    return segment(place / "here.nii.gz")


def _loop(place: Path, scans: Scans) -> list[Word]:
    (place / "a.nii.gz").symlink_to(place / "b.nii.gz")
    (place / "b.nii.gz").symlink_to(place / "a.nii.gz")
    return segment(place / "a.nii.gz", "--flair", plain(place, scans))


def _dangling(place: Path, scans: Scans) -> list[Word]:
    (place / "t1c.nii.gz").symlink_to(place / "gone.nii.gz")
    return segment(place / "t1c.nii.gz")


def _folder(place: Path, scans: Scans) -> list[Word]:
    (place / "t1c.nii.gz").mkdir()
    return segment(place / "t1c.nii.gz")


def _pipe(place: Path, scans: Scans) -> list[Word]:
    os.mkfifo(place / "t1c.nii.gz")
    return segment(place / "t1c.nii.gz")


def _long_name(place: Path, scans: Scans) -> list[Word]:
    return segment(place / f"{'x' * 300}.nii.gz")


def _labels(change: Callable[[Path, np.ndarray, np.ndarray], None]) -> Callable[[Path, Scans], list[Word]]:
    """A study to evaluate whose reference has something wrong."""

    def make(place: Path, scans: Scans) -> list[Word]:
        folder = place / "data" / "S1"
        save(folder / "S1-t1c.nii.gz", voxels(scans["t1c"]), scans["t1c"].affine)
        change(folder / "S1-seg.nii.gz", np.asarray(scans["seg"].dataobj), scans["seg"].affine)
        return ["evaluate", "MODEL", "--data", place / "data", "--subsets", "t1c", "--metrics", "dice"]

    return make


def _rescaled(path: Path, labels: np.ndarray, affine: np.ndarray) -> None:
    image = nibabel.Nifti1Image(labels.astype(np.float32) * 1.1, affine)
    image.set_data_dtype(np.int16)
    nibabel.save(image, path)  # nibabel chooses a slope: 2 comes back as 2.2


def _wrong_grid(path: Path, labels: np.ndarray, affine: np.ndarray) -> None:
    save(path, labels[:-1].astype(np.uint8), affine)


def _put(value: float) -> Callable[[Path, np.ndarray, np.ndarray], None]:
    def change(path: Path, labels: np.ndarray, affine: np.ndarray) -> None:
        array = labels.astype(np.float32)
        array[0, 0, 0] = value
        save(path, array, affine)

    return change


_OTHER_GRID = (
    "study: FLAIR lies on another grid ({} voxels of {} mm, {{axes}}; the study: {{shape}} voxels of {{size}} mm, "
    "{{axes}}{}) and was resampled. This assumes that the sequences are registered."
)
_CORNERS = "; corners up to {} mm apart, {} voxels along an axis; at most 0.25 voxels and 1 mm count as the same"
_APART = (
    "Study study: FLAIR cannot be brought to the grid of the other sequences: its axes are turned by {} degrees (at "
    "most 5) and {} % of the smaller field of view is shared (at least 50 %). Register the sequences first."
)
_GIVEN_TWICE = "{place}/t1c.nii.gz was given both as T1c and as T2. Name each file once; leave the absent out."
_SAME_VOXELS = (
    "Study study: the images given as T1c and T2 hold the same voxels. One of them is a copy; leave the absent "
    "sequence out."
)
_NO_END = "{{place}}/{}.nii.gz is a link that leads nowhere. Give the file itself."
_NOT_WHOLE = (
    "{{place}}/data/S1/S1-seg.nii.gz should hold whole numbers but holds {}. Was it interpolated, or is it an image? "
    "Resample label maps with nearest neighbour."
)


TOGETHER = (
    pair_row(
        "FLAIR half a voxel away", _moved(1.5), 0,
        _OTHER_GRID.format("{shape}", "{size}", _CORNERS.format("1.50", "{moved}")),
    ),
    pair_row("FLAIR a tenth of a voxel away", _moved(0.4), 0, ""),
    pair_row("FLAIR with half as many voxels", _coarser, 0, _OTHER_GRID.format("{half_shape}", "{half_size}", "")),
    pair_row("FLAIR turned by 20 degrees", _rotated, 3, _APART.format("20.0", 100)),
    pair_row("FLAIR a metre away", _moved(1000), 3, _APART.format("0.0", 0)),
    Fault(name="one file as T1c and T2", make=_twice, code=3, says=_GIVEN_TWICE),
    Fault(name="one file by two names (link)", make=_soft_link, code=3, says=_GIVEN_TWICE),
    Fault(name="one file by two names (hard link)", make=_hard_link, code=3, says=_SAME_VOXELS),
    Fault(name="a copy as T2, in another format", make=_copy, code=3, says=_SAME_VOXELS),
    Fault(name="a link to the file", make=_through_link, code=0, same=True),
    Fault(name="links in a circle", make=_loop, code=3, says=_NO_END.format("a")),
    Fault(name="a link to nothing", make=_dangling, code=3, says=_NO_END.format("t1c")),
    Fault(
        name="a folder called .nii.gz", make=_folder, code=3,
        says="t1c.nii.gz holds no MR image in DICOM (0 files are no DICOM, 0 are other DICOM objects, 0 are damaged). "
        "Give the folder of the study's MR images.",
    ),
    Fault(
        name="a named pipe", make=_pipe, code=3,
        says="{place}/t1c.nii.gz is a folder or a device, not a file. Give the image itself.",
    ),
    Fault(
        name="a name of 300 letters", make=_long_name, code=3,
        says=f"{{place}}/{'x' * 300}.nii.gz cannot be reached ({WORDS}). Check the path.",
    ),
    Fault(
        name="labels written rescaled (2 reads as 2.2)", make=_labels(_rescaled), code=3,
        says=_NOT_WHOLE.format("3.3[number]"),  # 3 reads as 3.3, as nearly as the slope in the header says
    ),
    Fault(name="a label of 3.9999", make=_labels(_put(3.9999)), code=0),
    Fault(name="a label of 1.5", make=_labels(_put(1.5)), code=3, says=_NOT_WHOLE.format(1.5)),
    Fault(
        name="a label of -1", make=_labels(_put(-1)), code=3,
        says="{place}/data/S1/S1-seg.nii.gz should hold labels but holds values from -1 to 3. Is it an image?",
    ),
    Fault(
        name="a label of 255", make=_labels(_put(255)), code=3,
        says="data (1 references) holds the labels [1, 2, 3, 255], which no convention of the layout brats2023 "
        "explains (brats2021: [1, 2, 4]; brats2023: [1, 2, 3]; brats2024: [1, 2, 3, 4]). Correct the file or name the "
        "convention.",
    ),
    Fault(
        name="labels on another grid", make=_labels(_wrong_grid), code=3,
        says="No study could be scored.\nS1: Study S1: S1-seg.nii.gz lies on another grid ({one_less} voxels of {size} "
        "mm, {axes}) than the images ({shape} voxels of {size} mm, {axes}; {shape} voxels against {one_less}). Give "
        "the reference that was drawn on these images.",
    ),
)  # fmt: skip

# Names and headers that mislead


def _renamed(true: str, told: str) -> Callable[[Path, Scans], list[Word]]:
    def make(place: Path, scans: Scans) -> list[Word]:
        plain(place, scans, f"a{true}").rename(place / f"t1c{told}")
        return segment(place / f"t1c{told}")

    return make


def _pair(other: bool = True, kind: type = nibabel.Nifti1Pair) -> Callable[[Path, Scans], list[Word]]:
    def make(place: Path, scans: Scans) -> list[Word]:
        nibabel.save(kind(voxels(scans["t1c"]), scans["t1c"].affine), place / "t1c.img")
        if not other:
            (place / "t1c.hdr").unlink()
        return segment(place / "t1c.img")

    return make


def _in_unit(code: int, factor: float) -> Callable[[Path, Scans], list[Word]]:
    """A file whose lengths are in another unit, and whose header says so or not."""

    def make(place: Path, scans: Scans) -> list[Word]:
        affine = np.diag([factor] * 3 + [1.0]) @ scans["t1c"].affine
        return segment(with_bytes(save(place / "t1c.nii", voxels(scans["t1c"]), affine), 123, bytes([code])))

    return make


def _no_volumes(place: Path, scans: Scans) -> list[Word]:
    path = with_bytes(plain(place, scans), 40, struct.pack("<h", 4))
    return segment(with_bytes(path, 48, struct.pack("<h", 0)))


def _long_quaternion(place: Path, scans: Scans) -> list[Word]:
    path = with_bytes(plain(place, scans, "t1c.nii"), 252, struct.pack("<hh", 1, 0))
    return segment(with_bytes(path, 256, struct.pack("<fff", 0, 0, 1 + 1e-6)))


def _few_slices(place: Path, scans: Scans) -> list[Word]:
    middle = scans["t1c"].shape[2] // 2
    part = scans["t1c"].slicer[:, :, middle : middle + 3]
    return segment(save(place / "t1c.nii.gz", voxels(part), part.affine))


_BY_CONTENT = "study: T1c is {}, although its name ends otherwise; it is read by its content."
_CONVERTED = "study: T1c is in {} by its header (xyzt_units); it was converted to millimetres: voxels of {{size}} mm."


MISLEADING = (
    Fault(
        name="a .nii called .nii.gz", make=_renamed(".nii", ".nii.gz"), code=0, same=True,
        says=_BY_CONTENT.format("not compressed"),
    ),
    Fault(
        name="a .nii.gz called .nii", make=_renamed(".nii.gz", ".nii"), code=0, same=True,
        says=_BY_CONTENT.format("compressed"),
    ),
    Fault(name="a pair, .hdr and .img", make=_pair(), code=0, same=True),
    Fault(
        name="an .img without its .hdr", make=_pair(other=False), code=3,
        says="{place}/t1c.img is one of two files of a NIfTI pair, and the header (.hdr) of the same name is not "
        "beside it. Copy both files into one folder.",
    ),
    Fault(
        name="Analyze 7.5", make=_pair(kind=nibabel.AnalyzeImage), code=3,
        says="{place}/t1c.img is no NIfTI pair but, perhaps, Analyze 7.5, which does not say which side is left. "
        "Convert it to .nii.gz with the program that wrote it, or from the original DICOM with dcm2niix.",
    ),
    Fault(name="lengths in metres", make=_in_unit(1, 1e-3), code=0, same=True, says=_CONVERTED.format("metres")),
    Fault(
        name="lengths in micrometres", make=_in_unit(3, 1e3), code=0, same=True, says=_CONVERTED.format("micrometres")
    ),
    Fault(
        name="millimetres called metres", make=_in_unit(1, 1), code=0, same=True,
        says="study: T1c is in metres by its header (xyzt_units), which would give voxels of {size_m} mm; its numbers "
        "are taken as millimetres.",
    ),
    Fault(
        name="no volumes (dim[4] = 0)", make=_no_volumes, code=0, same=True,
        says="study: T1c has the shape ({x}, {y}, {z}, 1); its single volume is used.\n"
        "study: T1c has dim[4] = 0 in its header, which counts as 1.",
    ),
    Fault(name="qform alone, quaternion 1e-6 too long", make=_long_quaternion, code=0),
    Fault(
        name="three slices", make=_few_slices, code=0,
        says="study: T1c has 3 slices along one axis, {three} mm in all, which is a small part of a head. The result "
        "may be empty or wrong.",
    ),
)  # fmt: skip

FAULTS = (*DAMAGED, *VOXELS, *PLACES, *TOGETHER, *MISLEADING)
