"""Small synthetic studies and trees of them in each layout, written by nibabel, SimpleITK, json and csv."""

import csv
import json

import nibabel
import numpy as np
import SimpleITK as sitk

from glimpseg.modality import SUBSETS, Modality
from glimpseg.study import Study
from glimpseg.volume import Volume

AFFINE = np.array([[-1.5, 0, 0, 4.5], [0, -2.0, 0, 6.25], [0, 0, 3.0, -7.0], [0, 0, 0, 1]])
SHAPE = (6, 7, 5)
T1, T1C, T2, FLAIR = Modality
MSD_NUMBERS = {1: 2, 2: 1, 3: 3}
"""glimpseg's label numbers to the Decathlon's: there 1 is oedema and 2 is the core."""
OLD_NUMBERS = {1: 1, 2: 2, 3: 4}
PLAIN_NUMBERS = {1: 1, 2: 2, 3: 3}


def made_study(name, subset, seed=0, reference=True):
    """Make a study with different whole-numbered images and a reference that holds NCR, ED and ET."""
    rng = np.random.default_rng([seed, *name.encode()])
    images = {m: Volume(rng.integers(1, 1000, SHAPE).astype(np.float32), AFFINE) for m in subset}
    labels = rng.integers(0, 4, SHAPE).astype(np.uint8)
    labels[0, 0, :4] = range(4)
    return Study(name, images, Volume(labels, AFFINE) if reference else None)


def made_studies(count=6, seed=0):
    """Make studies with random subsets of sequences; the last one has no reference."""
    rng = np.random.default_rng(seed)
    return [
        made_study(f"S{n:02d}", SUBSETS[rng.integers(len(SUBSETS))], seed, reference=n < count - 1)
        for n in range(count)
    ]


def save(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def put(path, volume):
    save(path, volume.voxels, volume.affine)


def numbered(study, numbers):
    """Return the reference with other label numbers."""
    labels = np.zeros_like(study.reference.voxels)
    for ours, theirs in numbers.items():
        labels[study.reference.voxels == ours] = theirs
    return Volume(labels, study.reference.affine)


def brats(folder, studies, joint, names, numbers):
    for study in studies:
        for modality, volume in study.images.items():
            put(folder / study.id / f"{study.id}{joint}{names[modality]}.nii.gz", volume)
        if study.reference is not None:
            put(folder / study.id / f"{study.id}{joint}seg.nii.gz", numbered(study, numbers))


def brats2021(folder, studies):
    brats(folder, studies, "_", {T1: "t1", T1C: "t1ce", T2: "t2", FLAIR: "flair"}, OLD_NUMBERS)


def brats2023(folder, studies):
    brats(folder, studies, "-", {T1: "t1n", T1C: "t1c", T2: "t2w", FLAIR: "t2f"}, PLAIN_NUMBERS)


def as_sitk(voxels, affine=AFFINE):
    """Make a SimpleITK image; in ITK's coordinates the first two axes point the other way."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def brats2015(folder, studies):
    words = {T1: "MR_T1", T1C: "MR_T1c", T2: "MR_T2", FLAIR: "MR_Flair"}
    for number, study in enumerate(studies):
        place = folder / "BRATS2015_Training" / ("HGG" if number % 2 else "LGG") / study.id
        parts = [(f"VSD.Brain.XX.O.{words[m]}.{5450 + number}", v) for m, v in study.images.items()]
        if study.reference is not None:
            parts.append((f"VSD.Brain_3more.XX.O.OT.{6450 + number}", numbered(study, OLD_NUMBERS)))
        for name, volume in parts:
            (place / name).mkdir(parents=True)
            sitk.WriteImage(
                as_sitk(volume.voxels, volume.affine), str(place / name / f"{name}.mha"), useCompression=True
            )


def msd(folder, studies):
    """Write the Decathlon's layout.

    All studies get the sequences of the first, because the files are four-dimensional.
    """
    order = [m for m in (FLAIR, T1, T1C, T2) if m in studies[0].images]
    names = {FLAIR: "FLAIR", T1: "T1w", T1C: "t1gd", T2: "T2w"}
    for study in studies:
        kind = "Tr" if study.reference is not None else "Ts"
        volumes = [study.images[modality] for modality in order]
        stacked = np.stack([volume.voxels for volume in volumes], -1)
        save(folder / f"images{kind}" / f"{study.id}.nii.gz", stacked, volumes[0].affine)
        (folder / f"images{kind}" / f"._{study.id}.nii.gz").write_bytes(b"of the Finder")
        if study.reference is not None:
            put(folder / "labelsTr" / f"{study.id}.nii.gz", numbered(study, MSD_NUMBERS))
    labels = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
    tree = {"modality": {str(n): names[m] for n, m in enumerate(order)}, "labels": labels, "tensorImageSize": "4D"}
    (folder / "dataset.json").write_text(json.dumps(tree))


def nnunet(folder, studies, tree=None):
    """Write nnU-Net's layout with regions as labels, as nnU-Net's own conversion of BraTS has them."""
    order = (T1C, FLAIR, T2, T1)
    for study in studies:
        kind = "Tr" if study.reference is not None else "Ts"
        for modality, volume in study.images.items():
            put(folder / f"images{kind}" / f"{study.id}_{order.index(modality):04d}.nii.gz", volume)
        if study.reference is not None:
            put(folder / "labelsTr" / f"{study.id}.nii.gz", numbered(study, MSD_NUMBERS))
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
    channels = {"0": "T1ce", "1": "FLAIR", "2": "T2", "3": "T1"}
    default = {"channel_names": channels, "labels": labels, "regions_class_order": [1, 2, 3], "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(default if tree is None else tree))


def bids(folder, studies, session=""):
    suffixes = {T1: "T1w", T1C: "ce-gadolinium_T1w", T2: "T2w", FLAIR: "FLAIR"}
    for study in studies:
        name = f"sub-{study.id}{session}"
        for modality, volume in study.images.items():
            put(folder.joinpath(*name.split("_"), "anat", f"{name}_{suffixes[modality]}.nii.gz"), volume)
        if study.reference is not None:
            place = folder.joinpath("derivatives", "masks", *name.split("_"), "anat")
            put(place / f"{name}_desc-tumor_dseg.nii.gz", numbered(study, MSD_NUMBERS))
    if any(study.reference is not None for study in studies):
        rows = "index\tname\n0\tbackground\n1\tperitumoral edema\n2\tnecrotic core\n3\tenhancing tumour\n"
        (folder / "derivatives/masks/desc-tumor_dseg.tsv").write_text(rows)
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "made", "BIDSVersion": "1.10.0"}))


def manifest(folder, studies):
    rows = []
    for study in studies:
        row = {"case": study.id, "convention": "brats2023"}
        for modality, volume in study.images.items():
            row[modality.key] = f"scans of {study.id}/{modality.key} x.nii.gz"
            put(folder / row[modality.key], volume)
        if study.reference is not None:
            row["label"] = f"{study.id}.nii.gz"
            put(folder / row["label"], numbered(study, PLAIN_NUMBERS))
        rows.append(row)
    with (folder / "studies.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["case", "flair", "t2", "t1c", "t1", "label", "convention"], restval="")
        table.writeheader()
        table.writerows(rows)


TREES = {
    "brats2015": brats2015,
    "brats2021": brats2021,
    "brats2023": brats2023,
    "msd": msd,
    "nnunet": nnunet,
    "bids": bids,
    "manifest": manifest,
}


def id_in(layout, number, study):
    """Return the id of a study after reading."""
    if layout == "brats2015":
        return f"{'HGG' if number % 2 else 'LGG'}_{study.id}"
    return f"sub-{study.id}" if layout == "bids" else study.id


def kept_by(layout, studies, subset=T1 | FLAIR | T2):
    """Return the studies as a layout can store them: in the Decathlon's, all have the same sequences."""
    if layout != "msd":
        return studies
    return [made_study(s.id, subset, 1, reference=s.reference is not None) for s in studies]
