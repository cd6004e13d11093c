"""The lists of cases that published tables rest on, with checksums (see SOURCES.md beside this file)."""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
from collections.abc import Sequence
from importlib import resources

from glimpseg.errors import InputError, UsageError
from glimpseg.study import Study

log = logging.getLogger(__name__)

SPLITS = (
    "brats2015", "brats2018-1", "brats2018-2", "brats2018-3", "brats2020", "brats2021", "brats2023-imfuse",
)  # fmt: skip
PARTS = ("train", "val", "test")
_GRADE = re.compile(r"^(hg|lg)_")
"""RFNet puts the tumour's grade before the id of the release."""
NAMED_AT_MOST = 3
"""Missing studies that a message names."""


def members(name: str) -> tuple[str, ...]:
    """The ids of a list such as `brats2020/test`, as it has them.

    Raises: UsageError for an unknown list; InputError if the installed file is not the published one.
    """
    known = [f"{split}/{part}" for split in SPLITS for part in PARTS]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise UsageError(
            f"'{name}' is not a list of cases. {hint}There are {', '.join(SPLITS)}, each with /train, /val and /test."
        )
    file = f"{name.replace('/', '-')}.txt"
    content = resources.files(__name__).joinpath(file).read_bytes()
    if hashlib.sha256(content).hexdigest() != _checksums()[file]:
        raise InputError(f"The list {name} is damaged: its checksum differs. Install glimpseg again.")
    return tuple(line.strip() for line in content.decode().splitlines() if line.strip())


def chosen(studies: Sequence[Study], name: str) -> list[Study]:
    """Those of `studies` that a list names, in their own order; what is missing is warned of.

    Raises: InputError if none of the list is there.
    """
    listed = {_plain(member): member for member in members(name)}
    found = [study for study in studies if _plain(study.id) in listed]
    if not found:
        raise InputError(
            f"None of the {len(listed)} cases of {name} (such as {next(iter(listed.values()))}) is among the "
            f"{len(studies)} studies given (such as {studies[0].id if studies else 'none'}). Folders must have the "
            "names of the release."
        )
    missing = [listed[key] for key in listed.keys() - {_plain(study.id) for study in found}]
    if missing:
        log.warning(
            "Only %d of the %d cases of %s were found; missing: %s%s. Numbers on part of a list are not those of the "
            "list.",
            len(found),
            len(listed),
            name,
            ", ".join(sorted(missing)[:NAMED_AT_MOST]),
            " and others" if len(missing) > NAMED_AT_MOST else "",
        )
    return found


def _plain(study: str) -> str:
    return _GRADE.sub("", study.lower())


def _checksums() -> dict[str, str]:
    lines = resources.files(__name__).joinpath("SHA256SUMS").read_text("utf-8").splitlines()
    return {file: digest for digest, file in (line.split() for line in lines)}
