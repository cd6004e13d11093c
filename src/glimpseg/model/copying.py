"""Copies of a model folder with some files replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from glimpseg.model.checkpoint import STATE, STATE_SCALARS
from glimpseg.model.digests import sha256_of
from glimpseg.model.folder import PROVENANCE, StoredModel
from glimpseg.model.loading import Model
from glimpseg.runtime.atomic import atomic_folder


def save_copy(
    source: StoredModel | Model,
    folder: str | Path,
    files: Mapping[str, bytes],
    note: Mapping[str, Any],
    *,
    texts: Mapping[str, str] = MappingProxyType({}),
    overwrite: bool = False,
) -> None:
    """Write a copy of a model folder without training state, whole or not at all.

    Args:
        source: The model to copy.
        folder: The folder to write.
        files: Content of files that replace those of the source, or are added.
        note: Fields that are added to the provenance.
        texts: Further files for people, such as a model card, which get no digest.
        overwrite: Replace a model that is in `folder`.

    Raises: UsageError if `folder` holds files (without `overwrite`, or of something else); OutputError when the disk
        refuses.
    """
    before = source.provenance["sha256"]
    with atomic_folder(folder, overwrite=overwrite, mark=PROVENANCE) as place:
        kept = [name for name in before if name not in (STATE, STATE_SCALARS, *files)]
        for name in kept:
            shutil.copyfile(source.path / name, place / name)
        for name, content in files.items():
            (place / name).write_bytes(content)
        # A copied file keeps the digest it had, so that damage since then is noticed on loading.
        digests = {name: before[name] for name in kept} | {name: sha256_of(place / name) for name in files}
        record = {**source.provenance, **note, "sha256": dict(sorted(digests.items()))}
        (place / PROVENANCE).write_text(json.dumps(record, indent=2), "utf-8")
        for name, text in texts.items():
            (place / name).write_text(text, "utf-8")
