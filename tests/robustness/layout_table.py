"""Make a tree of phantoms in each layout, with sequences removed at random, and show what is found in it.

    python tests/robustness/layout_table.py [-o DIR] [--studies 8] [--seed 0] [--spacing 4]

The trees are written by nibabel, SimpleITK, json and csv (`tests/layout_trees.py`), and the derivatives, which the BIDS
validator judges, by glimpseg. `=` says that what was found is what was made: ids; sequences, with every voxel; labels,
with every voxel and meaning; grids, to 0.001 mm at every corner.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import layout_trees as trees
from glimpseg.data import nifti
from glimpseg.data.layouts import find_studies, survey, write_derivative, write_studies
from glimpseg.modality import SUBSETS
from glimpseg.phantom import Settings, generate
from glimpseg.phantom.dataset import as_study
from glimpseg.study import Study
from glimpseg.volume import Volume, same_grid

COLUMNS = ("layout", "found", "sequences", "labels", "grid", "convention", "axes")
ORDERS = ("RAS", "LPS", "LPI", "ASR", "SRA")
"""Axis orders in which the phantoms are stored, one study after the other."""


def main() -> int:
    """Prints the tables; the exit code says whether all that was made was found, and the validator passed all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="keep the trees here")
    parser.add_argument("--studies", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spacing", type=float, default=4.0, help="mm")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output or Path(temporary)
        studies = made(arguments.studies, arguments.seed, arguments.spacing)
        rows = [row(layout, folder / layout, studies, arguments.seed + n) for n, layout in enumerate(trees.TREES)]
        studies = incomplete(studies, arguments.seed)
        rows += [written(layout, folder / f"written-{layout}", studies) for layout in ("brats2021", "nnunet", "bids")]
        show(COLUMNS, [cells for cells, _ in rows])
        words = verdicts(folder / "written-bids", studies)
        print()
        show(("BIDS validator", "errors", "warnings", "exit code"), [cells for cells, _ in words])
    return 0 if all(good for _, good in (*rows, *words)) else 1


def made(count: int, seed: int, spacing_mm: float) -> list[Study]:
    """Complete phantoms in several orders of axes; the last has no reference."""
    studies = []
    for number in range(count):
        phantom = as_study(generate(seed + number, Settings.at_spacing(spacing_mm)))
        images = {modality: turned(image, number) for modality, image in phantom.images.items()}
        reference = turned(phantom.reference, number) if number < count - 1 else None
        studies.append(Study(f"P{number:02d}", images, reference))
    return studies


def turned(volume: object, number: int) -> Volume:
    """The same voxels in the order of axes of a study's number."""
    assert isinstance(volume, Volume)
    image = nibabel.Nifti1Image(volume.voxels, volume.affine)
    order = nibabel.orientations.axcodes2ornt(ORDERS[number % len(ORDERS)])
    stored = image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(volume.affine), order)
    )
    return Volume(np.ascontiguousarray(stored.dataobj), stored.affine)


def incomplete(studies: Sequence[Study], seed: int) -> list[Study]:
    """The same studies, each with a subset of its sequences drawn for it."""
    rng = np.random.default_rng(seed)
    return [study.restricted_to(SUBSETS[rng.integers(len(SUBSETS))]) for study in studies]


def row(layout: str, folder: Path, studies: Sequence[Study], seed: int) -> tuple[list[str], bool]:
    """Row for a tree that other programs wrote."""
    # One file of the Decathlon holds all sequences, so all its studies have the same ones.
    shared = SUBSETS[np.random.default_rng(seed).integers(4, 14)]
    kept = [s.restricted_to(shared) for s in studies] if layout == "msd" else incomplete(studies, seed)
    folder.mkdir(parents=True)
    trees.TREES[layout](folder, kept)
    return compared(layout, folder, {trees.id_in(layout, n, study): study for n, study in enumerate(kept)})


def written(layout: str, folder: Path, studies: Sequence[Study]) -> tuple[list[str], bool]:
    """Row for a tree that glimpseg wrote."""
    write_studies(folder, studies, layout)
    names = {f"sub-{study.id}" if layout == "bids" else study.id: study for study in studies}
    return compared(f"{layout}, written", folder, names)


def compared(title: str, folder: Path, made: Mapping[str, Study]) -> tuple[list[str], bool]:
    """A line of the table, and whether everything in it is as it was made."""
    told, found = survey(folder), find_studies(folder)
    same = [(study, made[study.id]) for study in found if study.id in made]
    sequences = sum(one.available == other.available and all(images(one, other)) for one, other in same)
    labels = sum(same_labels(one, other) for one, other in same)
    grids = sum(all(same_grids(one, other)) for one, other in same)
    counts = (len(same), sequences, labels, grids)
    marks = [f"{'=' if count == len(made) == len(found) else '!'} {count}/{len(made)}" for count in counts]
    axes = ", ".join(sorted({kind.axes for kind in told.grids}))
    return [title, *marks, told.labels, axes], all(mark[0] == "=" for mark in marks)


def images(one: Study, other: Study) -> list[bool]:
    """Compare each sequence's voxels with those it was made with."""
    pairs = [(nifti.read_volume(path), other.images[modality]) for modality, path in one.images.items()]  # type: ignore[arg-type]
    return [isinstance(b, Volume) and np.array_equal(a.voxels, b.voxels) for a, b in pairs]


def same_grids(one: Study, other: Study) -> list[bool]:
    """True if each sequence lies where it was made."""
    pairs = [(nifti.read_header(path), other.images[modality]) for modality, path in one.images.items()]  # type: ignore[arg-type]
    return [isinstance(b, Volume) and same_grid(a, b.grid) for a, b in pairs]


def same_labels(one: Study, other: Study) -> bool:
    """Compare the reference with the labels that it was made with, or check that it is missing."""
    if not isinstance(other.reference, Volume) or not isinstance(one.reference, Path):
        return one.reference is None and other.reference is None
    labels = nifti.read_labels(one.reference, one.convention)
    return np.array_equal(labels.voxels, other.reference.voxels) and same_grid(labels.grid, other.reference.grid)


def verdicts(folder: Path, studies: Sequence[Study]) -> list[tuple[list[str], bool]]:
    """The validator's word on the raw data set, the references and the derivatives that glimpseg wrote."""
    for study in studies:
        if isinstance(study.reference, Volume):
            write_derivative(folder, f"sub-{study.id}", study.reference, model="a model", version="1.0")
    parts = {"raw": folder, **{name: folder / "derivatives" / name for name in ("reference", "glimpseg")}}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    validator = shutil.which("bids-validator-deno", path=path)
    if validator is None:
        return [(["not installed: pip install bids-validator-deno", "", "", ""], True)]
    return [judged(validator, name, part) for name, part in parts.items()]


def judged(validator: str, name: str, folder: Path) -> tuple[list[str], bool]:
    """One verdict."""
    done = subprocess.run([validator, "--format", "json", str(folder)], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    errors, warnings = (
        sorted({issue["code"] for issue in issues if issue["severity"] == kind}) for kind in ("error", "warning")
    )
    return [name, ", ".join(errors) or "none", ", ".join(warnings) or "none", str(done.returncode)], not done.returncode


def show(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table of plain text."""
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    for line in (head, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
