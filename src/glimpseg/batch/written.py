"""Read back the JSON files that a batch has written. Any of them may have been damaged since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimpseg.data.notices import Notices
from glimpseg.errors import InputError
from glimpseg.modality import Modality, parse
from glimpseg.region import Region
from glimpseg.runtime.documents import BROKEN, DocumentError, field_of, read_json, texts_of
from glimpseg.segmentation.quality.finding import Finding
from glimpseg.segmentation.record import STATISTICS
from glimpseg.segmentation.result import RECORD


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """Output folder of one study, as its `run.json` and `statistics.json` describe it."""

    name: str
    """Name of the folder."""
    used: Modality
    """Sequences that the study was segmented from."""
    seconds: float
    """Time of all steps together, in seconds."""
    notices: Notices
    """Warnings and notes."""
    look: bool | None
    """True if there is a reason to look at the result; None if the folder holds no review."""
    score: float
    """Score of the review; 0 without one."""
    findings: tuple[Finding, ...]
    """Reasons to look, the highest score first."""
    regions: Mapping[str, Mapping[str, Any]]
    """Numbers of each region, by its name. `volume_ml` is always among them."""

    @property
    def volumes_ml(self) -> dict[Region, float]:
        """Volume of each region, in ml."""
        return {Region[name]: numbers["volume_ml"] for name, numbers in self.regions.items()}


def read_study_folder(folder: Path) -> StudyFolder:
    """Read the output folder of a study.

    Raises: InputError if `run.json` or `statistics.json` is missing or damaged.
    """
    path = folder / RECORD
    try:
        run = read_json(path, finite=False, names_files=True)
        review = field_of(run, "review", dict, {})
        fields: dict[str, Any] = {
            "used": _sequences(field_of(run, "sequences", dict)),
            "seconds": _total(field_of(run, "seconds", dict, {})),
            "notices": _notices(run),
            "look": field_of(review, "look", bool) if review else None,
            "score": field_of(review, "score", float, 0.0),
            "findings": tuple(_finding(tree) for tree in field_of(review, "findings", list, [])),
        }
        path = folder / STATISTICS
        return StudyFolder(name=folder.name, regions=_regions(read_json(path, finite=False)), **fields)
    except BROKEN as error:
        raise InputError(
            f"{path} is damaged ({error}). Move the folder {folder} away and run again with --resume: the study is "
            "then segmented anew."
        ) from error


def read_failures(path: Path) -> dict[str, str]:
    """Return the reason of each failed study, by its name. Raises: InputError if the file is damaged."""
    try:
        failed = field_of(read_json(path, names_files=True), "failed", list)
        return {field_of(entry, "study", str): field_of(entry, "reason", str) for entry in failed}
    except BROKEN as error:
        raise InputError(f"{path} is damaged ({error}). Delete it and run again with --resume.") from error


def read_tree_notices(path: Path) -> Notices:
    """Return the warnings and notes about a tree, none if there is no file. Raises: InputError if it is damaged."""
    if not path.is_file():
        return Notices()
    try:
        return _notices(read_json(path, names_files=True))
    except BROKEN as error:
        raise InputError(f"{path} is damaged ({error}). Run again with --resume, which writes it anew.") from error


def read_key(path: Path) -> bytes:
    """Return the key of a batch's pseudonyms, from its key file. Raises: InputError if the file is damaged."""
    try:
        key = bytes.fromhex(field_of(read_json(path, names_files=True), "key", str))
        if not key:
            raise DocumentError("its key is empty")
        return key
    except BROKEN as error:
        raise InputError(
            f"The key file {path} is damaged ({error}). Put a copy of it back. If there is none, move it away and name "
            "another output folder with -o: with another key, the same patient gets another pseudonym."
        ) from error


def _sequences(tree: dict[str, Any]) -> Modality:
    return parse("+".join(texts_of(tree, "used")))


def _total(seconds: dict[str, Any]) -> float:
    return sum((field_of(seconds, name, float) for name in seconds), 0.0)


def _notices(tree: Any) -> Notices:
    return Notices(texts_of(tree, "warnings", []), texts_of(tree, "notes", []))


def _finding(tree: Any) -> Finding:
    return Finding(
        code=field_of(tree, "code", str),
        score=field_of(tree, "score", float),
        sentence=field_of(tree, "sentence", str),
    )


def _regions(tree: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(tree, dict):
        raise DocumentError("it should be a table of regions")
    for name in tree:
        if name not in Region.__members__:
            raise DocumentError(f"'{name}' is no region")
        numbers = field_of(tree, name, dict)
        field_of(numbers, "volume_ml", float)
        for number in numbers:
            if number != "title":
                field_of(numbers, number, float, 0.0)  # null: not defined
    return tree
