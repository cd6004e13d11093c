"""What a person points at becomes visits: files, folders as releases lay them out, DICOM, archives."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os.path import isdir, isfile  # unlike pathlib's, False for names that are too long or closed to us
from pathlib import Path
from typing import TypeAlias

from nibabel.spatialimages import SpatialImage

from glimpseg.data import nifti
from glimpseg.data.dicom.find import find_series
from glimpseg.data.dicom.read import read_series
from glimpseg.data.dicom.study_folders import contains_dicom, find_study_folders
from glimpseg.data.identify import identify, read_series_json
from glimpseg.data.layouts import find_usable
from glimpseg.data.series import Series
from glimpseg.data.unpack import SUFFIXES, unpacked
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
from glimpseg.study import Frame, Study
from glimpseg.volume import Volume

log = logging.getLogger(__name__)

ImageLike: TypeAlias = str | Path | Volume | Frame | SpatialImage


@dataclass(frozen=True, eq=False)
class Visit:
    """A study whose images can be read, and where they came from."""

    study: Study
    series: Mapping[Modality, Series] = field(default_factory=dict)
    """The DICOM series of its images; empty for NIfTI."""
    notes: tuple[str, ...] = ()
    """What was found out and done on the way, for people."""


@dataclass(frozen=True, eq=False)
class Item:
    """One study of a tree, before any of its files is opened."""

    id: str
    """Names its folder in the output."""
    study: Study | None = None
    place: Path | None = None
    """The folder or archive of a DICOM study."""
    problem: str | None = None
    """Why it cannot be read, if that is known already."""


def items(place: str | Path, layout: str = "auto") -> list[Item]:
    """The studies below a folder, or in a manifest or archive that holds one; sorted by id, nothing opened that need
    not be.

    Studies in a layout of `data.layouts` are found first. In a folder of DICOM each folder and archive directly below
    is a study, unless all belong to one: then the folder is.

    Raises: InputError when there is none.
    """
    place = Path(place).absolute()
    if not place.exists():
        raise InputError(f"{place} does not exist. Check the path.")
    if _is_archive(place):
        return [Item(_stem(place), place=place)]
    if layout == "auto" and place.is_dir() and contains_dicom(place):
        return [Item(_stem(below), place=below) for below in find_study_folders(place)]
    studies, problems = find_usable(place, layout=layout)
    found = [Item(study.id, study=study) for study in studies]
    return sorted([*found, *(Item(name, problem=why) for name, why in problems.items())], key=lambda item: item.id)


@contextmanager
def opened(item: Item) -> Iterator[Visit]:
    """The visit of an item; what an archive holds is there for as long as the context is.

    Raises: InputError for a study that cannot be read.
    """
    if item.problem is not None:
        raise InputError(item.problem)
    if item.study is not None:
        yield Visit(item.study)
        return
    assert item.place is not None
    with unpacked(item.place) as folder:
        yield visit_of(item.id, _identified(folder))


def visit_of(name: str, series: Mapping[Modality, Series]) -> Visit:
    """A visit made of series, of which DICOM is read now. Raises: InputError."""
    if not series:
        raise InputError(
            f"{name}: no series could be told to be T1, T1c, T2 or FLAIR. Run `glimpseg identify` to see why, name "
            "them in its series.json, and pass that with --series."
        )
    images: dict[Modality, Volume | Path | Frame] = {}
    for modality, one in series.items():
        images[modality] = read_series(one) if one.source == "dicom" else one.files[0]
    notes = tuple(
        f"{modality.title} is series {one.key} ({one.words.get('SeriesDescription') or 'no description'})."
        for modality, one in series.items()
        if one.source == "dicom"
    )
    return Visit(Study(name, images), {m: one for m, one in series.items() if one.source == "dicom"}, notes)


def series_named_in(path: Path) -> dict[Modality, Series]:
    """The series that a `series.json` names, with what their headers say.

    Raises: InputError or UsageError for a file that cannot be used, or whose series are no longer there.
    """
    named = read_series_json(path)
    files = [file for one in named.values() if one.source == "dicom" for file in one.files]
    known = {one.key: one for one in find_series(os.path.commonpath([file.parent for file in files]))} if files else {}
    for modality, one in named.items():
        if one.source == "dicom" and one.key not in known:
            raise InputError(
                f"{path.name} names series {one.key} as {modality.title}, which its folder no longer holds as it was. "
                "Run `glimpseg identify` again."
            )
    return {modality: known.get(one.key, one) for modality, one in named.items()}


def named_images(images: Mapping[Modality, ImageLike], brain: str | Path | Volume | SpatialImage | None) -> Visit:
    """A visit of images that the caller names: NIfTI files, images in memory, or folders and archives that hold one
    DICOM series each.

    Raises: InputError for an image that cannot be used, or when none is given.
    """
    if not images:
        raise InputError("No MRI sequence was given. Give at least one of t1, t1c, t2, flair.")
    found = {modality: _image(modality, image) for modality, image in images.items()}
    study = Study(
        "study",
        {modality: image for modality, (image, _) in found.items()},
        brain=None if brain is None else _mask(brain),
    )
    return Visit(study, {modality: series for modality, (_, series) in found.items() if series is not None})


def with_brain(visit: Visit, brain: Path | None) -> Visit:
    """The same visit with a brain mask from elsewhere, if there is one."""
    return visit if brain is None else replace(visit, study=replace(visit.study, brain=brain))


def volume_of(image: ImageLike, called: str = "") -> Volume:
    """An image's voxels, from wherever it is; `called` as in `nifti.read_volume`. Raises: InputError."""
    known = _in_memory(image)
    return known if isinstance(known, Volume) else nifti.read_volume(known, called)


def _image(modality: Modality, image: ImageLike) -> tuple[Volume | Path | Frame, Series | None]:
    path = Path(image) if isinstance(image, str | Path) else None
    if path is None or not (isdir(path) or _is_archive(path)):
        return _in_memory(image), None
    with unpacked(path) as folder:
        series = find_series(folder)
        if len(series) != 1:
            raise UsageError(
                f"{path.name} was given as {modality.title} and holds {len(series)} series; one is needed. Give the "
                "folder of that series, or the whole study with -i."
            )
        # The files of an archive are gone after this, and with them the geometry for a DICOM SEG.
        return read_series(series[0]), series[0] if path.is_dir() else None


def _in_memory(image: ImageLike) -> Volume | Path | Frame:
    return image if isinstance(image, Frame) else _mask(image)


def _mask(image: str | Path | Volume | SpatialImage) -> Volume | Path:
    if isinstance(image, Volume):
        return image
    if isinstance(image, str | Path):
        return Path(image)
    return nifti.from_nibabel(image)


def _identified(folder: Path) -> Mapping[Modality, Series]:
    found = identify(folder)
    for tie in found.ties:
        log.warning("%s", tie)
    return found.chosen


def _is_archive(place: Path) -> bool:
    return isfile(place) and place.name.lower().endswith(SUFFIXES)


def _stem(place: Path) -> str:
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if place.is_file() and place.name.lower().endswith(suffix):
            return place.name[: -len(suffix)]
    return place.name
