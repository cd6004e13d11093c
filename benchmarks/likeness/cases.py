"""Cases for the comparison of phantoms with patients: read, prepared alike, in units of normal brain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from glimpseg.data import nifti
from glimpseg.data.preprocess import Prepared, Preprocess, prepare
from glimpseg.foreground import foreground
from glimpseg.modality import Modality
from glimpseg.phantom import Phantom
from glimpseg.phantom.dataset import as_study
from glimpseg.region import CONVENTIONS, Label, whole_numbers
from glimpseg.study import Study
from glimpseg.volume import Volume

FILES = dict(zip(Modality, ("t1n", "t1c", "t2w", "t2f"), strict=True))
"""End of the file name of each sequence."""
NORMAL_MM = 5.0
"""Smallest distance of normal brain from every label."""
FAR_MM = 10.0
"""Smallest distance from every label at which enhancement counts as normal."""
IQR_TO_SD = 0.7413
"""Standard deviation of a normal distribution with interquartile range 1."""

Image = Float[np.ndarray, "x y z"]
Mask = Bool[np.ndarray, "x y z"]


@dataclass(frozen=True, eq=False)
class Case:
    """A study in units of normal brain: each sequence has median 0 and robust standard deviation 1 there."""

    name: str
    images: Mapping[Modality, Image]
    """Available sequences, 0 outside the brain."""
    brain: Mask
    labels: UInt8[np.ndarray, "x y z"]
    """`Label` values. Lesions that are no tumour have the value of oedema."""
    spacing_mm: float
    whole: bool = True
    """Whether the field of view holds the whole brain. Places and depths are not measured in a slab."""
    tumour: bool = True
    """Whether the labels mark a tumour."""

    @cached_property
    def apart_mm(self) -> Image:
        """Distance of each voxel from the nearest labelled one; infinite without labels."""
        if not self.labels.any():
            return np.full(self.labels.shape, np.inf)
        return ndimage.distance_transform_edt(self.labels == 0, sampling=self.spacing_mm)

    @cached_property
    def depth_mm(self) -> Image:
        """Distance of each brain voxel from the surface of the brain mask."""
        padded = np.pad(self.brain, 1)
        return ndimage.distance_transform_edt(padded, sampling=self.spacing_mm)[1:-1, 1:-1, 1:-1]

    @property
    def normal(self) -> Mask:
        """Normal brain: at least `NORMAL_MM` from every label."""
        return self.brain & (self.apart_mm >= NORMAL_MM)

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Bounding box of the brain."""
        return bounding_box(self.brain)

    @property
    def millilitres(self) -> float:
        """Volume of a voxel."""
        return self.spacing_mm**3 / 1000


def in_units_of_normal(prepared: Prepared, *, name: str, whole: bool = True, tumour: bool = True) -> Case:
    """Express a prepared study in units of its normal brain.

    Args:
        prepared: study with a reference.
        name: name of the case in tables.
        whole: whether the whole brain was scanned.
        tumour: whether the reference marks a tumour.
    """
    assert prepared.target is not None
    brain = np.logical_or.reduce(prepared.inside)
    case = Case(name, {}, brain, prepared.target, float(prepared.grid.spacing_mm[0]), whole, tumour)
    images: dict[Modality, Image] = {}
    for channel, modality in enumerate(Modality):
        if modality in prepared.available:
            image, inside = prepared.image[channel].astype(np.float64), prepared.inside[channel]
            images[modality] = np.where(inside, robust_z(image, case.normal & inside), 0)
    return Case(name, images, brain, prepared.target, case.spacing_mm, whole, tumour)


def bounding_box(mask: Mask) -> tuple[slice, slice, slice]:
    """Return the smallest box that holds a mask that is not empty."""
    x, y, z = ndimage.find_objects(mask.astype(np.uint8))[0]
    return x, y, z


def robust_z(image: Image, normal: Mask) -> Image:
    """Return (image - median) / (0.7413 x interquartile range), both of the voxels in `normal`."""
    low, middle, high = np.percentile(image[normal], (25, 50, 75))
    return (image - middle) / max(IQR_TO_SD * float(high - low), 1e-9)


class Labelled(NamedTuple):
    """A real study with a reference, before it is prepared."""

    study: Study
    whole: bool
    """Whether the whole brain was scanned."""
    tumour: bool
    """Whether the reference marks a tumour."""


def labelled_studies(folder: Path, conventions: Mapping[str, str]) -> Iterator[Labelled]:
    """Read the labelled patients of a folder that has one folder for each.

    Args:
        folder: its folders hold files that end in t1n, t1c, t2w, t2f (those that exist), and a reference: `seg`,
            `seg_silver`, or `lesion` (not a tumour). Perhaps `brainmask`, and `covered` if only part was scanned.
        conventions: label convention by pattern of the case's name; brats2021 for the rest.
    """
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = {modality: sorted(place.glob(f"*{end}.nii.gz")) for modality, end in FILES.items()}
        images = {modality: nifti.read_volume(paths[0]) for modality, paths in found.items() if paths}
        labels, lesions = sorted(place.glob("*seg*.nii.gz")), sorted(place.glob("*lesion.nii.gz"))
        if not images or not labels + lesions:
            continue
        named = next((name for pattern, name in conventions.items() if fnmatch(place.name, pattern)), "brats2021")
        reference = _labels(labels[0], named) if labels else _lesions(lesions[0])
        study = Study(id=place.name, images=images, reference=reference, brain=_brain(place, images))
        yield Labelled(study, not list(place.glob("*covered.nii.gz")), bool(labels))


def real_cases(folder: Path, conventions: Mapping[str, str], spacing_mm: float) -> Iterator[Case]:
    """Yield the labelled patients of a folder, prepared; the arguments are those of `labelled_studies`."""
    for study, whole, tumour in labelled_studies(folder, conventions):
        prepared = prepare(study, Preprocess(spacing_mm=spacing_mm, clip=None))
        yield in_units_of_normal(prepared, name=study.id, whole=whole, tumour=tumour)


def _labels(path: Path, convention: str) -> Volume:
    volume = nifti.read_volume(path)
    return Volume(CONVENTIONS[convention].read(whole_numbers(np.asarray(volume.voxels))), volume.affine)


def _lesions(path: Path) -> Volume:
    volume = nifti.read_volume(path)
    return Volume((volume.voxels > 0.5).astype(np.uint8) * np.uint8(Label.ED), volume.affine)


def _brain(place: Path, images: Mapping[Modality, Volume]) -> Volume | None:
    given, covered = sorted(place.glob("*brainmask.nii.gz")), sorted(place.glob("*covered.nii.gz"))
    if given:
        return nifti.read_volume(given[0])
    if not covered:
        return None
    scanned = nifti.read_volume(covered[0])
    head = np.logical_or.reduce([foreground(volume.voxels) for volume in images.values()])
    return Volume((head & (scanned.voxels > 0)).astype(np.uint8), scanned.affine)


def phantom_cases(make: Callable[[int], Phantom], count: int, first_seed: int) -> Iterator[Case]:
    """Yield phantoms, prepared as patients are.

    Args:
        make: a generator: seed to phantom.
        count: number of phantoms.
        first_seed: seed of the first; the others follow.
    """
    for seed in range(first_seed, first_seed + count):
        made = make(seed)
        spacing_mm = float(np.linalg.norm(made.affine[:3, 0]))
        prepared = prepare(as_study(made), Preprocess(spacing_mm=spacing_mm, clip=None))
        yield in_units_of_normal(prepared, name=f"phantom {seed}", tumour=bool(made.labels.any()))
