"""BIDS file names: `sub-01_ses-02_ce-gadolinium_T1w.nii.gz`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glimpseg.errors import UsageError

_ENTITY = re.compile(r"^([A-Za-z]+)-([A-Za-z0-9+]+)$")
_STUDY = re.compile(r"^sub-([A-Za-z0-9]+)(?:_ses-([A-Za-z0-9]+))?$")
DESCRIPTION, PARTICIPANTS, DERIVATIVES, ANATOMY = "dataset_description.json", "participants.tsv", "derivatives", "anat"
BIDS_VERSION = "1.10.0"


@dataclass(frozen=True)
class BidsName:
    """Entities and suffix of a BIDS file name."""

    entities: Mapping[str, str]
    suffix: str


def parse_name(stem: str) -> BidsName | None:
    """Parse a file name without its extension; None if it is not a BIDS name."""
    *parts, suffix = stem.split("_")
    matches = [_ENTITY.match(part) for part in parts]
    if not suffix.isalnum() or not all(matches):
        return None
    return BidsName({match[1]: match[2] for match in matches if match}, suffix)


def bids_study_name(study: str) -> str:
    """Return the BIDS name of a study.

    `sub-01` and `sub-01_ses-02` stay as they are. Other ids keep their letters and digits.

    Raises:
        UsageError: if the id has neither letters nor digits.
    """
    if _STUDY.match(study):
        return study
    label = re.sub(r"[^A-Za-z0-9]", "", study)
    if not label:
        raise UsageError(f"BIDS names studies by letters and digits, and '{study}' has none. Give it another id.")
    return f"sub-{label}"


def anat_folder(root: Path, name: str) -> Path:
    """Return the folder of a study's anatomical images."""
    return root.joinpath(*name.split("_"), ANATOMY)
