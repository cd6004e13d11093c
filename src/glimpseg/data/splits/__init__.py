"""Case lists (train, val, test) of published tables, with checksums (see SOURCES.md beside this file)."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources

from glimpseg.data.notices import warn
from glimpseg.errors import InputError, UsageError
from glimpseg.study import Study

SPLITS = (
    "brats2015", "brats2018-1", "brats2018-2", "brats2018-3", "brats2020", "brats2021", "brats2023-imfuse",
)  # fmt: skip
"""Names of the splits."""
PARTS = ("train", "val", "test")
"""Parts of every split."""
_GRADE = re.compile(r"^(hg|lg)_")
"""Prefix for the tumour grade, which the lists of RFNet put before the id of the release."""
NAMED_AT_MOST = 3
"""Most missing studies that a message names."""


def case_ids(name: str) -> tuple[str, ...]:
    """Return the case ids of a list such as `brats2020/test`, as they stand in it.

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


def select_studies(studies: Sequence[Study], name: str) -> list[Study]:
    """Select the studies that a list names, in the order given; warn of missing ones.

    Upper and lower case are equal. A grade (`HG_`, `LG_`) in only one of the two names is ignored; two grades must
    agree.

    Raises: InputError if none of the list is there, or if a study without a grade may be either of two cases; and as
        `case_ids`.
    """
    listed = case_ids(name)
    cases = _by_plain_id(name.split("/")[0])
    matched = {study.id: _case(study.id, cases, listed) for study in studies}
    selected = [study for study in studies if matched[study.id] in listed]
    if not selected:
        raise InputError(
            f"None of the {len(listed)} cases of {name} (such as {listed[0]}) is among the "
            f"{len(studies)} studies given (such as {studies[0].id if studies else 'none'}). Folders must have the "
            "names of the release."
        )
    missing = set(listed) - set(matched.values())
    if missing:
        some = ", ".join(sorted(missing)[:NAMED_AT_MOST]) + (" and others" if len(missing) > NAMED_AT_MOST else "")
        warn(
            f"Only {len(selected)} of the {len(listed)} cases of {name} were found; missing: {some}. Scores on part of "
            "a list cannot be compared with scores on the whole list."
        )
    return selected


def _plain(study: str) -> str:
    return _GRADE.sub("", study.lower())


def _by_plain_id(split: str) -> dict[str, list[str]]:
    """Cases of a split by their id without grade. In 2015 ten ids name two patients, one of each grade."""
    cases: dict[str, list[str]] = {}
    for part in PARTS:
        for member in case_ids(f"{split}/{part}"):
            cases.setdefault(_plain(member), []).append(member)
    return cases


def _case(study: str, cases: Mapping[str, list[str]], listed: Sequence[str]) -> str | None:
    """Case of a split that matches a study, or None. Raises: InputError if two match and one is on the list."""
    same = cases.get(_plain(study), [])
    given = _GRADE.match(study.lower())
    fitting = [case for case in same if not given or case.lower() in (study.lower(), _plain(case))]
    if len(fitting) > 1 and not set(fitting).isdisjoint(listed):
        raise InputError(
            f"The study {study} may be {' or '.join(fitting)}, which are different patients. Put the grade before the "
            "name of its folder, as the list does."
        )
    return fitting[0] if fitting else None


def _checksums() -> dict[str, str]:
    lines = resources.files(__name__).joinpath("SHA256SUMS").read_text("utf-8").splitlines()
    return {file: digest for digest, file in (line.split() for line in lines)}
