"""Identify the series of a folder of DICOM or NIfTI files as T1, T1c, T2 and FLAIR."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from glimpseg.data.dicom.headers import begins_as_dicom
from glimpseg.data.identify.identification import Identification
from glimpseg.data.identify.nifti_series import nifti_series
from glimpseg.data.identify.rules import Rules, packaged_rules, rules_with
from glimpseg.data.identify.verdict import SeriesVerdict, choose_series, judge_series
from glimpseg.data.series import Series
from glimpseg.errors import InputError
from glimpseg.modality import Modality

OTHER_FILES = re.compile(
    r"\.(nii|nii\.gz|json|bval|bvec|tsv|csv|txt|md|pdf|html?|png|jpe?g|xml|ya?ml|py|zip|gz|log)$", re.IGNORECASE
)
"""File names that are never DICOM."""
_LISTED = 8
"""Most studies that an error message lists."""


def identify(place: str | Path, *, words: Path | None = None, study: str | None = None) -> Identification:
    """Identify which series below a folder are T1, T1c, T2 and FLAIR, from headers, sidecars and names only.

    If the folder holds DICOM, its NIfTI files are ignored, and a note says so.

    Args:
        place: folder with the files of one study, at any depth.
        words: YAML file with the user's own words (docs/identify.md).
        study: key of one study, if the folder holds several.

    Raises: InputError when there is no folder or no series, when several studies are there and none is named, for an
        unknown key, or as `dicom.find.find_series`; UsageError for a file of words that cannot be used, or for DICOM
        without the extra `dicom`.
    """
    place = Path(place).absolute()
    rules = rules_with(words)
    if not place.is_dir():
        raise InputError(
            f"{place.name} is not a folder. Give the folder that holds the DICOM or NIfTI files of a study."
        )
    series, notes = _series_below(place)
    if not series:
        raise InputError(
            f"No MRI series was found below {place.name}. Give a folder of DICOM files, or of NIfTI files."
        )
    found = identify_series(_series_of_one_study(series, place, study), place, rules)
    return replace(found, notes=(*notes, *found.notes))


def identify_series(study: Sequence[Series], folder: Path, rules: Rules | None = None) -> Identification:
    """Identify given series of one study; their files lie below `folder`. `rules`: the packaged ones by default."""
    ordered = sorted(study, key=lambda s: (s.numbers.get("SeriesNumber", float("inf")), s.files[0].as_posix(), s.key))
    judged = judge_series(ordered, rules or packaged_rules())
    chosen, ties = choose_series(judged)
    return Identification(folder=folder, verdicts=judged, chosen=chosen, ties=ties, notes=tuple(_notes(judged, chosen)))


def _notes(judged: Sequence[SeriesVerdict], chosen: Mapping[Modality, Series]) -> Iterator[str]:
    for modality, series in chosen.items():
        if any(verdict.series is series and verdict.second for verdict in judged):
            yield f"{modality.title}: the only series was made from another one."
    unsaid = [f for f in judged if f.sequence is Modality.T1 and not f.contrast and not f.second]
    if len(unsaid) > 1 and Modality.T1C not in chosen:
        yield (
            f"{len(unsaid)} series are T1-weighted, and no header says whether contrast agent was given before any of "
            "them. If it was, name the later ones t1c in series.json."
        )


def _series_below(place: Path) -> tuple[list[Series], list[str]]:
    images, notes = nifti_series(place)
    if not _has_dicom(place):
        return images, notes
    from glimpseg.data.dicom.find import find_series

    ignored = [f"{len(images)} NIfTI files were ignored, because the folder holds DICOM."] if images else []
    return find_series(place), ignored


def _has_dicom(place: Path) -> bool:
    """True if a file is DICOM by its suffix, or by the letters DICM after the preamble."""
    for path in place.rglob("*"):
        if path.is_file() and not path.name.startswith(".") and not OTHER_FILES.search(path.name):
            if path.suffix.lower() in (".dcm", ".ima"):
                return True
            if begins_as_dicom(path):
                return True
    return False


def _series_of_one_study(series: Sequence[Series], place: Path, study: str | None) -> list[Series]:
    """Series of the named study, or of the only one. Raises: InputError for an unknown or a missing key."""
    studies: dict[str, list[Series]] = {}
    for one in series:
        studies.setdefault(one.study, []).append(one)
    if study is not None and study not in studies:
        raise InputError(f"No study has the key {study}. There are: {_listed(studies, place)}.")
    if study is None and len(studies) > 1:
        raise InputError(
            f"{place.name} holds {len(studies)} studies, and series are compared within one. Give a folder with one of "
            f"them, or name it by its key: {_listed(studies, place)}."
        )
    return studies[study if study is not None else next(iter(studies))]


def _listed(studies: dict[str, list[Series]], place: Path) -> str:
    named = [f"{key} ({len(series)} series)" for key, series in studies.items()]
    return ", ".join(named[:_LISTED]) + (f" and {len(named) - _LISTED} more" if len(named) > _LISTED else "")
