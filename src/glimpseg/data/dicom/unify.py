"""Unify UIDs that an export made different: of the series for each slice, of the study for each series.

Anonymisers do so too. Only identifiers are compared, and every change gives a note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, TypeVar

from glimpseg.data.dicom.headers import ENHANCED_CLASSES, value

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SERIES_KEYWORDS = (
    "SeriesNumber", "SeriesDescription", "ProtocolName", "ImageType", "Rows", "Columns", "EchoTime", "InversionTime",
    "RepetitionTime",
)  # fmt: skip
"""Attributes in which the slices of one series agree."""
VISIT_KEYWORDS = ("StudyDate", "StudyTime", "StudyID", "AccessionNumber")
"""Attributes that the series of one study share."""
FEWEST_SLICES = 3
"""Fewest files with a SeriesInstanceUID each that are taken for slices of one series."""

K = TypeVar("K", bound=Hashable)


def study_uids(headers: Sequence[Dataset]) -> tuple[list[str], list[str]]:
    """Return the StudyInstanceUID of each file, one for all series of one visit, and notes.

    Several studies are one if each has a single series (or a single file), no two have the same series, their dates
    do not differ, and they share a frame of reference or the time and number of the study.
    """
    uids = [str(header.StudyInstanceUID) for header in headers]
    members = _members(uids)
    if len(members) < 2:
        return uids, []
    series = {uid: {_text(headers[at], "SeriesNumber") for at in files} for uid, files in members.items()}
    single_files = all(len(files) == 1 for files in members.values())
    by_visit: dict[str, str] = {}
    firsts: list[str] = []
    for uid in sorted(members):
        ours = headers[members[uid][0]]
        known = next((one for one in firsts if _same_visit(headers[members[one][0]], ours)), None)
        if known is None or len(series[uid]) > 1 or len(series[known]) > 1:
            firsts.append(uid)
        by_visit[uid] = uid if known is None else known
    merged = [uid for uid in members if by_visit[uid] != uid]
    for first in set(by_visit.values()):
        group = [uid for uid in members if by_visit[uid] == first]
        numbers = [next(iter(series[uid])) for uid in group]
        alone = all(len(series[uid]) == 1 for uid in group)
        if not alone or not (single_files or len(set(numbers)) == len(numbers)):
            by_visit |= {uid: uid for uid in group}
            merged = [uid for uid in merged if uid not in group]
    if not merged:
        return uids, []
    count = len({*merged, *(by_visit[uid] for uid in merged)})
    note = (
        f"{count} StudyInstanceUIDs, one for each {'file' if single_files else 'series'}, of one visit by the other "
        "attributes: its images are read as one study."
    )
    return [by_visit[uid] for uid in uids], [note]


def series_uids(headers: Sequence[Dataset], studies: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the SeriesInstanceUID of each file, one for all slices of a series, and notes.

    Files with a UID each are one series if they agree in `SERIES_KEYWORDS`.

    Args:
        headers: headers of the files.
        studies: study of each file.
    """
    uids = [str(header.SeriesInstanceUID) for header in headers]
    members = _members(list(zip(studies, uids, strict=True)))
    single = [files[0] for files in members.values() if len(files) == 1 and not _is_enhanced(headers[files[0]])]
    groups = _grouped(single, lambda at: (studies[at], *(_text(headers[at], key) for key in SERIES_KEYWORDS)))
    notes = []
    for group in groups.values():
        if len(group) < FEWEST_SLICES:
            continue
        first = min(uids[at] for at in group)
        for at in group:
            uids[at] = first
        number = _text(headers[group[0]], "SeriesNumber")
        notes.append(
            f"{len(group)} files of series {number or 'without a number'} have a SeriesInstanceUID each; they are read "
            "as slices of one series."
        )
    return uids, notes


def _same_visit(first: Dataset, second: Dataset) -> bool:
    """True if two files are of one visit, by frame of reference and by date, time and numbers of the study."""
    dates = {_text(header, "StudyDate") for header in (first, second)} - {""}
    if len(dates) > 1:
        return False
    frames = [_text(header, "FrameOfReferenceUID") for header in (first, second)]
    if frames[0] and frames[0] == frames[1]:
        return True
    told = [[_text(header, keyword) for keyword in VISIT_KEYWORDS] for header in (first, second)]
    return told[0] == told[1] and all(told[0][:2]) and any(told[0][2:])


def _is_enhanced(header: Dataset) -> bool:
    return str(value(header, "SOPClassUID")) in ENHANCED_CLASSES


def _text(header: Dataset, keyword: str) -> str:
    found = value(header, keyword)
    return "" if found is None else str(found).strip()


def _members(names: Sequence[K]) -> dict[K, list[int]]:
    return _grouped(range(len(names)), lambda at: names[at])


def _grouped(items: Sequence[int], by: Callable[[int], K]) -> dict[K, list[int]]:
    groups: dict[K, list[int]] = defaultdict(list)
    for item in items:
        groups[by(item)].append(item)
    return groups
