"""Survey of a folder before preparation: studies, sequences, labels, grids, problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from glimpseg.data import nifti
from glimpseg.data.layouts.find import AUTO, describe_unused, read_folder, with_conventions
from glimpseg.data.layouts.layout import printable
from glimpseg.data.notices import Notices
from glimpseg.errors import InputError
from glimpseg.modality import SUBSETS, Modality
from glimpseg.region import Convention
from glimpseg.study import Study
from glimpseg.volume import Volume

MOST_LINES = 40
"""Largest number of studies, or files, that `Survey.text` lists."""


class GridKind(NamedTuple):
    """Shape, spacing and axes of a grid, without its position."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    axes: str

    @property
    def text(self) -> str:
        """Text for screens."""
        shape, spacing = "x".join(map(str, self.shape)), "x".join(f"{side:g}" for side in self.spacing_mm)
        return f"{shape} voxels of {spacing} mm, {self.axes}"


@dataclass(frozen=True, eq=False)
class Survey:
    """Survey of a folder. Problems are listed, not raised."""

    layout: str
    """Recognised layout; several names if spellings of BraTS are mixed."""
    studies: Sequence[Study]
    convention: Convention | None
    """Convention of the references, if they share one."""
    labels: str
    """Text about the label numbers."""
    subsets: Mapping[Modality, int]
    """Number of studies that have exactly these sequences, for each of the 15 subsets."""
    grids: Mapping[GridKind, int]
    """Number of images on each kind of grid, most frequent first."""
    ignored: Mapping[Path, str]
    """Image files that belong to no study, relative to the folder, each with the reason."""
    problems: Sequence[str]
    """Problems to solve before the studies can be used."""
    notes: Sequence[str]
    """Messages about ignored files."""

    @property
    def notices(self) -> Notices:
        """Its notes as warnings, and the ignored images as notes, as `find_studies` says them."""
        return Notices(list(self.notes), describe_unused(self.ignored))

    def text(self) -> str:
        """Return the survey as a plain table."""
        references = sum(study.reference is not None for study in self.studies)
        lines = [
            f"layout      {self.layout}",
            f"studies     {len(self.studies)}, {references} with a reference",
            f"labels      {self.labels}",
            *_block("grids", [f"{count} images of {kind.text}" for kind, count in self.grids.items()] or ["none"]),
            "",
            *_subset_lines(self.subsets),
            "",
            *_study_lines(self.studies),
        ]
        for title, entries in (
            ("ignored", [f"{path}: {why}" for path, why in self.ignored.items()]),
            ("notes", self.notes),
            ("PROBLEMS", self.problems),
        ):
            if entries:
                lines += ["", f"{title} ({len(entries)})", *_first_lines([f"  {entry}" for entry in entries])]
        return "".join(f"{printable(part)}\n" for line in lines for part in line.split("\n"))


def survey(folder: str | Path, layout: str = AUTO, labels: str | None = None) -> Survey:
    """Survey a folder or a manifest, and read the headers of its images.

    Voxels are read only from references, and only if nothing else defines the label numbers.

    Raises:
        InputError: as `read_folder`.
        UsageError: for an unknown `layout` or `labels`.
    """
    found = read_folder(Path(folder), layout)
    problems = found.problems
    entries = [entry for entry in found.entries if entry.study.images]
    try:
        studies = with_conventions(entries, labels, found.folder)
    except InputError as error:
        studies = [entry.study for entry in entries]
        problems.append(str(error))
        said = "unclear, see below"
    else:
        said = ""
    studies.sort(key=lambda study: study.id)
    conventions = {s.convention.name: s.convention for s in studies if s.convention and s.reference is not None}
    grids, unreadable = _grids(studies)
    return Survey(
        layout=", ".join(found.layouts) or "none",
        studies=tuple(studies),
        convention=next(iter(conventions.values())) if len(conventions) == 1 else None,
        labels=said
        or "; ".join(_describe_convention(convention) for convention in conventions.values())
        or "no references",
        subsets={subset: sum(study.available == subset for study in studies) for subset in SUBSETS},
        grids=grids,
        ignored={path.relative_to(found.folder): why for path, why in found.unused_images().items()},
        problems=(*problems, *unreadable),
        notes=tuple(found.notes),
    )


def _grids(studies: Sequence[Study]) -> tuple[dict[GridKind, int], list[str]]:
    """Return the number of images on each kind of grid, and messages about unreadable images."""
    counts: Counter[GridKind] = Counter()
    problems = []
    for study in studies:
        for image in study.images.values():
            try:
                grid = image.grid if isinstance(image, Volume) else nifti.read_header(image)
            except InputError as error:
                problems.append(str(error))
                continue
            spacing = tuple(round(side, 3) for side in grid.spacing_mm)
            counts[GridKind(grid.shape, spacing, grid.axes)] += 1
    return dict(counts.most_common()), problems


def _describe_convention(convention: Convention) -> str:
    meaning = ", ".join(f"{number} {label.name}" for number, label in convention.meaning.items())
    return meaning if "=" in convention.name else f"{convention.name}: {meaning}"


def _block(title: str, lines: Sequence[str]) -> list[str]:
    return [f"{'' if index else title:12s}{line.strip()}" for index, line in enumerate(lines)]


def _subset_lines(subsets: Mapping[Modality, int]) -> list[str]:
    width = max(len(subset.title) for subset in SUBSETS)
    lines = [f"{subset.title:{width}s}  {count:6d}" for subset, count in subsets.items()]
    return [f"{'sequences':{width}s}  {'studies':>6s}", *lines]


def _study_lines(studies: Sequence[Study]) -> list[str]:
    width = max([len("study"), *(len(study.id) for study in studies[:MOST_LINES])])
    head = f"{'study':{width}s}  " + "  ".join(f"{m.title:5s}" for m in Modality) + "  reference"
    lines = [
        f"{study.id:{width}s}  "
        + "  ".join(f"{'yes' if m in study.available else '-':5s}" for m in Modality)
        + f"  {'yes' if study.reference is not None else '-'}"
        for study in studies
    ]
    return [head, *_first_lines(lines)]


def _first_lines(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([f"  ... and {rest} more"] if rest > 0 else [])]
