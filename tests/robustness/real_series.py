"""Read real DICOM series, and print what was read beside what their headers say, as a Markdown table.

    python tests/robustness/real_series.py FOLDER [-o FILE.md]

FOLDER holds a folder for each series. The headers are read with pydicom and the formula of DICOM (C.7.6.2.1.1) alone,
none of glimpseg's geometry. Compared are: number of slices, size of the voxels (1e-4 mm), axes, the place of three
corners of every slice (0.02 voxels) and their pixels. The exit code is 1 if one differs.

The last column judges the sequence as if the series had all slices of a head: short samples are refused for that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom

from glimpseg.data.dicom.find import find_series
from glimpseg.data.dicom.read import read_series
from glimpseg.data.identify.rules import packaged_rules
from glimpseg.data.identify.verdict import judge_series
from glimpseg.data.notices import collected_warnings
from glimpseg.data.series import Series
from glimpseg.volume import Volume

WHOLE = 160
"""Slices of a whole head."""
NEAR_VOXELS = 0.02
TIMES = {"TR": "RepetitionTime", "TE": "EchoTime", "TI": "InversionTime"}


@dataclass(frozen=True)
class Slice:
    """One slice, as its header says."""

    position: np.ndarray
    row: np.ndarray
    """Direction in which columns count, in LPS."""
    column: np.ndarray
    spacing: np.ndarray
    """Distance of rows, and of columns, in mm."""
    pixels: np.ndarray
    """Rescaled."""


def slices_of(path: Path) -> list[Slice]:
    """Return the slices of a file, classic or enhanced."""
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    found = []
    for number, pixels in enumerate(frames):
        groups = _groups(dataset, number)
        cosines = np.array(_first(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), float)
        slope = float(_first(groups, "PixelValueTransformationSequence", "RescaleSlope", 1))
        intercept = float(_first(groups, "PixelValueTransformationSequence", "RescaleIntercept", 0))
        found.append(
            Slice(
                np.array(_first(groups, "PlanePositionSequence", "ImagePositionPatient"), float),
                cosines[:3],
                cosines[3:],
                np.array(_first(groups, "PixelMeasuresSequence", "PixelSpacing"), float),
                pixels * slope + intercept,
            )
        )
    return found


def _groups(dataset: pydicom.Dataset, number: int) -> list[pydicom.Dataset]:
    """Places of an attribute of one frame, the nearest first."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return [dataset]
    shared = dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    return [dataset.PerFrameFunctionalGroupsSequence[number], shared[0], dataset]


def _first(groups: Sequence[pydicom.Dataset], sequence: str, keyword: str, default: Any = None) -> Any:
    for group in groups:
        for place in (group.get(sequence) or [None])[0], group:
            if place is not None and place.get(keyword) is not None:
                return place.get(keyword)
    return default


def header_grid(slices: Sequence[Slice]) -> tuple[list[float], str]:
    """Return voxel sides along columns, rows and slices, sorted, and the axes (in any order) of a series."""
    first = slices[0]
    normal = np.cross(first.row, first.column)
    places = np.sort([one.position @ normal for one in slices])
    step = float(np.median(np.diff(places)))
    lps_to_ras = np.diag([-1, -1, 1])
    affine = np.eye(4)
    affine[:3, :3] = lps_to_ras @ np.stack([first.row, first.column, normal], 1)
    axes = "".join(sorted(nibabel.aff2axcodes(affine), key="LRPAIS".index))
    return sorted([*(float(n) for n in first.spacing), step]), axes


def misplaced(slices: Sequence[Slice], volume: Volume) -> str:
    """Return what differs between headers and volume, or nothing."""
    to_index = np.linalg.inv(volume.affine)
    for number, one in enumerate(slices):
        rows, columns = one.pixels.shape
        for row, column in ((0, 0), (rows - 1, 0), (0, columns - 1)):
            lps = one.position + one.row * one.spacing[1] * column + one.column * one.spacing[0] * row
            index = (to_index @ [-lps[0], -lps[1], lps[2], 1])[:3]
            off = float(np.abs(index - np.rint(index)).max())
            if off > NEAR_VOXELS:
                return f"slice {number + 1}: {off:.2f} voxels away"
            found = float(volume.voxels[tuple(np.rint(index).astype(int))])
            if not np.isclose(found, one.pixels[row, column], rtol=1e-5, atol=1e-3):
                return f"slice {number + 1}: {found:g} in place of {one.pixels[row, column]:g}"
    return ""


def times_of(path: Path) -> str:
    """Return the sequence's times and kind in words, from the header."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    found = {name: value for name, keyword in TIMES.items() if (value := _anywhere(dataset, keyword)) is not None}
    kind = dataset.get("ScanningSequence") or dataset.get("AcquisitionContrast") or "?"
    kind = kind if isinstance(kind, str) else "/".join(kind)
    return " ".join([kind, *(f"{name} {float(value):g}" for name, value in found.items())])


def _anywhere(dataset: pydicom.Dataset, keyword: str) -> Any:
    names = {keyword, {"EchoTime": "EffectiveEchoTime", "InversionTime": "InversionTimes"}.get(keyword, keyword)}
    for element in dataset.iterall():
        if element.keyword in names and element.value not in (None, ""):
            value = element.value
            return value[0] if isinstance(value, pydicom.multival.MultiValue) else value
    return None


def sequence_if_whole(series: Series) -> str:
    """Return the sequence that a series would have with all slices of a head, with the reason."""
    assert series.shape is not None
    whole = replace(series, shape=(*series.shape[:2], WHOLE))
    (verdict,) = judge_series([whole], packaged_rules())
    return f"{verdict.sequence.title if verdict.sequence else '-'} ({verdict.why})"


def rows(folder: Path) -> list[tuple[str, bool]]:
    """Return the lines of one folder, a line for each stack, with True if what was read is what the headers say."""
    lines = []
    found = find_series(folder)
    for series in found:
        with collected_warnings() as warnings:
            volume = read_series(series)
        slices = [one for path in series.files for one in slices_of(path)]
        sides, axes = header_grid(slices)
        read_sides = sorted(volume.grid.spacing_mm)
        differs = misplaced(slices, volume)
        if not np.allclose(sides, read_sides, atol=1e-4):
            differs = differs or "another voxel size"
        if axes != "".join(sorted(volume.grid.axes, key="LRPAIS".index)) and not _same_lines(axes, volume.grid.axes):
            differs = differs or "other axes"
        if len(slices) not in volume.voxels.shape:
            differs = differs or f"{len(slices)} slices in the headers"
        verdict = judge_series(found, packaged_rules())[found.index(series)]
        read = f"{'x'.join(map(str, volume.voxels.shape))}, {_mm(volume.grid.spacing_mm)} mm, {volume.grid.axes}"
        header = f"{len(slices)} of {slices[0].pixels.shape[1]}x{slices[0].pixels.shape[0]}, {_mm(sides)} mm"
        title = verdict.sequence.title if verdict.sequence else "-"
        cells = [
            folder.name, str(len(series.files)), header, read, series.plane or "", times_of(series.files[0]),
            f"{title} ({verdict.why})", sequence_if_whole(series), "; ".join(warnings) or "none", differs or "nothing",
        ]  # fmt: skip
        lines.append(("| " + " | ".join(cells) + " |", not differs))
    return lines


def _same_lines(one: str, other: str) -> bool:
    """True if two axis codes name the same three lines; their directions are checked by the corners."""
    kind = {"L": "x", "R": "x", "P": "y", "A": "y", "I": "z", "S": "z"}
    return sorted(kind[letter] for letter in one) == sorted(kind[letter] for letter in other)


def _mm(sides: Sequence[float]) -> str:
    return " x ".join(f"{side:.4g}" for side in sides)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    wanted = parser.parse_args()
    titles = (
        "series", "files", "slices in the headers", "read", "plane", "times in the header", "sequence", "if whole",
        "warnings", "differs",
    )  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    fine = True
    for folder in sorted(path for path in wanted.folder.iterdir() if path.is_dir()):
        for line, right in rows(folder):
            lines.append(line)
            fine &= right
    print("\n".join(lines))
    if wanted.output:
        wanted.output.write_text("\n".join(lines) + "\n", "utf-8")
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
