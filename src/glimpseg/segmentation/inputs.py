"""Input of a segmentation: resolve files, folders of studies, DICOM and archives to studies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from os.path import isdir, isfile  # unlike pathlib's, False for names that are too long or closed to us
from pathlib import Path
from typing import TypeAlias

from nibabel.spatialimages import SpatialImage

from glimpseg.data import nifti
from glimpseg.data.dicom.find import find_series
from glimpseg.data.dicom.read import read_series, series_title
from glimpseg.data.dicom.study_folders import contains_dicom, find_study_folders
from glimpseg.data.identify import identify, read_series_json
from glimpseg.data.identify.evidence import total
from glimpseg.data.identify.identification import description
from glimpseg.data.identify.nifti_series import stem
from glimpseg.data.identify.rules import packaged_rules
from glimpseg.data.identify.verdict import judge_series
from glimpseg.data.layouts import describe_unused, usable_studies
from glimpseg.data.layouts.layout import printable
from glimpseg.data.notices import Notices, StudyNotices, note, warn
from glimpseg.data.series import Series
from glimpseg.data.unpack import SUFFIXES, unpacked
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
from glimpseg.study import Frame, Study
from glimpseg.volume import Volume

UNUSED = "unused.json"
"""File of a batch that says what was found in the tree and is not used by any study."""
MaskLike: TypeAlias = str | Path | Volume | SpatialImage
ImageLike: TypeAlias = MaskLike | Frame


@dataclass(frozen=True, eq=False)
class StudyInput:
    """A study to segment, with the DICOM series that its images were read from.

    Images from DICOM are volumes: their voxels have been read. Images in NIfTI files are paths, which are read later.
    Images in memory are volumes, too.
    """

    study: Study
    series: Mapping[Modality, Series] = field(default_factory=dict)
    """DICOM series of each image. A NIfTI image, an image in memory, and an image from an archive of one series have
    none."""
    unused: tuple[str, ...] = ()
    """Sentences about images that were found and are not used."""
    checks: tuple[str, ...] = ()
    """Results of the checks for raw images: skull and scalp, and the alignment of each sequence."""
    notices: StudyNotices = field(default_factory=StudyNotices, repr=False)
    """Warnings and notes about the study, from its first file to its result."""


@dataclass(frozen=True, eq=False)
class StudyEntry:
    """One study of a tree, before any of its images is opened. It has either `study`, `place` or `problem`."""

    id: str
    """Name of the study, and of its output folder unless results are de-identified."""
    study: Study | None = None
    """The study, if it came in a layout of NIfTI files."""
    place: Path | None = None
    """Folder or archive of one study whose series are identified when it is opened (DICOM, or NIfTI in an archive)."""
    problem: str | None = None
    """Reason why it cannot be read, if that is known already."""
    unused: tuple[str, ...] = ()
    """Sentences about images in its folder that are not used."""


@dataclass(frozen=True, eq=False)
class TreeContents:
    """Studies of a tree, and the images that none of them uses."""

    entries: list[StudyEntry]
    """Studies, sorted by id."""
    unused: list[str] = field(default_factory=list)
    """One sentence for each image that is not used. Series of DICOM are judged later, when a study is opened."""
    notices: Notices = field(default_factory=Notices)
    """Warnings and notes about the tree; those on unused images are among them."""


def tree_contents(place: str | Path, layout: str = "auto", *, named: bool = True) -> TreeContents:
    """Return the studies of a tree, a manifest or an archive. No image is opened.

    An archive is one study. With the layout `auto`, a folder is a DICOM tree if a DICOM file or an archive comes before
    any NIfTI file in it; then each folder and archive directly below it is a study, and if all folders belong to one
    study, the folder itself is that study. Anything else is read as a layout of `data.layouts`; references are ignored
    there, and a study that cannot be used is returned with its problem. Images that no study uses are told, each with
    the reason.

    Args:
        place: Folder, manifest or archive.
        layout: A key of `data.layouts.LAYOUTS`, or `auto`.
        named: False leaves the names of unused images out, for results that are de-identified.

    Raises:
        InputError: There is no study, `place` does not exist, several layouts are found, or DICOM headers cannot be
            read.
        UsageError: The layout is unknown, or the extra `dicom` is not installed and needed.
    """
    place = Path(place).absolute()
    if not place.exists():
        raise InputError(f"{printable(place.name)} does not exist. Check the path.")
    told = StudyNotices(where=f"{UNUSED} has all of them")
    with told.telling():
        contents = _contents(place, layout, named=named)
    return replace(contents, notices=told.as_copy())


def _contents(place: Path, layout: str, *, named: bool) -> TreeContents:
    if _is_archive(place):
        return TreeContents([StudyEntry(_stem(place), place=place)])
    if layout == "auto" and place.is_dir() and contains_dicom(place):
        places = find_study_folders(place)
        if not places:
            raise InputError(
                f"No study was found below {place}: there are DICOM files, but no folder begins with MR images. Give a "
                "folder that holds a folder of DICOM files for each study."
            )
        if place not in places:
            for other in sorted(path for path in place.iterdir() if path.is_dir() and path not in places):
                note(f"{printable(other.name) if named else 'a folder'} is not used: no MR image was found in it.")
        return TreeContents([StudyEntry(_stem(below), place=below) for below in places])
    found = usable_studies(place, layout=layout)
    sentences = describe_unused(found.unused, named=named)
    for sentence in sentences:
        note(sentence)
    entries = [
        StudyEntry(study.id, study=study, unused=tuple(describe_unused(found.unused_of(study.id), named=named)))
        for study in found.studies
    ]
    entries += [StudyEntry(name, problem=why) for name, why in found.problems.items()]
    return TreeContents(sorted(entries, key=lambda entry: entry.id), sentences)


def study_entries(place: str | Path, layout: str = "auto") -> list[StudyEntry]:
    """Return the studies of `tree_contents`. Raises: InputError and UsageError as `tree_contents`."""
    return tree_contents(place, layout).entries


@contextmanager
def opened_entry(entry: StudyEntry, notices: StudyNotices | None = None) -> Iterator[StudyInput]:
    """Yield the input of an entry. Files of an archive exist as long as the context.

    DICOM is read now. If two series suit one sequence equally well, there is a warning.

    Args:
        entry: The study.
        notices: Receives what is said about it. If it hides words, the names of NIfTI files are hidden, too.

    Raises: InputError for a study that cannot be read; UsageError for DICOM without the extra `dicom`; OutputError if
        an archive cannot be unpacked.
    """
    if entry.problem is not None:
        raise InputError(entry.problem)
    notices = notices if notices is not None else StudyNotices()
    if entry.study is not None:
        for sentence in entry.unused:
            notices.add_known("note", sentence)  # the tree was told of it
        yield StudyInput(entry.study, unused=entry.unused, notices=notices)
        return
    assert entry.place is not None
    with ExitStack() as stack:
        with notices.open():
            folder = stack.enter_context(unpacked(entry.place))
        if notices.hidden:
            notices.hidden |= _image_names(folder)
        study_input = noticed(lambda: _input_of_folder(entry.id, folder), notices)
        yield replace(study_input, unused=tuple(map(notices.shown, study_input.unused)))


def noticed(make: Callable[[], StudyInput], notices: StudyNotices) -> StudyInput:
    """Make an input, and keep the warnings and notes of the making."""
    with notices.open():
        study_input = make()
    return replace(study_input, notices=notices)


def _image_names(folder: Path) -> dict[str, str]:
    """Return the names under which texts may name the NIfTI files below a folder, each with what hides it."""
    files = [path for path in folder.rglob("*") if path.name.lower().endswith((*nifti.SUFFIXES, ".hdr"))]
    names = (name for path in files for name in (path.name, stem(path), f"{path.parent.name} {stem(path)}"))
    return dict.fromkeys(names, "an image")


def _input_of_folder(name: str, folder: Path) -> StudyInput:
    chosen, unused = _identified(folder)
    return replace(input_from_series(name, chosen), unused=unused)


def input_from_series(name: str, series: Mapping[Modality, Series]) -> StudyInput:
    """Return the input of a study with one series for each sequence. DICOM is read now, NIfTI files later.

    Args:
        name: Name of the study.
        series: Series of each sequence.

    Raises: InputError without a series, or for a series that is no whole image; UsageError for DICOM without the extra
        `dicom`.
    """
    if not series:
        raise InputError(
            f"{name}: no series could be told to be T1, T1c, T2 or FLAIR. Run `glimpseg identify` to see why, name "
            "them in its series.json, and pass that with --series."
        )
    images: dict[Modality, Volume | Path | Frame] = {}
    for modality, one in series.items():
        images[modality] = read_series(one) if one.source == "dicom" else one.files[0]
    for modality, one in series.items():
        found = (
            f"series {one.key} ({description(one) or 'no description'})" if one.source == "dicom" else description(one)
        )
        note(f"{modality.title} is {found or one.key}.")
    return StudyInput(Study(name, images), {m: one for m, one in series.items() if one.source == "dicom"})


def series_named_in(path: Path) -> dict[Modality, Series]:
    """Return the series that a `series.json` names, by sequence. The headers of DICOM series are read again.

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


def input_from_images(images: Mapping[Modality, ImageLike], brain: MaskLike | None = None) -> StudyInput:
    """Return the input of a study called `study`, made of one image for each sequence. NIfTI files are not yet opened.

    Args:
        images: NIfTI files, images in memory, or folders and archives of one DICOM series each.
        brain: Brain mask, as file or in memory; None for no mask.

    Raises: InputError if no image is given, or for an image that cannot be used; UsageError for a folder or archive of
        several series or of none, or for DICOM without the extra `dicom`; OutputError if an archive cannot be unpacked.
    """
    if not images:
        raise InputError("No MRI sequence was given. Give at least one of t1, t1c, t2, flair.")
    found = {modality: _image(modality, image) for modality, image in images.items()}
    study = Study(
        "study",
        {modality: image for modality, (image, _) in found.items()},
        brain=None if brain is None else _volume_or_path(brain),
    )
    return StudyInput(study, {modality: series for modality, (_, series) in found.items() if series is not None})


def with_brain_mask(study_input: StudyInput, brain: Path | None) -> StudyInput:
    """Return the input with the file `brain` as its brain mask; the same input for None."""
    if brain is None:
        return study_input
    return replace(study_input, study=replace(study_input.study, brain=brain))


def volume_of(image: ImageLike, called: str = "") -> Volume:
    """Return an image as a volume: read from its file, or as it is in memory. Raises: InputError for an unusable image.

    `called` is the name of the image in warnings, as in `nifti.read_volume`.
    """
    known = _in_memory(image)
    return known if isinstance(known, Volume) else nifti.read_volume(known, called)


def _image(modality: Modality, image: ImageLike) -> tuple[Volume | Path | Frame, Series | None]:
    path = Path(image) if isinstance(image, str | Path) else None
    if path is None or not (isdir(path) or _is_archive(path)):
        return _in_memory(image), None
    with unpacked(path) as folder:
        series = _only_series(modality, find_series(folder), path.name)
        # The files of an archive are gone after this, and with them the geometry for a DICOM SEG.
        return read_series(series), series if path.is_dir() else None


def _only_series(modality: Modality, series: Sequence[Series], name: str) -> Series:
    """Return the one series that may be the sequence. Others, such as the fat image of a Dixon scan, are named.

    Raises: UsageError if several series may be it.
    """
    if len(series) == 1:
        return series[0]
    verdicts = judge_series(series, packaged_rules())
    dropped = [verdict for verdict in verdicts if total(verdict.evidence, "drop") > 0]
    fitting = [verdict.series for verdict in verdicts if verdict not in dropped]
    if len(fitting) != 1:
        listed = ", ".join(f"{series_title(one)}: {len(one.files)} files" for one in series)
        raise UsageError(
            f"{name} was given as {modality.title} and holds {len(series)} series; one is needed ({listed}). Give the "
            "folder of that series, or the whole study with -i."
        )
    for verdict in dropped:
        warn(f"{modality.title}: {series_title(verdict.series)} in the same folder was left out: {verdict.why}.")
    return fitting[0]


def _in_memory(image: ImageLike) -> Volume | Path | Frame:
    return image if isinstance(image, Frame) else _volume_or_path(image)


def _volume_or_path(image: str | Path | Volume | SpatialImage) -> Volume | Path:
    if isinstance(image, Volume):
        return image
    if isinstance(image, str | Path):
        return Path(image)
    return nifti.from_nibabel(image)


def _identified(folder: Path) -> tuple[Mapping[Modality, Series], tuple[str, ...]]:
    """Return the chosen series, and sentences about the others, which are notes."""
    found = identify(folder)
    for doubt in (*found.tie_sentences, *found.notes):
        warn(doubt)
    unused = tuple(found.unused_sentences)
    for sentence in unused:
        note(sentence)
    return found.chosen, unused


def _is_archive(place: Path) -> bool:
    return isfile(place) and place.name.lower().endswith(SUFFIXES)


def _stem(place: Path) -> str:
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if place.is_file() and place.name.lower().endswith(suffix):
            return place.name[: -len(suffix)]
    return place.name
