"""Trees of patients: ids of studies below a patient's folder, and derived files below a study."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from glimpseg.data.layouts.layout import StudyEntry, printable, stem_of
from glimpseg.modality import Modality
from glimpseg.study import Study

_TIME_POINT = re.compile(
    r"(?:(?:time ?point|timepoint|tp|visit|vis|v|week|wk|w|month|mo|m|day|d|year|session|ses|scan|exam|date|t|time|fu|"
    r"follow ?up|baseline|bl|pre|post|pre ?op|post ?op|initial|first|last|recurrence)[ _.-]*)?[\d_. -]*",
    re.IGNORECASE,
)
"""Folder names that say when, and not who."""
_DERIVED = re.compile(
    r"(?<![^\W_])(?:seg\w*|qc|quality\w*|deriv\w*|deepmedic|gt|mask\w*|label\w*|output\w*|result\w*|reg\w*|coreg\w*|"
    r"transform\w*|preproc\w*|process\w*|intermediate\w*|tmp|temp|backup|old|strip\w*|brain\w*|reorient\w*|"
    r"synthseg|freesurfer|fastsurfer|radiomics|features|preview\w*|forqc)(?![^\W_])",
    re.IGNORECASE,
)
"""Folder names of files that a tool made."""


@dataclass(frozen=True)
class KeptStudies:
    """Studies of a tree without the folders of derived files."""

    entries: Sequence[StudyEntry]
    set_aside: Mapping[Path, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def without_derived(entries: Sequence[StudyEntry], root: Path) -> KeptStudies:
    """Set aside folders of images below the folder of a study, since they are derived from it.

    A folder below a study is no study of its own if its name is one of a tool's output, or if the study above shows all
    its sequences. The given folder itself may hold a stray image above studies, so there only the name counts.
    """
    studies = {entry.folder: entry for entry in entries if entry.folder is not None}
    kept: list[StudyEntry] = []
    set_aside: dict[Path, str] = {}
    notes: list[str] = []
    for entry in entries:
        above = None if entry.folder is None else _study_above(entry.folder, studies)
        if above is None or not _is_derived(entry, above, root):
            kept.append(entry)
            continue
        assert entry.folder is not None
        assert above.folder is not None
        why = f"it lies in a folder below the study {above.study.id}"
        set_aside |= dict.fromkeys(_paths(entry.study), why)
        inside = printable(entry.folder.relative_to(above.folder).as_posix())
        notes.append(f"{above.study.id}: the images in {inside} are taken for derived files and are not used.")
    return KeptStudies(kept, set_aside, notes)


def with_joined_ids(entries: Sequence[StudyEntry], root: Path) -> tuple[list[StudyEntry], list[str]]:
    """Return the entries with ids that name the patient, and messages about them.

    Where folders of several patients have one name, or a name says only a time point, the id is made of the folder
    above and the name: `Patient-001_week-044`. Folders whose name begins the names of their files are whole ids.
    """
    counts = Counter(entry.study.id for entry in entries)
    doubled = {
        entry.folder.parent
        for entry in entries
        if entry.folder is not None and counts[entry.study.id] > 1 and not _is_whole_id(entry)
    }
    changed = list(entries)
    for index, entry in enumerate(entries):
        folder = entry.folder
        if folder is None or folder in (root, *root.parents) or folder.parent == root or _is_whole_id(entry):
            continue
        if folder.parent in doubled or _TIME_POINT.fullmatch(folder.name):
            changed[index] = _renamed(entry, _joined(folder, 1))
    changed = _until_different(changed, root)
    new = [one.study.id for one, old in zip(changed, entries, strict=True) if one.study.id != old.study.id]
    if not new:
        return changed, []
    shown = ", ".join(new[:3]) + (" ..." if len(new) > 3 else "")
    return changed, [f"The ids of {len(new)} studies are made of the folder of the patient and their own: {shown}."]


def _until_different(entries: list[StudyEntry], root: Path) -> list[StudyEntry]:
    """Put further folders in front of ids that are still equal."""
    for depth in range(2, 6):
        counts = Counter(entry.study.id for entry in entries)
        for index, entry in enumerate(entries):
            folder = entry.folder
            if counts[entry.study.id] > 1 and folder is not None and not _is_whole_id(entry):
                above = folder.parents[depth - 1] if len(folder.parents) >= depth else root
                if above != root and above.is_relative_to(root):
                    entries[index] = _renamed(entry, _joined(folder, depth))
    return entries


def _joined(folder: Path, depth: int) -> str:
    """Return the name of a folder with those of `depth` folders above it; one that begins with another stays alone."""
    name = folder.name
    for above in folder.parents[:depth]:
        if not name.lower().startswith(above.name.lower()):
            name = f"{above.name}_{name}"
    return printable(name)


def _renamed(entry: StudyEntry, name: str) -> StudyEntry:
    return replace(entry, study=replace(entry.study, id=name))


def _is_whole_id(entry: StudyEntry) -> bool:
    if entry.folder is None:
        return True
    name = entry.folder.name.lower()
    stems = [stem_of(path.name).lower() for path in _paths(entry.study)]
    return any(stem.startswith(name) and re.match(r"[\W_]", stem[len(name) :]) for stem in stems)


def _study_above(folder: Path, studies: Mapping[Path, StudyEntry]) -> StudyEntry | None:
    return next((studies[above] for above in folder.parents if above in studies), None)


def _is_derived(entry: StudyEntry, above: StudyEntry, root: Path) -> bool:
    assert entry.folder is not None
    assert above.folder is not None
    parts = entry.folder.relative_to(above.folder).parts
    if any(_DERIVED.search(part) or _DERIVED.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part)) for part in parts):
        return True
    both: Modality = above.study.available
    return above.folder != root and entry.study.available in both


def _paths(study: Study) -> list[Path]:
    return [path for path in (*study.images.values(), study.reference) if isinstance(path, Path)]
