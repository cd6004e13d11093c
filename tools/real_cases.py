"""Dice and HD95 of a model on labelled real cases, from every subset that their sequences allow, and the log of looks.

    python tools/real_cases.py MODEL --cases FOLDER -o OUT [--log looks.csv --candidate NAME] [--previews]

MODEL is a model or run folder, or `box`. Each case is a folder below FOLDER with images that glimpseg finds by name.
What it cannot find out by itself (which file is the reference, what its numbers mean, a brain mask, where images are
real) stands in `CASES`, or in a JSON file of the same form (`--manifest`). Images are taken as registered and stripped.

Settings are to be chosen on phantoms of held-out settings, not on real cases. So each look is written down: `--log`
names a CSV that grows by the date, the candidate and every number that was seen.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
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
from glimpseg.runtime.atomic import atomic_folder, write_text
from glimpseg.segmentation.inference import Prediction, infer
from glimpseg.segmentation.inputs import volume_of
from glimpseg.segmentation.predict import load
from glimpseg.study import Study
from glimpseg.volume import Volume, resample

RESULTS = "real_cases.csv"
"""Also the mark of a folder that may be overwritten."""
METRICS = ("dice", "hd95")
RELIABLE = 0.5
"""A mask is read as what is above this share."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What has to be known of a case besides its images. File names lie in its folder."""

    labels: str
    """What the reference's numbers mean, as `--labels` of `evaluate` takes it."""
    reference: str = "seg.nii.gz"
    brain: str | None = None
    """A brain mask, where the background is not constant."""
    covered: str | None = None
    """A mask of where images are real: scored is what lies inside."""
    truth: str = "expert"
    """Who drew the reference."""


CASES = {
    "TCGA-DU-7294": Case(labels="brats2021", reference="seg_silver.nii.gz", truth="majority of five algorithms"),
    "MSD_BRATS_009": Case(labels="brats2023", covered="covered.nii.gz"),
    "brats_2013_pat0001_1": Case(labels="brats2015", brain="brainmask.nii.gz"),
}
"""Public cases that are used as examples, by the names of their folders."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One line: what was seen of one region of one case from one subset."""

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


def main() -> int:
    """Scores the cases, prints a table, writes the results and the log."""
    arguments = _arguments()
    known = _manifest(arguments.manifest) if arguments.manifest else CASES
    model = load(arguments.model, "cpu")
    candidate = arguments.candidate or model.name
    looks: list[Look] = []
    with atomic_folder(arguments.output, overwrite=arguments.overwrite, mark=RESULTS) as place:
        for study, case in studies_of(arguments.cases, known):
            begun, scored = time.perf_counter(), list(scores(study, case, model))
            for found, lines in scored:
                looks += [replace(line, candidate=candidate) for line in lines]
                if arguments.previews:
                    draw(study, found, lines, place / "previews" / f"{study.id}-{found.subset.key}.png")
            print(f"{study.id}: {len(scored)} subsets, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        (place / RESULTS).write_text(as_csv(looks), "utf-8")
    if arguments.log:
        write_text(arguments.log, as_csv([*read_looks(arguments.log), *looks]))
    print(table(looks))
    return 0


def studies_of(folder: Path, known: dict[str, Case]) -> Iterator[tuple[Study, Case]]:
    """The cases of a folder that are known, with their references and masks. Raises: InputError if there is none."""
    studies = [study for study in find_studies(folder, references="ignored") if study.id in known]
    if not studies:
        raise InputError(f"{folder} holds none of the cases {', '.join(known)}. Describe yours with --manifest.")
    for study in studies:
        case, place = known[study.id], _folder_of(study)
        reference = nifti.read_labels(place / case.reference, convention_named(case.labels))
        if case.covered:
            real = nifti.read_volume(place / case.covered).voxels > RELIABLE
            reference = Volume(np.where(real, reference.voxels, 0).astype(np.uint8), reference.affine)
        brain = place / case.brain if case.brain else None
        yield replace(study, reference=reference, brain=brain), case


def scores(study: Study, case: Case, model: Model) -> Iterator[tuple[Prediction, list[Look]]]:
    """What the model finds from each subset, and how good it is, on the case's own grid."""
    prepared = prepare(study, model.recipe.data.preprocess)
    reference = Reference(prepared, model.network.regions, METRICS)
    names = {region.name for region in model.network.regions}
    weights = trained_digest(model.provenance)
    covered = _covered(study, case, prepared)
    for found in infer(prepared, model, subsets_of(prepared.available)):
        kept = replace(found, labels=Volume(found.labels.voxels * covered, found.labels.affine))
        yield (
            kept,
            [
                Look(
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
                )
                for one in reference.score(kept.labels, None)
                if one.name in names
            ],
        )


def draw(study: Study, found: Prediction, lines: Sequence[Look], path: Path) -> None:
    """Three planes of each sequence that was used, the reference dashed, Dice above."""
    grid = found.labels.grid
    images = {m: resample(volume_of(study.images[m], m.title), grid) for m in Modality if m in found.subset}
    title = f"{study.id}   {found.subset.title}   " + "  ".join(f"{one.region} {100 * one.dice:.0f}" for one in lines)
    assert isinstance(study.reference, Volume)
    path.parent.mkdir(exist_ok=True)
    preview(images, found.labels, study.reference, title).savefig(path, dpi=80)


def table(looks: Sequence[Look]) -> str:
    """Dice in % and HD95 in mm as text, a line for each case and subset; `-` where the reference lacks the region."""
    regions = list(dict.fromkeys(look.region for look in looks))
    lines = [f"{'case':24}{'sequences':18}" + "".join(f"{r:>7}" for r in regions) + "".join(f"{r:>9}" for r in regions)]
    rows: dict[tuple[str, str], dict[str, Look]] = {}
    for look in looks:
        rows.setdefault((look.case, look.sequences), {})[look.region] = look
    for (case, sequences), found in rows.items():
        shown = [found[region] for region in regions]
        dice = "".join(f"{100 * look.dice:7.1f}" if look.reference_ml else f"{'-':>7}" for look in shown)
        lines.append(f"{case:24}{parse(sequences).key:18}{dice}" + "".join(f"{look.hd95_mm:9.1f}" for look in shown))
    return "\n".join(lines)


def as_csv(looks: Sequence[Look]) -> str:
    """Lines of looks with a head."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Look)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, looks))
    return file.getvalue()


def read_looks(path: Path) -> list[Look]:
    """Those of a log; none where there is no file yet. Raises: InputError for a file that is no log of looks."""
    if not path.exists():
        return []
    numbers = ("dice", "hd95_mm", "predicted_ml", "reference_ml")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [Look(**{**row, **{name: float(row[name]) for name in numbers}}) for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no log of looks ({error}). Name another file with --log.") from error


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
