"""Score a model on labelled real cases, from every subset of their sequences, and log the scores.

    python tools/real_cases.py MODEL --cases FOLDER -o OUT [--log real_log.csv --candidate NAME] [--previews]

MODEL is a model or run folder, or `box`. Each case is a folder below FOLDER with images that glimpseg finds by name.
`CASES`, or a JSON file of the same form (`--manifest`), says the rest: the file with the reference, the meaning of its
numbers, a brain mask, a mask of the scanned region. Images must be registered and skull-stripped.

Settings are chosen on held-out phantoms, not on real cases. So every score on a real case is logged: `--log` names a
CSV that grows by the date, the candidate and all scores.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from glimpseg.data import nifti
from glimpseg.data.layouts import convention_named, find_studies
from glimpseg.data.preprocess import Prepared, prepare
from glimpseg.errors import InputError
from glimpseg.evaluation.scoring import Reference
from glimpseg.modality import Modality, parse, subsets_of
from glimpseg.model.halving import trained_digest
from glimpseg.model.loading import Model
from glimpseg.picture import preview
from glimpseg.region import Region
from glimpseg.runtime.atomic import atomic_folder, write_text
from glimpseg.segmentation.inference import Prediction, infer
from glimpseg.segmentation.inputs import volume_of
from glimpseg.segmentation.predict import load
from glimpseg.study import Study
from glimpseg.volume import Volume, resample

RESULTS = "real_cases.csv"
"""File of the scores. Its presence marks a folder that may be overwritten."""
METRICS = ("dice", "hd95")
RELIABLE = 0.5
"""Threshold of a mask: voxels above it are inside."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Case, apart from its images. Files are in the case's folder."""

    labels: str = "brats2021"
    """Label convention of the reference, as `--labels` of `evaluate` takes it."""
    reference: str | None = "seg.nii.gz"
    """None for a head without a tumour."""
    brain: str | None = None
    """Brain mask, if the background is not constant."""
    covered: str | None = None
    """Mask of the scanned region: only what lies inside is scored."""
    truth: str = "expert"
    """Author of the reference."""


DEVELOPMENT = ("01478", "01479", "01480", "01481", "01657", "01660")
"""Numbers of the BraTS 2021 patients that may guide choices."""
CASES = {
    **{f"BraTS2021_{number}": Case() for number in DEVELOPMENT},
    "TCGA-DU-7294": Case(labels="brats2021", reference="seg_silver.nii.gz", truth="majority of five algorithms"),
    "MSD_BRATS_009": Case(labels="brats2023", covered="covered.nii.gz"),
    "brats_2013_pat0001_1": Case(labels="brats2015", brain="brainmask.nii.gz"),
    "MS_open_ms_07": Case(reference=None, truth="no tumour: multiple sclerosis"),
}
"""Public cases that may guide choices, by the names of their folders."""


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """Line of the log: scores of one region of one case from one subset."""

    date: str
    candidate: str
    weights: str
    """SHA-256 of the weights as trained, also where they are used in fp16."""
    case: str
    truth: str
    sequences: str
    region: str
    dice: float
    hd95_mm: float
    predicted_ml: float
    reference_ml: float
    estimated_dice: float = math.nan
    """Estimate of `segment`, whether it is given to users or withheld; NaN where nothing was found."""


def main() -> int:
    """Score the cases, print a table, write the results and the log."""
    arguments = _arguments()
    known = _manifest(arguments.manifest) if arguments.manifest else CASES
    model = load(arguments.model, "cpu")
    candidate = arguments.candidate or model.name
    entries: list[LogEntry] = []
    with atomic_folder(arguments.output, overwrite=arguments.overwrite, mark=RESULTS) as place:
        for study, case in studies_of(arguments.cases, known):
            begun, scored = time.perf_counter(), list(scores(study, case, model))
            for found, lines in scored:
                entries += [replace(line, candidate=candidate) for line in lines]
                if arguments.previews:
                    draw(study, found, lines, place / "previews" / f"{study.id}-{found.subset.key}.png")
            print(f"{study.id}: {len(scored)} subsets, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        (place / RESULTS).write_text(as_csv(entries), "utf-8")
    if arguments.log:
        write_text(arguments.log, as_csv([*read_log(arguments.log), *entries]))
    print(table(entries))
    return 0


def studies_of(folder: Path, known: dict[str, Case]) -> Iterator[tuple[Study, Case]]:
    """Known cases of a folder, with their references and masks. Raises: InputError if there is none."""
    studies = [study for study in find_studies(folder, references="ignored") if study.id in known]
    if not studies:
        raise InputError(f"{folder} holds none of the cases {', '.join(known)}. Describe yours with --manifest.")
    for study in studies:
        case, place = known[study.id], _folder_of(study)
        if case.reference is None:
            image = volume_of(next(iter(study.images.values())), "image")
            reference = Volume(np.zeros(image.voxels.shape, np.uint8), image.affine)
        else:
            reference = nifti.read_labels(place / case.reference, convention_named(case.labels))
        if case.covered:
            real = nifti.read_volume(place / case.covered).voxels > RELIABLE
            reference = Volume(np.where(real, reference.voxels, 0).astype(np.uint8), reference.affine)
        brain = place / case.brain if case.brain else None
        yield replace(study, reference=reference, brain=brain), case


def scores(study: Study, case: Case, model: Model) -> Iterator[tuple[Prediction, list[LogEntry]]]:
    """Predictions from each subset and their scores, on the native grid of the case."""
    prepared = prepare(study, model.recipe.data.preprocess)
    reference = Reference(prepared, model.network.regions, METRICS)
    names = {region.name for region in model.network.regions}
    weights = trained_digest(model.provenance)
    covered = _covered(study, case, prepared)
    told = model.expectations
    for subset in subsets_of(prepared.available):
        (found,) = infer(prepared, model, [subset], temperatures=told.temperatures(subset) if told else {})
        estimates = found.estimates or {}
        kept = replace(found, labels=Volume(found.labels.voxels * covered, found.labels.affine))
        yield (
            kept,
            [
                LogEntry(
                    date=f"{datetime.now(UTC):%Y-%m-%d}",
                    candidate="",
                    weights=weights,
                    case=study.id,
                    truth=case.truth,
                    sequences=found.subset.key,
                    region=one.name,
                    dice=round(one.values["dice"], 4),
                    hd95_mm=round(one.values["hd95"], 2),
                    predicted_ml=round(one.predicted_ml, 2),
                    reference_ml=round(one.reference_ml, 2),
                    estimated_dice=round(estimates.get(Region[one.name], math.nan), 4),
                )
                for one in reference.score(kept.labels, None)
                if one.name in names
            ],
        )


def draw(study: Study, found: Prediction, lines: Sequence[LogEntry], path: Path) -> None:
    """Draw three planes of each used sequence, with the reference dashed and the Dice above."""
    grid = found.labels.grid
    images = {m: resample(volume_of(study.images[m], m.title), grid) for m in Modality if m in found.subset}
    title = f"{study.id}   {found.subset.title}   " + "  ".join(f"{one.region} {100 * one.dice:.0f}" for one in lines)
    assert isinstance(study.reference, Volume)
    path.parent.mkdir(exist_ok=True)
    preview(images, found.labels, study.reference, title).savefig(path, dpi=80)


def table(entries: Sequence[LogEntry]) -> str:
    """Table of Dice in % and HD95 in mm, a line for each case and subset; ml found where a reference lacks a region."""
    regions = list(dict.fromkeys(entry.region for entry in entries))
    lines = [f"{'case':24}{'sequences':18}" + "".join(f"{r:>7}" for r in regions) + "".join(f"{r:>9}" for r in regions)]
    rows: dict[tuple[str, str], dict[str, LogEntry]] = {}
    for entry in entries:
        rows.setdefault((entry.case, entry.sequences), {})[entry.region] = entry
    for (case, sequences), found in rows.items():
        shown = [found[region] for region in regions]
        dice = "".join(
            f"{100 * entry.dice:7.1f}" if entry.reference_ml else f"{entry.predicted_ml:5.1f}ml" for entry in shown
        )
        lines.append(f"{case:24}{parse(sequences).key:18}{dice}" + "".join(f"{entry.hd95_mm:9.1f}" for entry in shown))
    return "\n".join(lines)


def as_csv(entries: Sequence[LogEntry]) -> str:
    """CSV text of entries, with a header line."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(LogEntry)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, entries))
    return file.getvalue()


def read_log(path: Path) -> list[LogEntry]:
    """Entries of a log; none if there is no file yet. Raises: InputError if the file is no such log."""
    if not path.exists():
        return []
    numbers = {field.name for field in fields(LogEntry) if field.type == "float"}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [LogEntry(**{n: float(value) if n in numbers else value for n, value in row.items()}) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no log of real-case scores ({error}). Name another file with --log.") from error


def _covered(study: Study, case: Case, prepared: Prepared) -> np.ndarray:
    if case.covered is None:
        return np.ones(prepared.own.shape, np.uint8)
    return (nifti.read_volume(_folder_of(study) / case.covered).voxels > RELIABLE).astype(np.uint8)


def _folder_of(study: Study) -> Path:
    path = next(iter(study.images.values()))
    assert isinstance(path, Path)
    return path.parent


def _manifest(path: Path) -> dict[str, Case]:
    try:
        return {name: Case(**entry) for name, entry in json.loads(path.read_text("utf-8")).items()}
    except (OSError, TypeError, ValueError, AttributeError) as error:
        names = ", ".join(field.name for field in fields(Case))
        raise InputError(f"{path} is no manifest ({error}). Give each case an object with {names}.") from error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--candidate", help="how the log calls it; default: method and digest")
    parser.add_argument("--previews", action="store_true", help="draw one picture for each case and subset")
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
