"""The verb: a folder of DICOM or NIfTI, and which of its series is which sequence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from glimpseg.data.identify.identification import Identification
from glimpseg.data.identify.rules import Rules, packaged_rules, rules_with
from glimpseg.data.identify.sidecars import nifti_series
from glimpseg.data.identify.verdict import Finding, choose, verdicts
from glimpseg.data.series import Series
from glimpseg.errors import InputError
from glimpseg.modality import Modality

PREAMBLE = 128
"""Bytes before the letters DICM."""
OTHER_FILES = re.compile(
    r"\.(nii|nii\.gz|json|bval|bvec|tsv|csv|txt|md|pdf|html?|png|jpe?g|xml|ya?ml|py|zip|gz|log)$", re.IGNORECASE
)
"""Names that no DICOM file has."""
_LISTED = 8
"""Visits that an error names."""


def identify(place: str | Path, *, words: Path | None = None, study: str | None = None) -> Identification:
    """Which series below a folder is T1, T1c, T2 and FLAIR, judged by headers, sidecars and names alone.

    `words`: a YAML file with the user's own words (docs/identify.md). `study`: the key of one visit, where the folder
    holds several. Where there is DICOM, NIfTI files are left aside, and a note says so.

    Raises: InputError when there is no series, or when several visits are there and none is named; UsageError for a
        file of words that cannot be used.
    """
    place = Path(place).absolute()
    rules = rules_with(words)
    if not place.is_dir():
        raise InputError(
            f"{place.name} is not a folder. Give the folder that holds the DICOM or NIfTI files of a visit."
        )
    series, notes = _series_below(place)
    if not series:
        raise InputError(
            f"No MRI series was found below {place.name}. Give a folder of DICOM files, or of NIfTI files."
        )
    visit = _one_visit(series, place, study)
    found = identify_series(visit, place, rules)
    return replace(found, notes=(*notes, *found.notes))


def identify_series(visit: Sequence[Series], folder: Path, rules: Rules | None = None) -> Identification:
    """The same for the series of one visit that are already known; their files lie below `folder`."""
    ordered = sorted(visit, key=lambda s: (s.numbers.get("SeriesNumber", float("inf")), s.files[0].as_posix(), s.key))
    findings = verdicts(ordered, rules or packaged_rules())
    chosen, ties = choose(findings)
    return Identification(
        folder=folder, findings=findings, chosen=chosen, ties=ties, notes=tuple(_notes(findings, chosen))
    )


def _notes(findings: Sequence[Finding], chosen: Mapping[Modality, Series]) -> Iterator[str]:
    for modality, series in chosen.items():
        if any(finding.series is series and finding.second for finding in findings):
            yield f"{modality.title}: only a series that was made from another one is there."
    unsaid = [f for f in findings if f.sequence is Modality.T1 and not f.contrast and not f.second]
    if len(unsaid) > 1 and Modality.T1C not in chosen:
        yield (
            f"{len(unsaid)} series are T1-weighted, and nothing tells whether contrast agent was given before any of "
            "them. If it was, name the later ones t1c in series.json."
        )


def _series_below(place: Path) -> tuple[list[Series], list[str]]:
    images, notes = nifti_series(place)
    if not _has_dicom(place):
        return images, notes
    from glimpseg.data.dicom.find import find_series

    left = [f"{len(images)} NIfTI files were left aside, because there is DICOM."] if images else []
    return find_series(place), left


def _has_dicom(place: Path) -> bool:
    """Whether any file could be DICOM: it says so behind its preamble, or has no name that another kind has."""
    for path in place.rglob("*"):
        if path.is_file() and not path.name.startswith(".") and not OTHER_FILES.search(path.name):
            if path.suffix.lower() in (".dcm", ".ima"):
                return True
            if _begins_as_dicom(path):
                return True
    return False


def _begins_as_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    except OSError:
        return False  # closed to us, or gone meanwhile


def _one_visit(series: Sequence[Series], place: Path, study: str | None) -> list[Series]:
    visits: dict[str, list[Series]] = {}
    for one in series:
        visits.setdefault(one.study, []).append(one)
    if study is not None and study not in visits:
        raise InputError(f"No visit has the key {study}. There are: {_listed(visits, place)}.")
    if study is None and len(visits) > 1:
        raise InputError(
            f"{place.name} holds {len(visits)} visits, and series are compared within one. Give a folder with one of "
            f"them, or name it by its key: {_listed(visits, place)}."
        )
    return visits[study if study is not None else next(iter(visits))]


def _listed(visits: dict[str, list[Series]], place: Path) -> str:
    named = [f"{key} ({len(of)} series)" for key, of in visits.items()]
    return ", ".join(named[:_LISTED]) + (f" and {len(named) - _LISTED} more" if len(named) > _LISTED else "")
