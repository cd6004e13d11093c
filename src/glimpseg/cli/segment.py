"""The verb `segment`.

Heavy modules are imported inside the verb, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from glimpseg.cli.app import app, log
from glimpseg.cli.options import Backend, Choice, Device, Layout, ModelFolder, Output, Overwrite, changes_of
from glimpseg.errors import InputError, UsageError
from glimpseg.model.shipped import BOX

if TYPE_CHECKING:
    from glimpseg.batch.job import Wanted
    from glimpseg.batch.progress import Outcome
    from glimpseg.model.loading import Model
    from glimpseg.segmentation.inputs import Visit
    from glimpseg.segmentation.predict import Raw
    from glimpseg.segmentation.uncertainty import Level

_PLACE = "NIfTI file, or folder or archive of one DICOM series."


@app.command()
def segment(
    output: Output,
    model: ModelFolder = BOX,
    t1: Annotated[Path | None, typer.Option("--t1", "--t1n", "--t1w", help=f"T1 without contrast: {_PLACE}")] = None,
    t1c: Annotated[Path | None, typer.Option("--t1c", "--t1ce", "--t1gd", help="T1 with contrast.")] = None,
    t2: Annotated[Path | None, typer.Option("--t2", "--t2w", help="T2.")] = None,
    flair: Annotated[Path | None, typer.Option("--flair", "--fla", "--t2f", help="FLAIR.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "-i", "--input", help="In place of images: a tree of studies in any layout, DICOM, an archive, a manifest."
        ),
    ] = None,
    series: Annotated[
        Path | None, typer.Option(help="In place of single images: a series.json that `identify` wrote.")
    ] = None,
    layout: Layout = "auto",
    brain_mask: Annotated[Path | None, typer.Option(help="Brain mask, if the background is not constant.")] = None,
    raw: Annotated[
        str,
        typer.Option(
            help="auto: register and skull-strip what needs it, if the extras are installed; "
            "no: images are registered and stripped."
        ),
    ] = "auto",
    grid: Annotated[
        str | None, typer.Option(help="The sequence on whose grid the result lies. Default: T1c, T1, FLAIR, T2.")
    ] = None,
    output_type: Annotated[
        str, typer.Option(help="nifti,dicom-seg,dicom-labelmap,dicom-sr; of a tree bids, too.")
    ] = "nifti",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write each region's probabilities.")] = False,
    uncertainty: Annotated[
        str,
        typer.Option(
            help="How sure the result is. quick: one pass more, of the mirrored images; full: up to eleven more; none. "
            "Labels are the same."
        ),
    ] = "quick",
    labels: Annotated[str, typer.Option(help="Label numbers to write: brats2021, brats2023, brats2024.")] = "brats2024",
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Results name no patient and no folder of the input.")
    ] = False,
    part: Annotated[str, typer.Option(help="Of a tree, for job arrays: 0/4 is the first of four parts.")] = "0/1",
    go_on: Annotated[bool, typer.Option("--continue", help="Of a tree: go on where an earlier run stopped.")] = False,
    change: Choice = None,
    device: Device = "auto",
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Segment one study from the sequences it has, or a tree of studies; order never matters.

    Leave out what does not exist. Of a tree each study gets a folder; those that cannot be used stop no other and are
    listed in failures.json.
    """
    from glimpseg.modality import Modality
    from glimpseg.runtime.atomic import refuse_if_used
    from glimpseg.segmentation import predict
    from glimpseg.segmentation.inputs import named_images, series_named_in, visit_of, with_brain
    from glimpseg.segmentation.result import RECORD

    named = {Modality.T1: t1, Modality.T1C: t1c, Modality.T2: t2, Modality.FLAIR: flair}
    images = {modality: image for modality, image in named.items() if image is not None}
    _refuse_ambiguous(bool(images), source, series)
    wanted = wanted_of(labels, output_type, grid, probabilities, deidentify, raw, uncertainty)
    if source is not None:
        if brain_mask is not None:
            raise UsageError(
                "--brain-mask is of one study, and -i may hold many. Name the study's images, or --series."
            )
        loaded = predict.load(model, device, changes_of(change), backend)
        _tree(source, layout, loaded, output, wanted, part, go_on, overwrite)
        return
    refuse_if_used(output, overwrite=overwrite, mark=RECORD)
    loaded = predict.load(model, device, changes_of(change), backend)
    visit = (
        named_images(images, brain_mask)
        if series is None
        else with_brain(visit_of("study", series_named_in(series)), brain_mask)
    )
    _one(visit, loaded, output, wanted, overwrite)


def wanted_of(
    labels: str, output_type: str, grid: str | None, probabilities: bool, deidentify: bool, raw: str, uncertainty: str
) -> Wanted:
    """What the options say of each study. Raises: UsageError for a word that is none of theirs."""
    from glimpseg.batch.job import Wanted
    from glimpseg.modality import parse

    return Wanted(
        labels=labels,
        types=tuple(word.strip() for word in output_type.split(",")),
        grid=None if grid is None else parse(grid),
        probabilities=probabilities,
        deidentify=deidentify,
        raw=_raw(raw),
        uncertainty=_level(uncertainty),
    )


def _raw(word: str) -> Raw:
    from glimpseg.segmentation.predict import Raw

    if word not in get_args(Raw):
        raise UsageError(f"--raw is {' or '.join(get_args(Raw))}, not '{word}'.")
    return cast("Raw", word)


def _level(word: str) -> Level:
    from glimpseg.segmentation.predict import refuse_unknown_level

    refuse_unknown_level(word)
    return cast("Level", word)


def _refuse_ambiguous(images: bool, source: Path | None, series: Path | None) -> None:
    given = [name for name, there in (("images", images), ("-i", source), ("--series", series)) if there]
    if len(given) > 1:
        raise UsageError(f"What is to be segmented was given as {' and as '.join(given)}. Give one of them.")
    if not given:
        raise InputError("No MRI sequence was given. Give one of --t1, --t1c, --t2, --flair, or -i, or --series.")


def _tree(
    source: Path, layout: str, model: Model, output: Path, wanted: Wanted, part: str, go_on: bool, overwrite: bool
) -> None:
    from glimpseg.batch.progress import FAILURES, Part
    from glimpseg.batch.tree import segment_tree
    from glimpseg.segmentation.inputs import items

    share = Part.parse(part)
    outcome = segment_tree(items(source, layout), model, output, wanted, part=share, go_on=go_on, overwrite=overwrite)
    conclude(output, outcome, share.file(FAILURES))


def conclude(output: Path, outcome: Outcome, failures: str) -> None:
    """Names the folder of a tree. Raises: InputError where studies failed, which stand in the file `failures`."""
    typer.echo(output)
    if outcome.failed:
        raise InputError(
            f"{len(outcome.failed)} studies could not be segmented; {output / failures} says why. "
            f"The {len(outcome.done) + len(outcome.kept)} others are there. Repair them and run again with --continue."
        )


def _one(visit: Visit, model: Model, output: Path, wanted: Wanted, overwrite: bool) -> None:
    from glimpseg.data.dicom.pseudonyms import Pseudonyms
    from glimpseg.segmentation.predict import read, segment_read
    from glimpseg.segmentation.result import volumes_in_words

    done = read(visit, model, wanted.grid, wanted.raw)
    found = segment_read(done, model, probabilities=wanted.probabilities, uncertainty=wanted.uncertainty)
    pseudonyms = Pseudonyms() if wanted.deidentify else None
    found.save(output, labels=wanted.labels, types=wanted.types, pseudonyms=pseudonyms, overwrite=overwrite)
    volumes = volumes_in_words(found.volumes_ml)
    log.info("Used %s%s. %s.", found.used.title, f", without {found.absent.title}" if found.absent else "", volumes)
    for sentence in found.trust:
        log.info("%s", sentence)
    typer.echo(output / "seg.nii.gz")
