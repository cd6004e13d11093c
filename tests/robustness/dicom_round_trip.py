"""Send a phantom through every DICOM form that is read, and its labels through every form that is written.

    python tests/robustness/dicom_round_trip.py [--seed 7] [--spacing 3]

NIfTI -> DICOM -> read -> segmentation -> read -> NIfTI. Columns: voxels of the image that differ; the largest error of
the affine in mm; voxels of the labels that differ after a BINARY and after a LABELMAP segmentation, between the NIfTI
file that went in and the one that came out; the largest error of a region's volume in the report, in ml; errors that
dciodvfy finds in segmentation and report (`-`: not installed; it does not know LABELMAP, which is of 2024); seconds for
headers and pixels. Needs the extra dicom; compressed forms need dcmtk.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from glimpseg import phantom
from glimpseg.data import nifti
from glimpseg.data.dicom.find import find_series
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.data.dicom.read import read_series
from glimpseg.data.dicom.seg import read_seg, write_seg
from glimpseg.data.dicom.sr import write_sr
from glimpseg.modality import Modality
from glimpseg.region import CONVENTIONS, Label, Region
from glimpseg.volume import Volume, resample

sys.path.insert(0, str(Path(__file__).parents[1]))
import dicom_phantoms as phantoms

COLUMNS = ("form", "image", "affine mm", "BINARY", "LABELMAP", "volume ml", "SEG", "SR", "seconds")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7, help="of the phantom")
    parser.add_argument("--spacing", type=float, default=3.0, help="of the phantom, mm")
    wanted = parser.parse_args()
    settings = replace(phantom.Settings.at_spacing(wanted.spacing), post_operative=1.0)
    case = phantom.generate(wanted.seed, settings)
    voxels = case.images[list(Modality).index(Modality.FLAIR)].numpy().astype(np.int16)
    labels = Volume(case.labels.numpy(), case.affine)
    counted = {label.name: int((labels.voxels == label).sum()) for label in Label}
    print(f"phantom {wanted.seed}, {'x'.join(map(str, voxels.shape))} voxels, labels {counted}")
    print(COLUMNS[0].ljust(28) + "  ".join(name.rjust(9) for name in COLUMNS[1:]))
    with tempfile.TemporaryDirectory() as place:
        for number, (name, affine, write) in enumerate(forms(case.affine)):
            folder = Path(place) / str(number)
            write(folder / "in", voxels, affine)
            row = round_trip(folder, Volume(voxels, affine), Volume(labels.voxels, affine), name)
            print(name.ljust(28) + "  ".join(cell.rjust(9) for cell in row), flush=True)


def forms(affine: np.ndarray) -> Iterator[tuple[str, np.ndarray, Callable[..., Any]]]:
    """Names, affines, and how each is written."""
    for plane in phantoms.PLANES:
        yield plane, affine, with_options(plane=plane)
    yield "oblique", oblique(affine), with_options()
    yield "doubly oblique, sagittal", oblique(oblique(affine), 2), with_options(plane="sagittal")
    yield "reversed order", affine, with_options(reversed=True)
    yield "columns first", affine, with_options(plane="as stored")
    yield "enhanced multi-frame", affine, with_options(phantoms.write_enhanced)
    yield "enhanced, oblique, reversed", oblique(affine), with_options(phantoms.write_enhanced, reversed=True)
    for name in phantoms.COMPRESSIONS if phantoms.has_dcmtk() else ():
        yield name, affine, compressed(name)
    yield "deidentified", affine, with_options()


def with_options(writer: Callable[..., Any] = phantoms.write_series, **options: Any) -> Callable[..., Any]:
    """A way of writing, with its options."""
    return lambda folder, voxels, affine: writer(folder, voxels, affine, **options)


def compressed(name: str) -> Callable[..., Any]:
    """Written, then compressed in place."""
    return lambda folder, voxels, affine: phantoms.compress(phantoms.write_series(folder, voxels, affine), name)


def oblique(affine: np.ndarray, axis: int = 0, degrees: float = 17.0) -> np.ndarray:
    """The lattice turned about an axis of the body."""
    angle = np.radians(degrees)
    turn = np.eye(4)
    others = [other for other in range(3) if other != axis]
    turn[np.ix_(others, others)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def round_trip(folder: Path, image: Volume, labels: Volume, form: str) -> list[str]:
    """The cells of one row."""
    nifti.write_labels(folder / "labels.nii.gz", labels)
    given = nifti.read_labels(folder / "labels.nii.gz")
    begin = time.perf_counter()
    (series,) = find_series(folder / "in")
    headers = time.perf_counter()
    found = read_series(series)
    pixels = time.perf_counter()
    pseudonyms = Pseudonyms() if form == "deidentified" else None
    wrong = []
    for kind in ("BINARY", "LABELMAP"):
        write_seg(folder / f"{kind}.dcm", given, series, kind=kind, model="phantom", pseudonyms=pseudonyms)
        nifti.write_labels(folder / f"{kind}.nii.gz", read_seg(folder / f"{kind}.dcm", given.grid))
        back = nifti.read_labels(folder / f"{kind}.nii.gz", CONVENTIONS["brats2024"])
        wrong.append(int((back.voxels != labels.voxels).sum()))
    write_sr(folder / "sr.dcm", given, folder / "BINARY.dcm", series, model="phantom", pseudonyms=pseudonyms)
    placed = resample(found, image.grid)
    turned = found.ras().affine - image.ras().affine
    return [
        str(int((placed.voxels != image.voxels).sum())),
        f"{np.abs(turned).max():.1e}",
        *map(str, wrong),
        f"{volume_error(folder / 'sr.dcm', labels):.4f}",
        errors(folder / "BINARY.dcm"),
        errors(folder / "sr.dcm"),
        f"{headers - begin:.1f}+{pixels - headers:.1f}",
    ]


def volume_error(path: Path, labels: Volume) -> float:
    """The largest difference, ml, between the report's volumes and voxels counted."""
    import highdicom

    content = highdicom.sr.srread(path).content
    groups = [*content.get_volumetric_roi_measurement_groups(), *content.get_image_measurement_groups()]
    said = {group.tracking_identifier.split()[-1]: float(group.get_measurements()[0].value) for group in groups}
    return max(abs(said[region.name] - region.mask(labels.voxels).sum() * labels.grid.voxel_ml) for region in Region)


def errors(path: Path) -> str:
    """Number of errors that dciodvfy reports."""
    if not shutil.which("dciodvfy"):
        return "-"
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    return str(sum(line.startswith("Error") for line in (done.stdout + done.stderr).splitlines()))


if __name__ == "__main__":
    main()
