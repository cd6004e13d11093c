"""Verbs that measure a model: `evaluate`, `calibrate`, `compare`, `report`.

Heavy modules are imported inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glimpseg.cli.app import app, log
from glimpseg.cli.options import (
    Backend,
    Choice,
    Device,
    Labels,
    ModelArgument,
    Output,
    Overwrite,
    Resume,
    Split,
    changes_of,
)
from glimpseg.errors import InputError, UsageError


@app.command()
def evaluate(
    model: ModelArgument,
    data: Annotated[Path, typer.Option(help="Folder of studies with references.")],
    output: Output,
    protocol: Annotated[
        str, typer.Option(help="clinical, or rfnet for comparison with published tables only.")
    ] = "clinical",
    subsets: Annotated[str, typer.Option(help="all, or subsets separated by commas: t1c,t1c+flair.")] = "all",
    metrics: Annotated[
        str,
        typer.Option(
            help="all, or some, separated by commas: dice,hd95,hd95_pooled,surface_dice_1mm,lesion_dice,ece ..."
        ),
    ] = "all",
    split: Split = None,
    change: Choice = None,
    resume: Resume = False,
    labels: Labels = None,
    device: Device = "auto",
    backend: Backend = "torch",
    overwrite: Overwrite = False,
) -> None:
    """Score a model on every subset of sequences; write scores, a summary and a report."""
    from glimpseg import report
    from glimpseg.data.layouts import find_studies
    from glimpseg.data.notices import TABLE, StudyNotices
    from glimpseg.data.splits import select_studies
    from glimpseg.evaluation import evaluate as evaluation
    from glimpseg.evaluation.options import EvaluationOptions
    from glimpseg.evaluation.protocol import protocol_named
    from glimpseg.modality import SUBSETS, parse
    from glimpseg.results.scores import metrics_named
    from glimpseg.segmentation import predict

    protocol_named(protocol)
    wanted = metrics_named(metrics)
    if not subsets.strip():
        raise UsageError("--subsets names none. Name subsets separated by commas, or all.")
    shown = SUBSETS if subsets == "all" else tuple(parse(word) for word in subsets.split(","))
    found = StudyNotices(where=f"{TABLE} has all of them")
    with found.telling():
        studies = find_studies(data, labels=labels)
        if split is not None:
            studies = select_studies(studies, split)
    done = evaluation.evaluate(
        predict.load(model, device, changes_of(change), backend),
        studies,
        output,
        EvaluationOptions(protocol=protocol, subsets=shown, metrics=wanted, split=split, found=found),
        resume=resume,
        overwrite=overwrite,
    )
    log.info("%s", report.text_table(done))
    typer.echo(report.write_html(output))
    failed = done.record["failed"]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(done.record['studies'])} studies could not be scored; the others are in {output}. "
            "Repair them and run again with --resume.\n"
            + "\n".join(f"{study}: {message}" for study, message in failed.items())
        )


@app.command()
def calibrate(
    model: ModelArgument,
    data: Annotated[Path, typer.Option(help="Folder of studies with references, none of which it was trained on.")],
    output: Output,
    population: Annotated[
        str,
        typer.Option(help='Description of the studies, shown to users of the model: "glioma, 1.5 T, our hospital".'),
    ] = "the studies it was calibrated on",
    split: Split = None,
    change: Choice = None,
    labels: Labels = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Measure the expected performance of a model, and calibrate it. Write a copy that reports it for each result."""
    from glimpseg.data.layouts import find_studies
    from glimpseg.data.notices import TABLE, StudyNotices
    from glimpseg.data.splits import select_studies
    from glimpseg.evaluation import calibrate as calibration
    from glimpseg.segmentation import predict

    found = StudyNotices(where=f"{TABLE} has all of them")
    with found.telling():
        studies = find_studies(data, labels=labels)
        if split is not None:
            studies = select_studies(studies, split)
    loaded = predict.load(model, device, changes_of(change))
    expectations = calibration.calibrate(
        loaded, studies, output, population=population, overwrite=overwrite, found=found
    )
    for subset in expectations.subsets:
        for sentence in expectations.sentences(subset):
            log.info("%s", sentence)
    typer.echo(output)


@app.command()
def compare(
    evaluations: Annotated[
        list[Path], typer.Argument(help="Folders that `evaluate` wrote; the others are compared with the first.")
    ],
    output: Output,
    metrics: Annotated[str, typer.Option(help="all, or some, as in `evaluate`.")] = "dice,hd95",
    published: Annotated[
        str | None,
        typer.Option(
            help="Published tables to show beside: BraTS2018, BraTS2020, BraTS2024, FeTS2024. "
            "Default: by the list of studies."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare evaluations case by case: paired tests, effect sizes, wins and losses; with published tables."""
    from glimpseg.evaluation import compare as comparison
    from glimpseg.report import comparison_text, write_html
    from glimpseg.results.folder import COMPARISON
    from glimpseg.results.scores import metrics_named
    from glimpseg.runtime.atomic import atomic_folder

    with atomic_folder(output, overwrite=overwrite, mark=COMPARISON) as place:  # with its report, or not at all
        done = comparison.compare(evaluations, place, metrics=metrics_named(metrics), published=published)
        page = write_html(place)
    log.info("%s", comparison_text(done))
    typer.echo(output / page.name)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `evaluate` or `compare` wrote.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="HTML file. Default: in that folder.")] = None,
) -> None:
    """Write the HTML report of an evaluation or comparison again."""
    from glimpseg.report import write_html

    typer.echo(write_html(folder, output))
