"""Read an edited series.json, with every entry checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from glimpseg.data.identify.identification import SCHEMA
from glimpseg.data.series import Series
from glimpseg.errors import InputError
from glimpseg.modality import ALIASES, Modality
from glimpseg.runtime.documents import DocumentError, read_json

FILE_BYTES = 64 << 20
"""Largest series.json that is read: room for half a million file names."""
DOCUMENT_KEYS = ("schema", "how_to", "folder", "series", "ties", "warnings", "notes", "files")
"""Keys of the document."""
ENTRY_KEYS = (
    "key", "number", "description", "sequence", "could_be", "why", "score", "geometry", "source", "study", "evidence",
)  # fmt: skip
"""Keys of one entry of `series`."""


def read_series_json(path: str | Path, folder: str | Path | None = None) -> dict[Modality, Series]:
    """Read the series that an edited series.json names for each sequence, in channel order.

    Args:
        path: the file.
        folder: current folder of the image files, if it is not the one that the file names.

    Returns:
        Series with their files (in the order of the file), source, study, key and description. Other header fields are
        not in series.json.

    Raises: InputError for a file that is no series.json, for keys it does not know, a sequence that is misspelt or
        named twice, none at all, and files that are missing or lie outside the folder.
    """
    path = Path(path)
    document = _document(path)
    place = Path(folder) if folder is not None else path.parent / _text(document, "folder", path)
    if not place.is_dir():
        raise InputError(f"{path.name} says that its files lie in {place}, which is no folder. Give the folder itself.")
    files = document["files"]
    entries = document["series"]
    if not isinstance(entries, list) or not isinstance(files, dict):
        raise InputError(f"{path.name} needs a list `series` and a table `files`. Run glimpseg identify again.")
    chosen: dict[Modality, Series] = {}
    keys: set[str] = set()
    for entry in entries:
        modality = _sequence(entry, path)
        key = _text(entry, "key", path)
        if key in keys:
            raise InputError(f"{path.name} has series {key} twice. Take one out.")
        keys.add(key)
        if modality is None:
            continue
        if modality in chosen:
            raise InputError(
                f"{path.name} names {modality.title} twice: series {chosen[modality].key} and {key}. "
                "Set `sequence` of one of them to null."
            )
        chosen[modality] = _series(entry, files=files, place=place, path=path)
    if not chosen:
        raise InputError(f"{path.name} names no sequence. Set `sequence` of at least one series: t1, t1c, t2, flair.")
    return {modality: chosen[modality] for modality in Modality if modality in chosen}


def _document(path: Path) -> Mapping[str, Any]:
    try:
        document = read_json(path, most_bytes=FILE_BYTES, names_files=True)
    except DocumentError as error:
        raise InputError(
            f"{path.name} cannot be read as JSON ({error}). Mend it, or run glimpseg identify again."
        ) from error
    if not isinstance(document, dict):
        raise InputError(
            f"{path.name} should be the series.json that glimpseg identify writes. It holds something else."
        )
    _refuse_unknown(document, DOCUMENT_KEYS, path)
    for key in ("schema", "folder", "series", "files"):
        if key not in document:
            raise InputError(f"{path.name} has no `{key}`. Is it a series.json? Run glimpseg identify again.")
    if document["schema"] != SCHEMA:
        raise InputError(
            f"{path.name} has schema {document['schema']!r}, this version reads {SCHEMA}. Run glimpseg identify again."
        )
    return document


def _refuse_unknown(entry: Mapping[str, Any], known: tuple[str, ...], path: Path) -> None:
    for key in entry:
        if key not in known:
            raise InputError(f"{path.name} has an unknown key `{key}`{_nearest(key, known)}. Take it out or mend it.")


def _nearest(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""


def _sequence(entry: Any, path: Path) -> Modality | None:
    if not isinstance(entry, dict):
        raise InputError(f"{path.name}: each entry of `series` should be a table, not {entry!r:.40}.")
    _refuse_unknown(entry, ENTRY_KEYS, path)
    if "sequence" not in entry:
        raise InputError(f"{path.name}: an entry of `series` has no `sequence`. Set it to t1, t1c, t2, flair or null.")
    name = entry["sequence"]
    if name is None:
        return None
    modality = ALIASES.get(name.strip().lower()) if isinstance(name, str) else None
    if modality is None:
        near = _nearest(name, tuple(ALIASES)) if isinstance(name, str) else ""
        raise InputError(f"{path.name}: {name!r} is not a sequence{near}. Write t1, t1c, t2, flair or null.")
    return modality


def _text(entry: Mapping[str, Any], key: str, path: Path) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{path.name}: `{key}` should be text, not {value!r:.40}. Run glimpseg identify again.")
    return value


def _series(entry: Mapping[str, Any], *, files: Mapping[str, Any], place: Path, path: Path) -> Series:
    key = _text(entry, "key", path)
    names = files.get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path.name}: series {key} has no files in `files`. Run glimpseg identify again.")
    source = _text(entry, "source", path)
    if source not in ("dicom", "nifti"):
        raise InputError(f"{path.name}: `source` of series {key} is dicom or nifti, not '{source}'.")
    description = entry.get("description")
    return Series(
        key=key,
        source="dicom" if source == "dicom" else "nifti",
        files=tuple(_file_below(name, place, path) for name in names),
        study=_text(entry, "study", path),
        words={"SeriesDescription": description} if isinstance(description, str) and description else {},
    )


def _file_below(name: str, place: Path, path: Path) -> Path:
    """Path of a file below `place`. Raises: InputError if the name or a link leads outside, or no file is there."""
    pure = PurePosixPath(name)
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name
    file = place if outside else place / pure
    try:
        inside, there = not outside and file.resolve().is_relative_to(place.resolve()), file.is_file()
    except OSError:  # a name that is too long
        inside, there = True, False
    if not inside:
        raise InputError(f"{path.name} names the file {name!r:.80}, which lies outside its folder. It is not read.")
    if not there:
        raise InputError(f"{path.name} names the file {name!r:.80}, which is not there. Run glimpseg identify again.")
    return file
