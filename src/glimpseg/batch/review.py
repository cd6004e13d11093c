"""Review of a batch: `review.csv` and the contact sheet `review.html`, the most doubtful studies first."""

from __future__ import annotations

import base64
import csv
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from glimpseg.batch.written import read_study_folder
from glimpseg.modality import Modality
from glimpseg.results.html import render
from glimpseg.runtime.atomic import atomic_file, write_text
from glimpseg.segmentation.result import RECORD, THUMBNAIL
from glimpseg.version import NOT_A_DEVICE

log = logging.getLogger(__name__)

REVIEW = "review.csv"
PAGE = "review.html"
REGION_COLUMNS = ("volume_ml", "estimated_dice", "agreement")
"""Numbers of each region in `review.csv`, from each study's `statistics.json`."""
REGIONS = ("WT", "TC", "ET", "RC")
"""Regions with columns in `review.csv`, if any study has them."""


@dataclass(frozen=True, kw_only=True)
class ReviewedStudy:
    """One study of a batch, as its folder describes it."""

    name: str
    """Name of its output folder."""
    look: bool | None
    """True if there is a reason to look at it; None if its folder holds no review."""
    score: float
    """Score of its review; 0 without one."""
    reasons: tuple[str, ...]
    """Sentences of its findings."""
    codes: tuple[str, ...]
    """Rules of its findings."""
    sequences: Modality
    """Sequences that it was segmented from."""
    regions: Mapping[str, Mapping[str, Any]]
    """Numbers of each region, as in `statistics.json`."""
    thumbnail: str | None = None
    """Picture as a data URI; None if the folder holds none, or if it was not read."""

    @property
    def link(self) -> str:
        """Address of the study's folder, relative to the folder of the batch."""
        return f"{quote(self.name)}/"

    @property
    def used(self) -> str:
        """Sequences in words: `T1c + FLAIR`."""
        return self.sequences.title

    @property
    def volumes(self) -> str:
        """Volume of each region in words."""
        return ", ".join(f"{name} {values['volume_ml']:.1f} ml" for name, values in self.regions.items())

    @property
    def alt(self) -> str:
        """Text in place of the picture."""
        return f"Slice of {self.name} with most tumour, outlines of the labels. {self.volumes}."


def write_review(output: Path) -> None:
    """Write `review.csv` and `review.html`: one row and one card for each study folder that holds `run.json`.

    The most doubtful studies come first. The studies of all shards and of earlier runs are among them. Their number is
    logged. Raises: OutputError; InputError if a file of a study is damaged.
    """
    studies = reviewed_studies(output, pictures=True)
    with atomic_file(output / REVIEW) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = [_row(study) for study in studies]
        writer = csv.DictWriter(file, _columns(studies), lineterminator="\n", extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    doubtful = sum(bool(study.look) for study in studies)
    page = render("glimpseg.batch", "review.html.j2", studies=studies, doubtful=doubtful, notice=NOT_A_DEVICE)
    write_text(output / PAGE, page)
    log.info("%d of %d studies have a reason to look at them: %s.", doubtful, len(studies), PAGE)


def reviewed_studies(output: Path, *, pictures: bool = False) -> list[ReviewedStudy]:
    """Return the studies of a batch: those with a reason to look first, then by score, then by name.

    Args:
        output: Output folder of the batch.
        pictures: Read the thumbnails, too.

    Raises: InputError if a file of a study is damaged.
    """
    return sorted(_read(output, pictures), key=lambda study: (not study.look, -study.score, study.name))


def _read(output: Path, pictures: bool) -> Iterator[ReviewedStudy]:
    for path in output.glob(f"*/{RECORD}"):
        written = read_study_folder(path.parent)
        yield ReviewedStudy(
            name=written.name,
            look=written.look,
            score=written.score,
            reasons=tuple(finding.sentence for finding in written.findings),
            codes=tuple(finding.code for finding in written.findings),
            sequences=written.used,
            regions=written.regions,
            thumbnail=_data_uri(path.parent / THUMBNAIL) if pictures else None,
        )


def _columns(studies: list[ReviewedStudy]) -> list[str]:
    there = [name for name in REGIONS if any(name in study.regions for study in studies)]
    numbers = [f"{region}_{number}" for region in there for number in REGION_COLUMNS]
    return ["study", "look", "score", "reasons", "rules", "sequences", *numbers]


def _row(study: ReviewedStudy) -> dict[str, Any]:
    numbers = {
        f"{region}_{number}": values.get(number)
        for region, values in study.regions.items()
        for number in REGION_COLUMNS
    }
    look = {True: "yes", False: "no", None: ""}[study.look]
    reasons, rules = "; ".join(study.reasons), " ".join(study.codes)
    first = {"study": study.name, "look": look, "score": study.score, "reasons": reasons, "rules": rules}
    return {**first, "sequences": study.sequences.key, **numbers}


def _data_uri(path: Path) -> str | None:
    if not path.is_file():
        return None
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
