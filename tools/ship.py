"""Put a trained and calibrated model into the package: fp16 weights in `src/glimpseg/weights/box/`, with its card.

    python tools/ship.py MODEL [--run RUN] [--begun RUN...] [--material TEXT...]
        [--evaluation EVALUATION --phantoms FOLDER] [--real LOG]

MODEL is a model or run folder; RUN is the run whose `metrics.jsonl` tells the cost, where MODEL is a copy that
`calibrate` made; `--begun` names the runs whose models its training began with, first to last, where `box` is the model
of the package so far; TEXT says what label maps the phantoms were made of, with source and licence, one TEXT for each
folder of the recipe's stream; EVALUATION is of the phantoms in FOLDER, whose `phantoms.json` says what they were drawn
from; LOG is the log that `real_cases.py` wrote. Numbers of MODEL_CARD.md come from these files; what is not given is
said to be missing. Nothing is written if the weights exceed 24 MB, or a weight does not fit fp16.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from glimpseg import methods
from glimpseg.errors import InputError, ModelError
from glimpseg.modality import ALL, Modality, parse
from glimpseg.model import shipped
from glimpseg.model.expectations import EXPECTATIONS, Expectations, OnPatients
from glimpseg.model.folder import RECIPE, WEIGHTS, StoredModel
from glimpseg.model.halving import save_halved, trained_digest
from glimpseg.model.loading import Model, load_model, stored_model
from glimpseg.phantom import Settings, generate
from glimpseg.phantom.dataset import MANIFEST, as_study
from glimpseg.phantom.settings import FOLDERS
from glimpseg.recipe import Recipe
from glimpseg.region import Region
from glimpseg.report.evaluation import metric_table
from glimpseg.results.folder import Evaluation, read_evaluation
from glimpseg.results.scores import METRICS, POSTPROCESSED
from glimpseg.results.tables import MISSING, Cell, Table, dot_titles, dots
from glimpseg.segmentation.options import InferenceOptions
from glimpseg.segmentation.predict import segment_study
from real_cases import LogEntry, read_log

CARD = "MODEL_CARD.md"
BEGUN = "begun with"
"""Name of the rows of a card about earlier trainings."""
LIMIT_MB = 24.0
"""Largest size of the weights, so that the wheel stays small."""
SEED = 900_200
"""Seed of the phantom on which fp16 is compared with fp32."""
ESTIMATES = 5
"""Fewest patients whose estimates tell how far estimates are off."""
LOG_LINES = 12
DIGEST = 12
"""Number of characters of a digest that are shown."""


def main() -> int:
    """Ship the model and print a summary."""
    arguments = _arguments()
    found = stored_model(arguments.model)
    evaluation = read_evaluation(arguments.evaluation) if arguments.evaluation else None
    entries = read_log(arguments.real) if arguments.real else []
    before = begun_with(found, arguments.begun)
    begun = [row for both in zip(before, arguments.begun, strict=True) for row in in_words(*both)]
    refuse_unnamed_material(found, arguments.material)
    scored = scored_phantoms(arguments.phantoms, evaluation, [*before, found]) if evaluation else ""
    if arguments.real and not entries:
        raise InputError(f"{arguments.real} holds no entry. Make it with tools/real_cases.py --log.")
    journal = metrics_of(arguments.run or arguments.model)
    with tempfile.TemporaryDirectory() as temporary:
        save_halved(found, Path(temporary) / shipped.BOX)
        half = load_model(Path(temporary) / shipped.BOX)
        size = (half.path / WEIGHTS).stat().st_size / 1e6
    refuse_other_weights(found, evaluation, entries)
    if size > LIMIT_MB:
        raise ModelError(
            f"The weights come to {size:.1f} MB, and {LIMIT_MB:g} MB is the limit. Train a smaller network."
        )
    comparison = list(compared(load_model(found.path), half, arguments.spacing))
    print("\n".join(comparison))
    packaged = next(filter(is_shipped, before), None)
    earlier = earlier_runs((packaged.path / CARD).read_text("utf-8")) if packaged else []
    told = half.expectations and with_patients(half.expectations, entries, trained_digest(found.provenance))
    text = card(found, half, size, comparison, journal, begun, arguments.material, evaluation, scored, entries, earlier)
    files = {RECIPE: yaml.safe_dump(methods.as_tree(without_places(found.recipe)), sort_keys=False).encode()}
    if told:
        files[EXPECTATIONS] = (json.dumps(told.as_tree(), indent=1) + "\n").encode("ascii")
    save_halved(found, arguments.target, {CARD: text}, files)
    done = load_model(arguments.target)
    print(f"{done.name}: {(arguments.target / WEIGHTS).stat().st_size / 1e6:.2f} MB in {arguments.target}")
    return 0


def refuse_other_weights(found: StoredModel, evaluation: Evaluation | None, entries: Sequence[LogEntry]) -> None:
    """Raise InputError if scores belong to other weights than the shipped ones."""
    digest = trained_digest(found.provenance)
    if evaluation is not None:
        model = evaluation.record["model"]
        of = model.get("halved_from", model["weights"])
        if of != digest:
            raise InputError(
                f"{evaluation.folder} is of the weights {of[:8]}, not of {digest[:8]}. Evaluate this model."
            )
    if entries and digest not in {entry.weights for entry in entries}:
        raise InputError(f"The log has no entry of the weights {digest[:8]}. Run tools/real_cases.py with them.")


def compared(full: Model, half: Model, spacing_mm: float) -> Iterator[str]:
    """Sentence about the labels of a phantom that change when the weights are rounded to fp16."""
    study = as_study(generate(SEED, Settings.at_spacing(spacing_mm)))
    for subset in (ALL, Modality.FLAIR):
        one, other = (
            segment_study(study.restricted_to(subset), m, InferenceOptions(raw="no", uncertainty="none")).labels.voxels
            for m in (full, half)
        )
        changed, tumour = int((one != other).sum()), int(((one > 0) | (other > 0)).sum())
        share = f"{changed / tumour:.5%} of those that either calls tumour" if tumour else "neither calls any tumour"
        yield (
            f"Phantom {SEED} at {spacing_mm:g} mm from {subset.title}: {changed} of {one.size} voxels have another "
            f"label in fp16, {share}."
        )


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Log records of a run, the last of each step."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    records = {}
    for line in path.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short by a kill
        records[record["step"]] = record
    return [records[step] for step in sorted(records)]


def card(
    found: StoredModel,
    half: Model,
    megabytes: float,
    comparison: Sequence[str],
    journal: Sequence[Mapping[str, Any]],
    begun: Sequence[str],
    material: Sequence[str],
    evaluation: Evaluation | None,
    scored: str,
    entries: Sequence[LogEntry],
    earlier: Sequence[list[Cell]],
) -> str:
    """Text of MODEL_CARD.md."""
    place = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(place), undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    told, digest = half.expectations, trained_digest(found.provenance)
    ours = [entry for entry in entries if entry.weights == digest]
    return environment.get_template("model_card.md.j2").render(
        model=half,
        found=found,
        megabytes=megabytes,
        parameters=f"{sum(value.numel() for value in found.weights.values()) / 1e6:.2f} million",
        digest=half.provenance["sha256"][WEIGHTS],
        recipe_name=recipe_name(found),
        regions=[region.name for region in half.network.regions],
        cost=cost(journal, found),
        begun=begun,
        material=material,
        stream=found.recipe.data.stream,
        phantoms=phantoms_seen(found),
        patch=" x ".join(map(str, found.recipe.data.sampling.patch)),
        settings=list(stream_settings(found)),
        tables=[] if evaluation is None else list(phantom_tables(evaluation)),
        population=scored,
        expectations=told,
        calibration=markdown(calibration_table(told, half)) if told else "",
        real=markdown(real_table(ours)) if ours else "",
        means=markdown(means_table(ours)) if len({entry.case for entry in ours}) > 1 else "",
        entries=markdown(entries_table(entries, digest, earlier)) if entries else "",
        comparison=comparison,
        log=markdown(log_table(journal)) if journal else "Not given.",
    )


def with_patients(told: Expectations, entries: Sequence[LogEntry], digest: str) -> Expectations:
    """Expectations with the means over the labelled real cases: the last entry of each, of the weights `digest`.

    A case without a tumour does not count. Where a case lacks a region, its Dice does not count, but the error of the
    estimate does: of what was found there, nothing is right.
    """
    last = {(one.case, one.sequences, one.region): one for one in entries if one.weights == digest}
    cases = {case for (case, _, region), one in last.items() if region == Region.WT.name and one.reference_ml}
    subsets = {}
    for subset, regions in told.subsets.items():
        subsets[subset] = dict(regions)
        for region, expected in regions.items():
            seen = [last[key] for case in sorted(cases) if (key := (case, subset.key, region.name)) in last]
            dice = [one.dice for one in seen if one.reference_ml]
            errors = [abs(one.estimated_dice - one.dice) for one in seen if not math.isnan(one.estimated_dice)]
            if dice:
                error = mean(errors) if len(errors) >= ESTIMATES else math.nan
                known = OnPatients(dice=mean(dice), patients=len(dice), estimate_error=error)
                subsets[subset][region] = replace(expected, on_patients=known)
    patients = f"{len(cases)} labelled patients, results on whom guided choices" if cases else ""
    return replace(told, subsets=subsets, patients=patients)


def without_places(recipe: Recipe) -> Recipe:
    """The recipe with the names of the folders that it was trained from, but not where they lay."""
    stream = recipe.data.stream
    if stream is not None:
        names = {name: Path(place).name for name in FOLDERS if (place := getattr(stream, name))}
        recipe = replace(recipe, data=replace(recipe.data, stream=replace(stream, **names)))
    if recipe.init.weights:
        recipe = replace(recipe, init=replace(recipe.init, weights=Path(recipe.init.weights).name))
    return recipe


def refuse_unnamed_material(found: StoredModel, material: Sequence[str]) -> None:
    """Raise InputError unless each folder of label maps that the phantoms were made of has a text."""
    stream = found.recipe.data.stream
    folders = [place for name in FOLDERS if (place := getattr(stream, name))] if stream else []
    if len(folders) != len(material):
        raise InputError(
            f"The phantoms were made of {len(folders)} folders of label maps ({', '.join(folders) or 'none'}), and "
            f"--material was given {len(material)} times. Give source and licence of each folder."
        )


def begun_with(found: StoredModel, runs: Sequence[Path | str]) -> list[StoredModel]:
    """Models that the training began with, first to last; none before the model of the package.

    Raises: InputError if a run is missing, or is not what the next one began with.
    """
    init = found.provenance.get("init")
    if init is None:
        if runs:
            raise InputError(f"{found.path} began with no other model. Leave out --begun {runs[-1]}.")
        return []
    if not runs:
        raise InputError(f"{found.path} began with the model {init['weights'][:8]}. Name its run: --begun RUN.")
    before = stored_model(runs[-1])
    packaged = is_shipped(before)
    if before.provenance["sha256"][WEIGHTS] != init["weights"]:
        raise InputError(f"{runs[-1]} holds another model than {init['weights'][:8]}, which {found.path} began with.")
    if packaged and runs[:-1]:
        raise InputError(f"The card of {shipped.BOX} names what it began with. Leave out --begun {runs[0]}.")
    return [before] if packaged else [*begun_with(before, runs[:-1]), before]


def is_shipped(found: StoredModel) -> bool:
    """Return whether a model is the one of the package."""
    return found.path.resolve() == (shipped.WEIGHTS_FOLDER / shipped.BOX).resolve()


def in_words(before: StoredModel, run: Path | str) -> list[str]:
    """Sentence about an earlier training; for the model of the package after those of its card."""
    record, stream = before.provenance, before.recipe.data.stream
    seeds = f"{phantoms_seen(before)} phantoms from seed {stream.first_seed}; " if stream else ""
    rows = card_rows((before.path / CARD).read_text("utf-8")) if is_shipped(before) else []
    paid = next((text for name, text in rows if name == "cost"), None)
    return [
        *(text for name, text in rows if name == BEGUN),
        f"{recipe_name(before)}, commit {record.get('commit') or 'not recorded'}, weights "
        f"`{record['sha256'][WEIGHTS][:8]}`; {seeds}{paid or cost(metrics_of(Path(run)), before)}",
    ]


def card_rows(text: str) -> list[tuple[str, str]]:
    """Rows of the first table of a card: name and text."""
    return re.findall(r"^\| ([\w -]+) \| (.+) \|$", text.partition("\n## ")[0], re.MULTILINE)


def recipe_name(found: StoredModel) -> str:
    """Name of the nearest recipe, and the fields that differ."""
    own = dict(flat(methods.as_tree(without_places(found.recipe))))
    known = {
        f"{found.recipe.method}/{name}": dict(flat(methods.as_tree(recipe)))
        for name, recipe in methods.module(found.recipe.method).RECIPES.items()
    }
    changes = {
        name: {field: own.get(field) for field in own.keys() | tree.keys() if own.get(field) != tree.get(field)}
        for name, tree in known.items()
    }
    nearest = min(changes, key=lambda name: len(changes[name]))
    text = ", ".join(f"`{field}={value}`" for field, value in sorted(changes[nearest].items()))
    return f"`{nearest}`" + (f" with {text}" if text else "")


def flat(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of nested mappings by their dotted names."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from flat(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, tree


def cost(journal: Sequence[Mapping[str, Any]], found: StoredModel) -> str:
    """Hours of all steps, from the log."""
    if not journal:
        return "not recorded: no log was given"
    steps = [0, *(record["step"] for record in journal)]
    spans = (b - a for a, b in itertools.pairwise(steps))
    hours = sum(span * record["seconds_per_step"] for span, record in zip(spans, journal, strict=True)) / 3600
    device, threads = str(found.provenance.get("device") or "cpu"), int(found.provenance.get("threads", 1))
    where = f"{threads} threads of a CPU" if device == "cpu" else f"one {device} device"
    busy = f", at most {hours * threads:.2f} processor-hours" if device == "cpu" else ""
    return f"{steps[-1]} steps in {hours:.2f} hours on {where}, by the times of its log{busy}"


def phantoms_seen(found: StoredModel) -> int:
    """Number of phantoms that the steps so far have used."""
    stream = found.recipe.data.stream
    if stream is None:
        return 0
    samples = int(found.provenance.get("steps") or 0) * found.recipe.data.sampling.batch
    return math.ceil(samples / stream.crops)


def stream_settings(found: StoredModel) -> Iterator[tuple[str, str]]:
    """Settings of the training phantoms, by name."""
    stream = found.recipe.data.stream
    if stream is None:
        return
    for name, value in flat(stream.settings(found.recipe.data.preprocess.spacing_mm).record()):
        yield name, written_value(value)


def written_value(value: object) -> str:
    """A setting as text, a list as a tuple."""
    return str(tuple(value) if isinstance(value, list) else value)


def scored_phantoms(folder: Path | None, evaluation: Evaluation, models: Sequence[StoredModel]) -> str:
    """Sentence about the evaluated phantoms, from their record. `models` were trained one after the other; the last
    one was evaluated.

    Raises: InputError if the folder holds other studies than were scored, or one that was trained on.
    """
    scores, digest = evaluation.scores, str(evaluation.record["data"])[:DIGEST]
    said = f"{len(scores.studies)} studies, protocol {', '.join(evaluation.summary['protocol'])}, digest `{digest}`"
    if folder is None:
        return f"{said}. What they were drawn from was not given."
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    seeds = {entry["study"]: entry["seed"] for entry in manifest["studies"]}
    if not set(scores.studies) <= seeds.keys():
        raise InputError(
            f"{folder} does not hold the studies of {evaluation.folder}. Name the phantoms that it scored."
        )
    ours, trained = [seeds[study] for study in scores.studies], dict(stream_settings(models[-1]))
    for model in models:
        stream = model.recipe.data.stream
        if stream and any(0 <= seed - stream.first_seed < phantoms_seen(model) for seed in ours):
            raise InputError(
                f"{folder} holds seeds that the model was trained on. Make others: glimpseg phantom --seed."
            )
    drawn = {name: written_value(value) for name, value in flat(manifest["settings"])}
    other = [f"{name} {value}" for name, value in drawn.items() if value != trained.get(name)]
    return (
        f"Phantoms of `{manifest['generator']}`, seeds {min(ours)} to {max(ours)}, none of which it was trained on: "
        f"{said}. What they were drawn from differs from the training's in: {', '.join(other) or 'nothing'}."
    )


def phantom_tables(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Tables of Dice and HD95 of every subset, if computed: title, note, table."""
    for name in ("dice", "hd95"):
        if name in evaluation.scores.metrics:
            made = metric_table(evaluation, METRICS[name])
            hidden = [column for column, title in enumerate(made.columns) if title == POSTPROCESSED]
            yield made.title, made.note, markdown(made, hidden)


def calibration_table(told: Expectations, model: Model) -> Table:
    """Table of the calibration error before and after, by subset and region."""
    regions = model.network.regions
    rows = []
    for subset, found in told.subsets.items():
        cells = dots(subset.key)
        for region in regions:
            one = found.get(region)
            cells += [percent(one.ece_before), percent(one.ece_after)] if one else [MISSING, MISSING]
            cells.append(Cell(f"{one.temperature:.2f}{'*' if one.pooled else ''}") if one else MISSING)
        rows.append(cells)
    titles = [f"{region.name} {what}" for region in regions for what in ("before", "after", "temperature")]
    note = "*: the temperature of all subsets together, for want of cases."
    return Table("calibration", "Calibration", [*dot_titles(), *titles], rows, note=note)


def real_table(entries: Sequence[LogEntry]) -> Table:
    """Table of the last entry of every case and subset."""
    regions = list(dict.fromkeys(entry.region for entry in entries))
    rows: dict[tuple[str, str, str], dict[str, LogEntry]] = {}
    for entry in entries:
        rows.setdefault((entry.case, entry.truth, entry.sequences), {})[entry.region] = entry
    lines = []
    for (case, truth, sequences), found in rows.items():
        shown = [found.get(region) for region in regions]
        dice = [scored(entry) if entry else MISSING for entry in shown]
        far = [Cell(f"{entry.hd95_mm:.1f}") if entry and entry.reference_ml else MISSING for entry in shown]
        lines.append([Cell(case), Cell(truth), *dots(sequences), *dice, *far])
    titles = [*regions, *(f"HD95 {region}" for region in regions)]
    return Table("real", "Real cases", ["case", "reference by", *dot_titles(), *titles], lines)


def scored(entry: LogEntry) -> Cell:
    """Cell with the Dice, or with the predicted volume if the reference lacks the region."""
    return percent(entry.dice) if entry.reference_ml else Cell(f"none; {entry.predicted_ml:.1f} ml found")


def means_table(entries: Sequence[LogEntry]) -> Table:
    """Table of the mean Dice over the cases that have the region, for each subset."""
    regions = list(dict.fromkeys(entry.region for entry in entries))
    last = {(entry.case, entry.sequences, entry.region): entry for entry in entries if entry.reference_ml}
    rows = []
    for sequences in dict.fromkeys(entry.sequences for entry in entries):
        found = {r: [entry.dice for (_, s, one), entry in last.items() if s == sequences and one == r] for r in regions}
        cases = max(map(len, found.values()))
        rows.append([*dots(sequences), *(percent(mean(found[region])) for region in regions), Cell(str(cases), cases)])
    return Table("means", "Means", [*dot_titles(), *regions, "cases"], rows)


def earlier_runs(text: str) -> list[list[Cell]]:
    """Rows of the log of runs on real cases in an earlier card, none of them called `this model`."""
    log = text.partition("### Log of runs on real cases")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in log.splitlines() if line.startswith("| 2")]
    return [[*(Cell(text.strip()) for text in line[:-1]), Cell("")] for line in lines]


def entries_table(entries: Sequence[LogEntry], digest: str, earlier: Sequence[list[Cell]]) -> Table:
    """Table with one line for each day and candidate, after the earlier lines."""
    rows: dict[tuple[str, str, str], list[LogEntry]] = {}
    for entry in entries:
        rows.setdefault((entry.date, entry.candidate, entry.weights), []).append(entry)
    lines = []
    for (date, candidate, weights), seen in rows.items():
        cases = ", ".join(dict.fromkeys(entry.case for entry in seen))
        whole = [entry for entry in seen if len(parse(entry.sequences)) == max(len(parse(o.sequences)) for o in seen)]
        dice = ", ".join(
            f"{region} {100 * mean([one.dice for one in whole if one.region == region and one.reference_ml]):.1f}"
            for region in dict.fromkeys(entry.region for entry in seen)
        )
        this = "this model" if weights == digest else ""
        lines.append([Cell(date), Cell(candidate), Cell(f"`{weights[:8]}`"), Cell(cases), Cell(dice), Cell(this)])
    return Table(
        "entries",
        "Scores",
        ["date", "candidate", "weights", "cases", "mean Dice with most sequences", ""],
        [*earlier, *lines],
    )


def log_table(journal: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the loss at about twelve evenly spaced steps."""
    picked = [journal[n] for n in np.unique(np.linspace(0, len(journal) - 1, LOG_LINES).round().astype(int))]
    names = [name for name in picked[-1] if name == "loss" or name.startswith("loss/")]
    rows = [
        [
            Cell(str(record["step"])),
            *(Cell(f"{record[name]:.4f}") if name in record else MISSING for name in names),
            Cell(f"{record['seconds_per_step']:.2f}"),
        ]
        for record in picked
    ]
    return Table("log", "Log", ["step", *(name.removeprefix("loss/") for name in names), "s a step"], rows)


def markdown(made: Table, hidden: Sequence[int] = ()) -> str:
    """Markdown of a table; small numbers follow in brackets."""
    kept = [column for column in range(len(made.columns)) if column not in hidden]
    rows = [[written(row[column]) for column in kept] for row in made.lines]
    head = [made.columns[column] for column in kept]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([*lines, *(["", made.note] if made.note.startswith("*") else [])])


def written(cell: Cell) -> str:
    """Text of a cell."""
    return f"{cell.text} ({cell.small})" if cell.small else cell.text


def percent(value: float) -> Cell:
    """Cell with a share in percent; empty for NaN."""
    return MISSING if math.isnan(value) else Cell(f"{100 * value:.1f}", value)


def mean(values: Sequence[float]) -> float:
    """Mean of the values; NaN if there are none."""
    return float(np.mean(values)) if values else math.nan


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--run", type=Path, help="the run whose log tells the cost; default: MODEL")
    parser.add_argument("--begun", nargs="*", default=[], help="earlier runs, first to last, or box")
    parser.add_argument("--material", nargs="*", default=[], help="source and licence of the stream's label maps")
    parser.add_argument("--evaluation", type=Path, help="folder that `evaluate` wrote, of held-out phantoms")
    parser.add_argument("--phantoms", type=Path, help="the phantoms that were evaluated; phantoms.json describes them")
    parser.add_argument("--real", type=Path, help="log of real-case scores that tools/real_cases.py wrote")
    parser.add_argument("--target", type=Path, default=shipped.WEIGHTS_FOLDER / shipped.BOX)
    parser.add_argument("--spacing", type=float, default=1.0, help="mm, of the phantom that compares fp16 with fp32")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
