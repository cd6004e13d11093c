"""Troubles that users of other tools report, rebuilt on phantoms; the rows of `real_faults.py`, in eleven kinds."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from fault_files import save, voxels, with_bytes
from real_faults import (
    Lab,
    Measure,
    Row,
    Skipped,
    Words,
    each_uses,
    ends,
    lattice,
    motions,
    never,
    overlap,
    same_labels,
    says,
    scores,
    studies,
    uses,
    warned,
    written,
)
from scipy import ndimage
from scipy.spatial.transform import Rotation

import dicom_phantoms

PAIR = ("t1c", "flair")
QUICK = ("--uncertainty", "none")
Change = Callable[[np.ndarray, np.random.Generator, str], np.ndarray]


# Images with other voxels


def files(place: Path, lab: Lab, flags: tuple[str, ...] = PAIR, change: Change | None = None) -> Words:
    """Write sequences, changed perhaps, and return the command."""
    words: list[str | Path] = ["segment"]
    for flag in flags:
        array = voxels(lab.scans[flag])
        if change is not None:
            array = change(array, np.random.default_rng([7, *flag.encode()]), flag)
        path = save(place / f"{flag}.nii.gz", array.astype(np.float32), lab.scans[flag].affine)
        words += [f"--{flag}", path]
    return [*words, *QUICK]


def plain_pair(place: Path, lab: Lab) -> Words:
    """T1c and FLAIR as they are."""
    return files(place, lab)


def plain_t1c(place: Path, lab: Lab) -> Words:
    """T1c as it is."""
    return files(place, lab, ("t1c",))


def changed(change: Change) -> Callable[[Path, Lab], Words]:
    """Return a builder of changed T1c and FLAIR."""
    return lambda place, lab: files(place, lab, change=change)


def with_mask(change: Change) -> Callable[[Path, Lab], Words]:
    """Return a builder of changed T1c and FLAIR with the brain mask of the untouched T1c."""

    def make(place: Path, lab: Lab) -> Words:
        scan = lab.scans["t1c"]
        inside = ndimage.binary_fill_holes(voxels(scan) != 0).astype(np.uint8)
        return [*files(place, lab, change=change), "--brain-mask", save(place / "brain.nii.gz", inside, scan.affine)]

    return make


def voxel_row(
    kind: str, fault: str, change: Change, *, region: str = "WT", moved: float = 0.0, more: tuple[Measure, ...] = ()
) -> Row:
    """Return a row of changed voxels at 2 mm, compared by Dice."""
    right = (ends(0), overlap(region, moved=moved), *more)
    return Row(kind=kind, fault=fault, make=changed(change), right=right, spacing=2.0, clean=plain_pair)


def resampled(name: str) -> Change:
    """Resample by 0.4 voxel along each axis."""

    def change(array: np.ndarray, _: np.random.Generator, __: str) -> np.ndarray:
        if name == "cubic":
            return ndimage.shift(array.astype(np.float32), -0.4, order=3)
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(array.astype(np.float32).T)
        kind = {"B-spline": sitk.sitkBSpline, "Lanczos": sitk.sitkLanczosWindowedSinc}[name]
        return sitk.GetArrayFromImage(sitk.Resample(image, image, sitk.TranslationTransform(3, [0.4] * 3), kind, 0.0)).T

    return change


def denoised(array: np.ndarray, draw: np.random.Generator, _: str) -> np.ndarray:
    """Noise of 1 % before, and a denoiser (curvature flow) that leaves small values in the air."""
    import SimpleITK as sitk

    noisy = array + draw.normal(0, 0.01 * array.max(), array.shape)
    image = sitk.GetImageFromArray(noisy.astype(np.float32).T)
    return sitk.GetArrayFromImage(sitk.CurvatureFlow(image, 0.05, 5)).T


def noise(share: float, only: str = "") -> Change:
    """Add noise of a share of the maximum, to one sequence only perhaps."""

    def change(array: np.ndarray, draw: np.random.Generator, flag: str) -> np.ndarray:
        if only not in ("", flag):
            return array
        return array + draw.normal(0, share * array.max(), array.shape)

    return change


def ghost(array: np.ndarray, draw: np.random.Generator, _: str) -> np.ndarray:
    """Add a ghost of 5 %, half a field of view away, and noise of 0.1 %."""
    away = np.roll(array, array.shape[1] // 2, axis=1)
    return np.abs(array + 0.05 * away + draw.normal(0, 1e-3 * array.max(), array.shape))


def air(level: float) -> Change:
    """Set the air to a level."""
    return lambda array, _, __: np.where(array == 0, level, array)


def spikes(count: int, factor: float, only: str = "", *, together: bool = False) -> Change:
    """Set voxels of the brain to a multiple of its median; a factor of 32767 is that value itself."""

    def change(array: np.ndarray, draw: np.random.Generator, flag: str) -> np.ndarray:
        array = array.astype(np.float32)
        if only in ("", flag):
            places = np.argwhere(array != 0)
            near = np.argsort(((places - places[draw.integers(len(places))]) ** 2).sum(1))[:count]
            chosen = places[near if together else draw.choice(len(places), count, replace=False)]
            array[tuple(chosen.T)] = 32767 if factor == 32767 else factor * np.median(array[array != 0])
        return array

    return change


def clipped(array: np.ndarray, _: np.random.Generator, __: str) -> np.ndarray:
    """Cut the brightest 0.1 % of the brain to one value."""
    return np.minimum(array, np.percentile(array[array != 0], 99.9))


def wrapped(array: np.ndarray, _: np.random.Generator, __: str) -> np.ndarray:
    """Scale to 40,000 and wrap at 16 bits."""
    scaled = np.rint(array * (40_000 / array.max()))
    return np.where(scaled > 32_767, scaled - 65_536, scaled)


MASK = says("--brain-mask", words="--brain-mask"), warned("--brain-mask", "--brain-mask")
A = (
    voxel_row("A", "B-spline by 0.4 voxel", resampled("B-spline"), moved=0.4, more=MASK),
    voxel_row("A", "cubic interpolation by 0.4 voxel", resampled("cubic"), moved=-0.4, more=MASK),
    voxel_row("A", "Lanczos by 0.4 voxel", resampled("Lanczos"), moved=0.4, more=MASK),
    voxel_row("A", "a denoiser that leaves small values in the air", denoised, more=MASK),
    voxel_row("A", "noise of 1e-4 of the maximum", noise(1e-4), more=MASK),
    voxel_row("A", "noise of 1e-2 of the maximum", noise(1e-2), more=MASK),
    Row(
        kind="A", fault="noise of 1e-4, with --brain-mask", make=with_mask(noise(1e-4)), spacing=2.0, clean=plain_pair,
        right=(ends(0), overlap("WT")),
    ),
    voxel_row("A", "ghost of 5 % in the air", ghost, more=MASK),
    voxel_row("A", "constant air of 100", air(100)),
    voxel_row("A", "negative air of -1000", air(-1000)),
    voxel_row("A", "noise of 1e-2 in FLAIR, T1c clean", noise(1e-2, "flair"), more=MASK),
)  # fmt: skip
SPIKES = says("spike", words="how many were replaced"), warned("spike", "the number")
B = (
    voxel_row("B", "20 voxels at 110 x the median in both sequences", spikes(20, 110), more=SPIKES),
    voxel_row("B", "one voxel at 1000 x", spikes(1, 1000), more=SPIKES),
    voxel_row("B", "eight voxels of 32767 in T1c alone", spikes(8, 32767, "t1c"), region="ET", more=SPIKES),
    voxel_row("B", "200 voxels at 10 x, side by side (a vessel)", spikes(200, 10, together=True)),
    voxel_row("B", "brightest 0.1 % clipped", clipped),
    voxel_row("B", "bright values wrapped at 16 bits", wrapped, more=(says("16 bits|wrapped", words="wrapped"),)),
)


# DICOM

SE = {"RepetitionTime": 550, "EchoTime": 12, "ScanningSequence": "SE"}
SEQUENCES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "t1": ("t1_se_tra", SE),
    "t1c": ("t1_se_tra_km", {**SE, "ContrastBolusAgent": "Gadovist"}),
    "t2": ("t2_tse_tra", {"RepetitionTime": 5500, "EchoTime": 100, "ScanningSequence": "SE"}),
    "flair": (
        "t2_tirm_tra_dark-fluid",
        {"RepetitionTime": 9000, "EchoTime": 100, "InversionTime": 2500, "ScanningSequence": ["SE", "IR"]},
    ),
}


def series(folder: Path, lab: Lab, flag: str = "t1c", **changes: Any) -> list[Path]:
    """Write one sequence as a DICOM series."""
    description, tags = SEQUENCES[flag]
    stored = np.maximum(voxels(lab.scans[flag]), 0).astype(np.uint16) + changes.pop("add", 0)
    affine = changes.pop("affine", lab.scans[flag].affine)
    options = {"description": description, "tags": tags, "number": 1 + list(SEQUENCES).index(flag), **changes}
    return dicom_phantoms.write_series(folder, stored, affine, **options)


def one_series(place: Path, lab: Lab) -> Words:
    """Write T1c as a clean series, given by its folder."""
    series(place / "t1c", lab)
    return ["segment", "--t1c", place / "t1c", *QUICK]


def visit(place: Path, lab: Lab) -> Words:
    """Write T1c and FLAIR as a clean DICOM study, given with -i."""
    for flag in PAIR:
        series(place / "visit", lab, flag)
    return ["segment", "-i", place / "visit", *QUICK]


def altered(change: Callable[[list[Path]], None]) -> Callable[[Path, Lab], Words]:
    """Return a builder of a T1c series of which files are changed."""

    def make(place: Path, lab: Lab) -> Words:
        change(series(place / "t1c", lab))
        return ["segment", "--t1c", place / "t1c", *QUICK]

    return make


def cosines(paths: list[Path]) -> None:
    """Write direction cosines that differ by 2e-6 where a rounding to five decimals would part them."""
    for number, path in enumerate(paths):
        turned = 0.000004 + 0.000002 * (number % 2)
        tags = ["1", f"{turned:.8f}", "0", f"{-turned:.8f}", "1", "0"]
        dicom_phantoms.change(path, ImageOrientationPatient=tags)


def pixel_spacings(paths: list[Path]) -> None:
    """Write pixel spacings that differ by 2e-6 mm between slices, around a rounding boundary."""
    for number, path in enumerate(paths):
        dicom_phantoms.change(path, PixelSpacing=[f"{4.000004 + 0.000002 * (number % 2):.6f}"] * 2)


def rounded_positions(place: Path, lab: Lab) -> Words:
    """Write slices of 0.69 mm whose positions are rounded to 0.01 mm."""
    import pydicom

    affine = lab.scans["t1c"].affine @ np.diag([1, 1, 0.69 / 4, 1])
    for path in series(place / "t1c", lab, affine=affine):
        position = pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient
        dicom_phantoms.change(path, ImagePositionPatient=[f"{float(part):.2f}" for part in position])
    return ["segment", "--t1c", place / "t1c", *QUICK, "--raw", "no"]


def exact_positions(place: Path, lab: Lab) -> Words:
    """Write the same slices with exact positions."""
    series(place / "t1c", lab, affine=lab.scans["t1c"].affine @ np.diag([1, 1, 0.69 / 4, 1]))
    return ["segment", "--t1c", place / "t1c", *QUICK, "--raw", "no"]


def turned_slices(paths: list[Path]) -> None:
    """Turn the last nine slices by two degrees."""
    c, s = np.cos(np.radians(2)), np.sin(np.radians(2))
    for path in paths[-9:]:
        cosines_ = [f"{number:.6f}" for number in (c, s, 0, -s, c, 0)]
        dicom_phantoms.change(path, ImageOrientationPatient=cosines_)


OBLIQUE = (7, 3, 0.2)
"""Angles in degrees about x, y and z. With axes L P S a quaternion of single precision is 0.1 mm away."""


def evaluated(reference: Callable[[Path, np.ndarray, np.ndarray], None], *, oblique: bool = False):
    """Return a builder of a study to evaluate whose reference is written by a function of path, labels and affine."""

    def make(place: Path, lab: Lab) -> Words:
        affine = lab.scans["t1c"].affine
        if oblique:
            turn = np.eye(4)
            turn[:3, :3] = Rotation.from_euler("xyz", OBLIQUE, degrees=True).as_matrix()
            affine = turn @ affine
        folder = place / "data" / "S1"
        save(folder / "S1-t1c.nii.gz", voxels(lab.scans["t1c"]), affine)
        reference(folder / "S1-seg.nii.gz", np.asarray(lab.scans["seg"].dataobj).astype(np.uint8), affine)
        return ["evaluate", "box", "--data", place / "data", "--subsets", "t1c", "--metrics", "dice"]

    return make


def by_qform(path: Path, labels: np.ndarray, affine: np.ndarray) -> None:
    """Write labels whose affine is a quaternion of single precision; there is no sform.

    The fourth part of the quaternion is the root of a small difference here, so that rounding turns the grid.
    """
    plain = save(path.with_suffix("").with_suffix(".nii"), labels, affine)
    with_bytes(plain, 252, struct.pack("<hh", 1, 0))
    image = nibabel.load(plain)
    corner = [*(np.array(image.shape) - 1), 1]
    away = np.linalg.norm((image.affine - affine) @ corner)
    assert 0.001 < away < 0.4, f"{away:.4f} mm"


def rounded_spacing(path: Path, labels: np.ndarray, affine: np.ndarray) -> None:
    """Write labels with voxels of 3.9957 mm for 4: the far corner lies 0.4 mm away."""
    save(path, labels, affine @ np.diag([3.9957 / 4, 3.9957 / 4, 3.9957 / 4, 1]))


def two_mm_away(path: Path, labels: np.ndarray, affine: np.ndarray) -> None:
    """Write labels half a voxel away."""
    moved = affine.copy()
    moved[0, 3] += 2
    save(path, labels, moved)


exact_oblique, exact_reference = evaluated(save, oblique=True), evaluated(save)


def long_quaternion(place: Path, lab: Lab) -> Words:
    """Write a T1c with a qform alone, whose quaternion is longer than 1 by 1e-6."""
    path = with_bytes(save(place / "t1c.nii", voxels(lab.scans["t1c"]), lab.scans["t1c"].affine), 252, b"\1\0\0\0")
    return ["segment", "--t1c", with_bytes(path, 256, struct.pack("<fff", 0, 0, 1 + 1e-6)), *QUICK]


def rounded_affine(place: Path, lab: Lab) -> Words:
    """Write a FLAIR whose affine differs from that of T1c by 0.2 mm at the far corner."""
    words = files(place, lab)
    affine = lab.scans["flair"].affine @ np.diag([4.003 / 4, 4.003 / 4, 1, 1])
    save(place / "flair.nii.gz", voxels(lab.scans["flair"]), affine)
    return words


def _sides(lab: Lab) -> list[float]:
    return [float(side) for side in lab.scans["t1c"].header.get_zooms()]


def _count(lab: Lab) -> int:
    return lab.scans["t1c"].shape[2]


ALL_SLICES = lattice(_sides, _count)
C = (
    Row(
        kind="C", fault="direction cosines that differ by 2e-6 at a rounding boundary", make=altered(cosines),
        right=(ends(0), ALL_SLICES, same_labels()), clean=one_series,
    ),
    Row(
        kind="C", fault="PixelSpacing that differs by 2e-6 mm", make=altered(pixel_spacings),
        right=(ends(0), ALL_SLICES, same_labels()), clean=one_series,
    ),
    Row(
        kind="C", fault="reference whose affine went through a qform", make=evaluated(by_qform, oblique=True),
        right=(ends(0), scores(1)), clean=exact_oblique,
    ),
    Row(
        kind="C", fault="reference with a rounded spacing, 0.4 mm at the far corner", make=evaluated(rounded_spacing),
        right=(ends(0), scores(1)), clean=exact_reference,
    ),
    Row(
        kind="C", fault="reference 2 mm away (half a voxel)", make=evaluated(two_mm_away),
        right=(ends(3), says(r"2(\.0+)? mm", words="2.00 mm")),
    ),
    Row(
        kind="C", fault="DICOM positions rounded to 0.01 mm, slices of 0.69 mm", make=rounded_positions,
        right=(ends(0), lattice(lambda lab: (4, 4, 0.69), _count), same_labels(0.999)), clean=exact_positions,
    ),
    Row(
        kind="C", fault="qform quaternion longer than 1 by 1e-6", make=long_quaternion,
        right=(ends(0), uses("t1c"), ALL_SLICES),
    ),
    Row(
        kind="C", fault="nine slices of a series turned by 2 degrees", make=altered(turned_slices),
        right=(ends(0), says("9 slices", "up to [0-9.]+ mm", words="9 slices and the distance in mm")),
    ),
    Row(
        kind="C", fault="FLAIR whose affine differs by 0.2 mm at the far corner", make=rounded_affine,
        right=(ends(0), same_labels(0.999), motions(0.5)), clean=plain_pair,
    ),
)  # fmt: skip


# Names


def tree(*studies_: Mapping[str, str], words: Words = ("segment", "-i")) -> Callable[[Path, Lab], Words]:
    """Return a builder of a tree: for each study, file names (without suffix, with folders) and their sequences."""

    def make(place: Path, lab: Lab) -> Words:
        for names in studies_:
            for name, flag in names.items():
                scan = lab.scans[flag]
                array = np.asarray(scan.dataobj).astype(np.uint8) if flag == "seg" else voxels(scan)
                save(place / "data" / f"{name}.nii.gz", array, scan.affine)
        more = QUICK if words[0] == "segment" else ()
        return [*words[:2], place / "data", *words[2:], *more]

    return make


def spelled(*spellings: str, beside: Mapping[str, str] | None = None) -> Callable[[Path, Lab], Words]:
    """Return a builder of a tree of studies, each with T1c under another name, and perhaps other images."""
    names = []
    for number, word in enumerate(spellings, 1):
        study = f"S{number}"
        names.append(
            {f"{study}/{study}_{word}": "t1c", **{f"{study}/{study}_{k}": v for k, v in (beside or {}).items()}}
        )
    return tree(*names)


def bids(place: Path, lab: Lab) -> Words:
    """Write BIDS with the suffix T1c, which BIDS does not know."""
    for suffix, flag in (("T1c", "t1c"), ("FLAIR", "flair")):
        save(place / "data/sub-01/anat" / f"sub-01_{suffix}.nii.gz", voxels(lab.scans[flag]), lab.scans[flag].affine)
    (place / "data/dataset_description.json").write_text('{"Name": "made", "BIDSVersion": "1.10.0"}')
    return ["segment", "-i", place / "data", *QUICK]


WITHOUT = ("CT1", "cT1", "postT1", "PostContrast_T1", "Gd_T1")
LEFT = ("T1_Gd", "T1+C", "T1KM", "T1post", "T1wCE")
NOT_USED = "is not used"
D = (
    Row(
        kind="D", fault="FLAIRs of two patients called patient1 and patient2",
        make=tree({"study/patient1": "flair", "study/patient2": "flair"}),
        right=(ends(3), says("patient1.*says no sequence", words="patient1.nii.gz ... says no sequence")),
    ),
    Row(
        kind="D", fault="visit1, subject2 beside a T1c",
        make=tree({"S1/S1_t1c": "t1c", "S1/visit1": "flair", "S1/subject2": "flair"}),
        right=(ends(0), uses("t1c", "S1"), says("visit1.*" + NOT_USED, "subject2.*" + NOT_USED, words="both not used")),
    ),
    Row(kind="D", fault=", ".join(WITHOUT), make=spelled(*WITHOUT), right=(ends(0), each_uses("t1c", 5))),
    Row(
        kind="D", fault=", ".join(LEFT) + " beside a FLAIR", make=spelled(*LEFT, beside={"flair": "flair"}),
        right=(ends(0), each_uses("t1c flair", 5)),
    ),
    Row(kind="D", fault="BIDS with the suffix T1c", make=bids, right=(ends(0), uses("t1c flair", "sub-01"))),
    Row(
        kind="D", fault="T1 map of an MP2RAGE beside a T1c",
        make=tree({"S1/S1_t1c": "t1c", "S1/t1_mp2rage_sag_p3_iso_T1": "t1"}),
        right=(ends(0), uses("t1c", "S1"), says("mp2rage.*" + NOT_USED, words="it is not used")),
    ),
    Row(
        kind="D", fault="fat image of a Dixon called T1c beside a FLAIR",
        make=tree({"S1/S1_flair": "flair", "S1/fat_T1c": "t1c"}),
        right=(ends(0), uses("flair", "S1"), says("fat_T1c.*" + NOT_USED, words="it is not used")),
    ),
    Row(
        kind="D", fault="doubtful names (mprage, T1_FLAIR) beside a T1c",
        make=tree({"S1/S1_t1c": "t1c", "S1/mprage": "t1", "S1/T1_FLAIR": "flair"}),
        right=(ends(0), uses("t1c", "S1"), says("mprage.*" + NOT_USED, "T1_FLAIR.*" + NOT_USED, words="both not used")),
    ),
    Row(
        kind="D", fault="unused images in a tree (adc, patient1, mask)",
        make=tree({"S1/S1_t1c": "t1c", "S1/adc": "t2", "S1/patient1": "t2", "S1/t1c_brain_mask": "seg"}),
        right=(
            ends(0), uses("t1c", "S1"),
            says(*(f"{name}.*{NOT_USED}" for name in ("adc", "patient1", "mask")), words="three images not used"),
        ),
    ),
)  # fmt: skip


# Two references

TWO = {"S1/S1-t1c": "t1c", "S1/deepmedic_seg": "seg", "S1/final_seg": "seg"}
REFUSED = (ends(3), says("two references", words="two references"))


def doubtful(verb: str, words: Words) -> Row:
    """Return a row of two references and one verb."""
    return Row(
        kind="E", fault=f"two segmentations beside the images, {verb}", make=tree(TWO, words=words), right=REFUSED
    )


E = (
    doubtful("evaluate", ("evaluate", "--data", "box", "--subsets", "t1c", "--metrics", "dice")),
    doubtful("evaluate --labels", ("evaluate", "--data", "box", "--labels", "brats2023")),
    doubtful("train", ("train", "--data", "unet/phantom", "--set", "optim.steps=2")),
    doubtful("train --labels", ("train", "--data", "unet/phantom", "--labels", "brats2023", "--set", "optim.steps=2")),
    doubtful("calibrate", ("calibrate", "--data", "box")),
    doubtful("convert", ("convert", "--to=bids", "--labels=brats2023")),
    Row(
        kind="E", fault="two segmentations beside the images, segment (which needs none)", make=tree(TWO),
        right=(ends(0), uses("t1c", "S1")),
    ),
)  # fmt: skip


# Trees


def listed(place: Path, lab: Lab, keys: tuple[str, ...] = ("channel_names", "labels", "dataset")) -> Words:
    """Write a dataset.json with nnU-Net's key `dataset`, or with some of its keys only."""
    for name, flag in (("x1", "flair"), ("x2", "t1c"), ("y", "seg")):
        array = np.asarray(lab.scans[flag].dataobj).astype(np.uint8) if flag == "seg" else voxels(lab.scans[flag])
        save(place / "data/scans" / f"{name}.nii.gz", array, lab.scans[flag].affine)
    whole = {
        "channel_names": {"0": "FLAIR", "1": "T1w-Gd"},
        "labels": {"background": 0, "NCR": 1, "ED": 2, "ET": 3},
        "dataset": {"P1": {"images": ["scans/x1.nii.gz", "scans/x2.nii.gz"], "label": "scans/y.nii.gz"}},
    }
    (place / "data/dataset.json").write_text(json.dumps({key: whole[key] for key in keys}))
    return ["segment", "-i", place / "data", *QUICK]


FOLDERS = {"P1/T1/image": "t1", "P1/T1_post/image": "t1c", "P1/FLAIR/image": "flair", "P1/seg/image": "seg"}
ONE_FOLDER = {"P1/P1-t1n": "t1", "P1/P1-t1c": "t1c", "P1/P1-t2f": "flair", "P1/P1-seg": "seg"}
SCORE = ("evaluate", "--data", "box", "--subsets", "t1c+flair", "--metrics", "dice", "--labels", "brats2023")
score_one_folder = tree(ONE_FOLDER, words=SCORE)
F = (
    Row(
        kind="F", fault="a folder for each sequence of one patient", make=tree(FOLDERS),
        right=(ends(0), studies("P1"), uses("t1 t1c flair", "P1")),
    ),
    Row(
        kind="F", fault="a folder for each sequence, and for the reference", make=tree(FOLDERS, words=SCORE),
        right=(ends(0), scores(1, 1e-6)), clean=score_one_folder,
    ),
    Row(
        kind="F", fault="PATIENT/TIMEPOINT with equal time points in all patients",
        make=tree(*({f"{p}/{t}/{p}_{t}_t1c": "t1c"} for p in ("P1", "P2") for t in ("week-000", "week-044"))),
        right=(ends(0), studies("P1_week-000", "P1_week-044", "P2_week-000", "P2_week-044")),
    ),
    Row(
        kind="F", fault="derived files below a study (SegmentationsForQC/deep/_t1.nii.gz)",
        make=tree(
            *(
                {f"{p}/{p}_t1c": "t1c", f"{p}/{p}_flair": "flair", f"{p}/SegmentationsForQC/deep/_t1": "t1"}
                for p in ("P1", "P2")
            )
        ),
        right=(ends(0), studies("P1", "P2"), uses("t1c flair", "P1"), says("derived|not used", words="derived")),
    ),
    Row(
        kind="F", fault="dataset.json with nnU-Net's key `dataset`", make=listed,
        right=(ends(0), studies("P1"), uses("t1c flair", "P1")),
    ),
    Row(
        kind="F", fault="dataset.json without channel_names",
        make=lambda place, lab: listed(place, lab, ("labels", "dataset")),
        right=(ends(3), says("channel_names", words="channel_names")),
    ),
)  # fmt: skip


# Registration

COVERED = 12
"""Number of pairs with smaller coverage."""


def _slab(array: np.ndarray, low: int, high: int) -> np.ndarray:
    filled = np.zeros_like(array)
    filled[:, :, low:high] = array[:, :, low:high]
    return filled


def _on_grid(array: np.ndarray, affine: np.ndarray, sides: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Resample to other voxel sides in the same world frame, linearly."""
    from nibabel.processing import resample_to_output

    image = resample_to_output(nibabel.Nifti1Image(array.astype(np.float32), affine), sides, order=1)
    return np.asarray(image.dataobj), image.affine


def smaller_coverage(place: Path, lab: Lab) -> list[Words]:
    """Write twelve aligned pairs, the second image a slab: filled up with zeros, on its own grid, or resampled."""
    commands: list[Words] = []
    for number in range(COVERED):
        draw = np.random.default_rng([7, number])
        flag, kind = ("t1", "t2", "flair")[number // 4], number % 3
        low = int(draw.integers(6, 20))
        high = low + int(draw.integers(12, 24))
        array, affine = voxels(lab.scans[flag]), lab.scans[flag].affine
        if kind == 1:
            affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, low], [0, 0, 0, 1]])
            array = array[:, :, low:high]
        else:
            array = _slab(array, low, high)
        if kind == 2:
            array, affine = _on_grid(array, affine, (4.0, 4.0, 4.0))
        other = save(place / f"{flag}-{number}.nii.gz", array, affine)
        t1c = save(place / f"t1c-{number}.nii.gz", voxels(lab.scans["t1c"]), lab.scans["t1c"].affine)
        commands.append(["segment", "--t1c", t1c, f"--{flag}", other, *QUICK])
    return commands


def other_grid(place: Path, lab: Lab) -> Words:
    """Write a FLAIR of the same world frame, resampled to voxels of 3.5 x 3.5 x 5 mm."""
    words = files(place, lab)
    array, affine = _on_grid(voxels(lab.scans["flair"]), lab.scans["flair"].affine, (3.5, 3.5, 5.0))
    save(place / "flair.nii.gz", array, affine)
    return words


def moved_image(slab: bool = False) -> Callable[[Path, Lab], Words]:
    """Return a builder of a FLAIR that is turned by 5 degrees about its middle and shifted by 6 mm."""

    def make(place: Path, lab: Lab) -> Words:
        words = files(place, lab)
        scan = lab.scans["flair"]
        middle = (scan.affine @ [*((np.array(scan.shape) - 1) / 2), 1])[:3]
        c, s = np.cos(np.radians(5)), np.sin(np.radians(5))
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        motion = np.eye(4)
        motion[:3, :3] = turn
        motion[:3, 3] = middle - turn @ middle + [6, 0, 0]
        array = voxels(scan)
        save(place / "flair.nii.gz", _slab(array, 10, 42) if slab else array, motion @ scan.affine)
        return words

    return make


G = (
    Row(
        kind="G", fault="12 aligned pairs, one image of smaller coverage", make=smaller_coverage, spacing=3.0,
        right=(ends(0), motions(1.0)),
    ),
    Row(
        kind="G", fault="one world frame, another grid", make=other_grid, spacing=3.0,
        right=(ends(0), motions(1.0), overlap("WT", 0.03)), clean=plain_pair,
    ),
    Row(
        kind="G", fault="FLAIR turned by 5 degrees and shifted by 6 mm", make=moved_image(), spacing=3.0,
        right=(
            ends(0), motions(0.5, (6.0, 5.0)), overlap("WT", 0.03),
            says("registered to T1c: [0-9.]+ mm and [0-9.]+ degrees", words="what was moved, with mm and degrees"),
        ),
        clean=plain_pair,
    ),
    Row(
        kind="G", fault="the same, FLAIR a slab of 96 mm", make=moved_image(slab=True), spacing=3.0,
        right=(ends(0), motions(1.0, (6.0, 5.0)), says("registered to T1c: [0-9.]+ mm", words="what was moved")),
    ),
)  # fmt: skip


# Privacy and surroundings

WORD = "Zyxwvutna"
REPR = r"<[\w.]+ object at|PosixPath\(|Series\(|\w+\((?:\w+=|')[^)]*/"
NAMES_NOTHING = never(REPR, WORD, words="repr, path or name in terminal and log")


def repeated_series(place: Path, lab: Lab) -> Words:
    """Write T1c twice and FLAIR in a folder with the patient's name."""
    person = dicom_phantoms.Person(name=f"{WORD.upper()}^ERIKA", id=f"{WORD}4711")
    folder = place / f"{WORD}_EXPORT" / "visit"
    for number, (flag, add) in enumerate((("t1c", 0), ("flair", 0), ("t1c", 1)), 1):
        series(folder / str(number), lab, flag, number=number, add=add, person=person)
    return ["--log-file", place / "verb.log", "segment", "-i", folder, *QUICK]


def named_tree(words: Words) -> Callable[[Path, Lab], Words]:
    """Return a builder of a tree below a folder with the patient's name, with a log file."""

    def make(place: Path, lab: Lab) -> Words:
        scans = {"t1c": "t1c", "t2f": "flair", "seg": "seg", "adc": "t2"}
        for name, flag in scans.items():
            array = np.asarray(lab.scans[flag].dataobj).astype(np.uint8) if flag == "seg" else voxels(lab.scans[flag])
            save(place / f"{WORD}_DATA/S1/S1-{name}.nii.gz", array, lab.scans[flag].affine)
        whole = [place / f"{WORD}_DATA" if word == "DATA" else word for word in words]
        return ["--log-file", place / "verb.log", *whole]

    return make


def private(verb: str, *words: str) -> Row:
    """Return a row of a verb whose output must not name the input."""
    return Row(kind="H", fault=f"names and paths, {verb}", make=named_tree(words), right=(ends(0), NAMES_NOTHING))


SMALL = ("--set", "optim.steps=2", "--set", "config.width=8", "--set", "data.sampling.patch=[32,32,32]")
H = (
    Row(
        kind="H", fault="a repeated series (T1c twice)", make=repeated_series,
        right=(ends(0), NAMES_NOTHING, uses("t1c flair", "visit")),
    ),
    private("segment", "segment", "-i", "DATA", *QUICK),
    private("evaluate", "evaluate", "box", "--data", "DATA", "--subsets", "t1c", "--metrics", "dice"),
    private("calibrate", "calibrate", "box", "--data", "DATA"),
    private("prepare", "prepare", "DATA", "--recipe", "unet/phantom"),
    private("convert", "convert", "DATA", "--to", "bids"),
    private("train", "train", "unet/phantom", "--data", "DATA", *SMALL),
)  # fmt: skip


def unknown_user(**variables: str) -> Callable[[Path, Lab], tuple[list[str], Mapping[str, str]]]:
    """Return words that run a command as a user id without an entry, with these variables alone."""

    def words(place: Path, lab: Lab) -> tuple[list[str], Mapping[str, str]]:
        if os.geteuid() != 0 or shutil.which("setpriv") is None:
            raise Skipped("needs root and setpriv, to take another user id")
        (place / "home").mkdir(mode=0o555)
        # The right to read what root alone may read, since the interpreter may lie in root's home.
        keep = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        known = {name: value.replace("PLACE", str(place)) for name, value in variables.items()}
        kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(lab.src), "OMP_NUM_THREADS": "1", "TMPDIR": "/tmp"}
        environment = {name: value for name, value in {**kept, **known}.items() if value}
        return ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", *keep], environment

    return words


def surroundings(fault: str, make: Callable[[Path, Lab], Words] = plain_t1c, **variables: str) -> Row:
    """Return a row of a command in other surroundings."""
    right = (ends(0), written("seg.nii.gz"), same_labels())
    return Row(kind="I", fault=fault, make=make, right=right, clean=plain_t1c, prefix=unknown_user(**variables))


def read_only_input(place: Path, lab: Lab) -> Words:
    """Write the input into a folder that nobody may write."""
    words = files(place / "in", lab, ("t1c",))
    (place / "in" / "t1c.nii.gz").chmod(0o444)
    (place / "in").chmod(0o555)
    return words


I = (  # noqa: E741
    surroundings("a user id without an entry, with a home", HOME="/tmp"),
    surroundings("the same, HOME unset"),
    surroundings("the same, a read-only home", HOME="PLACE/home"),
    surroundings("the same, no place for temporary files", HOME="/nowhere", TMPDIR="/nowhere"),
    surroundings("the same, no write permission beside the input", read_only_input),
)


# DICOM as exported


def bare(place: Path, lab: Lab) -> Words:
    """Write T1c and FLAIR without preamble and group 2."""
    import pydicom

    for flag in PAIR:
        for path in series(place / "visit", lab, flag):
            pydicom.Dataset(pydicom.dcmread(path)).save_as(path, implicit_vr=True, little_endian=True)
    return ["segment", "-i", place / "visit", *QUICK]


def sent_twice(paths: list[Path]) -> None:
    """Copy every slice with a new SOPInstanceUID."""
    for number, path in enumerate(paths):
        copy = path.with_name(f"copy-{path.name}")
        shutil.copy(path, copy)
        dicom_phantoms.change(copy, SOPInstanceUID=dicom_phantoms.uid("copy", number))


def own_series(place: Path, lab: Lab) -> Words:
    """Write T1c and FLAIR with a SeriesInstanceUID for each slice: 78 of them."""
    for flag in PAIR:
        for path in series(place / "visit", lab, flag):
            dicom_phantoms.change(path, SeriesInstanceUID=dicom_phantoms.uid("own", path.name))
    return ["segment", "-i", place / "visit", *QUICK]


def own_study(place: Path, lab: Lab) -> Words:
    """Write T1c and FLAIR with a StudyInstanceUID each."""
    for flag in PAIR:
        series(place / "visit", lab, flag, study=f"own {flag}")
    return ["segment", "-i", place / "visit", *QUICK]


def decimal_commas(paths: list[Path]) -> None:
    """Write PixelSpacing with decimal commas."""
    import pydicom

    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelSpacing", "LO", "4,000\\4,000")
        dataset.save_as(path)
        # pydicom writes no such DS. Its bytes are those of an LO.
        path.write_bytes(path.read_bytes().replace(b"\x28\x00\x30\x00LO", b"\x28\x00\x30\x00DS"))


def no_frame(place: Path, lab: Lab) -> Words:
    """Write T1c without FrameOfReferenceUID, and ask for a SEG and NIfTI."""
    for path in series(place / "t1c", lab):
        dicom_phantoms.change(path, FrameOfReferenceUID=None)
    return ["segment", "--t1c", place / "t1c", *QUICK, "--output-type", "nifti,dicom-seg"]


def dixon(*images: str) -> Callable[[Path, Lab], Words]:
    """Return a builder of a FLAIR and a T1c series that holds some images of a Dixon scan; the water image is T1c."""
    kinds = {"W": "W", "F": "F", "IP": "IN_PHASE", "OP": "OPP_PHASE"}

    def make(place: Path, lab: Lab) -> Words:
        for number, name in enumerate(images):
            tags = {
                "ImageType": ["DERIVED", "PRIMARY", kinds[name], kinds[name], "DERIVED"], "RepetitionTime": 5.9,
                "EchoTime": 2.5, "FlipAngle": 9, "ScanningSequence": "GR", "ContrastBolusAgent": "Gadovist",
            }  # fmt: skip
            folder = place / "visit" / name
            paths = series(folder, lab, add=7 * number, description="t1_vibe_dixon_tra_KM", tags=tags)
            for path in paths:
                dicom_phantoms.change(path, SOPInstanceUID=dicom_phantoms.uid(name, path.name))
        series(place / "visit" / "flair", lab, "flair")
        return ["segment", "-i", place / "visit", *QUICK]

    return make


water_alone = dixon("W")
J = (
    Row(
        kind="J", fault="no preamble and no group 2", make=bare, right=(ends(0), same_labels(study="visit")),
        clean=visit,
    ),
    Row(
        kind="J", fault="every slice twice, with new UIDs", make=altered(sent_twice),
        right=(ends(0), ALL_SLICES, same_labels(), says("same pixels", words="same pixels")), clean=one_series,
    ),
    Row(
        kind="J", fault="a SeriesInstanceUID for each slice", make=own_series,
        right=(ends(0), studies("visit"), uses("t1c flair", "visit"), same_labels(study="visit")), clean=visit,
    ),
    Row(
        kind="J", fault="a StudyInstanceUID for each series", make=own_study,
        right=(ends(0), studies("visit"), uses("t1c flair", "visit"), same_labels(study="visit")), clean=visit,
    ),
    Row(
        kind="J", fault="PixelSpacing with decimal commas", make=altered(decimal_commas),
        right=(ends(3), says("PixelSpacing", "4,000", words="PixelSpacing and its value")),
    ),
    Row(
        kind="J", fault="SEG and NIfTI from a series without FrameOfReferenceUID", make=no_frame,
        right=(
            ends(0), written("seg.nii.gz"), same_labels(), says("FrameOfReferenceUID", words="FrameOfReferenceUID"),
            warned("FrameOfReferenceUID", "FrameOfReferenceUID"),
        ),
        clean=one_series,
    ),
    Row(
        kind="J", fault="four images of a Dixon scan in one T1c series", make=dixon("W", "F", "IP", "OP"),
        right=(
            ends(0), uses("t1c flair", "visit"), same_labels(study="visit"),
            says("(?i)image type|dixon|fat|phase", words="images left out, with the reason"),
        ),
        clean=water_alone,
    ),
)  # fmt: skip


# Words that mislead


def renamed(true: str, told: str) -> Callable[[Path, Lab], Words]:
    """Return a builder of a file whose name ends otherwise than its content."""

    def make(place: Path, lab: Lab) -> Words:
        path = save(place / f"a{true}", voxels(lab.scans["t1c"]), lab.scans["t1c"].affine)
        return ["segment", "--t1c", path.rename(place / f"t1c{told}"), *QUICK]

    return make


def nifti_pair(place: Path, lab: Lab) -> Words:
    """Write a pair of .hdr and .img."""
    nibabel.save(nibabel.Nifti1Pair(voxels(lab.scans["t1c"]), lab.scans["t1c"].affine), place / "t1c.img")
    return ["segment", "--t1c", place / "t1c.img", *QUICK]


def in_metres(place: Path, lab: Lab) -> Words:
    """Write a file in metres, and say so in xyzt_units."""
    affine = np.diag([1e-3, 1e-3, 1e-3, 1]) @ lab.scans["t1c"].affine
    return [
        "segment",
        "--t1c",
        with_bytes(save(place / "t1c.nii", voxels(lab.scans["t1c"]), affine), 123, b"\1"),
        *QUICK,
    ]


def no_volumes(place: Path, lab: Lab) -> Words:
    """Write a file with four dimensions, the fourth of 0."""
    path = save(place / "t1c.nii.gz", voxels(lab.scans["t1c"]), lab.scans["t1c"].affine)
    with_bytes(with_bytes(path, 40, struct.pack("<h", 4)), 48, struct.pack("<h", 0))
    return ["segment", "--t1c", path, *QUICK]


def manifest(
    encoding: str = "utf-8", *, separator: str = ",", first: str = "", folder: str = "", absent: str = ""
) -> Callable[[Path, Lab], Words]:
    """Return a builder of a table of one study, as spreadsheets write it."""

    def make(place: Path, lab: Lab) -> Words:
        sub = folder.replace("\\", "/")
        for flag in PAIR:
            save(place / "data" / f"{sub}{flag}.nii.gz", voxels(lab.scans[flag]), lab.scans[flag].affine)
        text = io.StringIO()
        table = csv.writer(text, delimiter=separator, lineterminator="\r\n")
        table.writerow(["study", "t1", "t1c", "flair"])
        table.writerow(["S1", absent, *(f"{folder}{flag}.nii.gz" for flag in PAIR)])
        (place / "data" / "studies.csv").write_bytes((first + text.getvalue()).encode(encoding))
        return ["segment", "-i", place / "data" / "studies.csv", *QUICK]

    return make


def three_slices(place: Path, lab: Lab) -> Words:
    """Write three slices of the middle."""
    part = lab.scans["t1c"].slicer[:, :, 18:21]
    return ["segment", "--t1c", save(place / "t1c.nii.gz", voxels(part), part.affine), *QUICK]


def misled(fault: str, make: Callable[[Path, Lab], Words], *more: Measure) -> Row:
    """Return a row whose labels are those of the same image under a true name."""
    return Row(kind="K", fault=fault, make=make, right=(ends(0), same_labels(), *more), clean=plain_t1c)


def tabled(fault: str, make: Callable[[Path, Lab], Words], *more: Measure) -> Row:
    """Return a row of a manifest that is to be read."""
    return Row(kind="K", fault=f"manifest {fault}", make=make, right=(ends(0), uses("t1c flair", "S1"), *more))


K = (
    misled(".nii called .nii.gz", renamed(".nii", ".nii.gz"), says("not compressed|rename", words="not compressed")),
    misled(".nii.gz called .nii", renamed(".nii.gz", ".nii"), says("compressed|rename", words="compressed")),
    misled("a pair of .hdr and .img", nifti_pair),
    misled("affine in metres, xyzt_units metre", in_metres, says("metres", words="metres")),
    misled("dim[4] = 0", no_volumes, says(r"dim\[4\]", words="dim[4]")),
    tabled("in UTF-16", manifest("utf-16"), says("UTF-16", words="UTF-16")),
    tabled("with sep=;", manifest(separator=";", first="sep=;\r\n")),
    tabled("in Latin-1", manifest("latin-1", folder="Müller/"), says("Latin-1", words="Latin-1")),
    tabled("with backslashes", manifest(folder="scans\\"), says("backslash", words="backslashes")),
    tabled("with NA", manifest(absent="NA"), says("NA", words="NA")),
    Row(
        kind="K", fault="a study of three slices", make=three_slices,
        right=(ends(0), says("3 slices", words="3 slices"), warned("3 slices", "3 slices")),
    ),
)  # fmt: skip

ROWS = (*A, *B, *C, *D, *E, *F, *G, *H, *I, *J, *K)
