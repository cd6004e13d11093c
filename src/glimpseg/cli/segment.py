"""Verb `segment`.

Heavy modules are imported inside the verb, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glimpseg.cli.app import app, log
from glimpseg.cli.options import (
    TREE,
    Backend,
    Choice,
    Device,
    Layout,
    ModelFolder,
    Output,
    Overwrite,
    Resume,
    changes_of,
    takes_options,
)
from glimpseg.errors import InputError, UsageError
from glimpseg.model.shipped import BOX
from glimpseg.segmentation.options import InferenceOptions, OutputOptions

if TYPE_CHECKING:
    from glimpseg.batch.progress import Outcome
    from glimpseg.segmentation.result import Segmentation

_PLACE = "NIfTI file, or folder or archive of one DICOM series."


@app.command()
@takes_options
def segment(
    *,
    output: Output,
    model: ModelFolder = BOX,
    t1: Annotated[Path | None, typer.Option("--t1", "--t1n", "--t1w", help=f"T1 without contrast: {_PLACE}")] = None,
    t1c: Annotated[Path | None, typer.Option("--t1c", "--t1ce", "--t1gd", help="T1 with contrast.")] = None,
    t2: Annotated[Path | None, typer.Option("--t2", "--t2w", help="T2.")] = None,
    flair: Annotated[Path | None, typer.Option("--flair", "--fla", "--t2f", help="FLAIR.")] = None,
    source: Annotated[
        Path | None, typer.Option("-i", "--input", help=f"In place of images, a tree of studies: {TREE}")
    ] = None,
    series: Annotated[
        Path | None, typer.Option(help="In place of single images: a series.json that `identify` wrote.")
    ] = None,
    layout: Layout = "auto",
    brain_mask: Annotated[Path | None, typer.Option(help="Brain mask, if the background is not constant.")] = None,
    inference: InferenceOptions,
    outputs: OutputOptions,
    shard: Annotated[
        str, typer.Option("--shard", "--part", help="Shard of a tree, for job arrays: 0/4 is the first of four.")
    ] = "0/1",
    resume: Resume = False,
    change: Choice = None,
    device: Device = "auto",
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Segment one study from the sequences it has, or a tree of studies.

    Leave out sequences that do not exist. In a tree, each study gets a folder of its own. A study that fails does not
    stop the others; it is listed in failures.json.
    """
    from glimpseg.data.notices import StudyNotices
    from glimpseg.modality import Modality
    from glimpseg.runtime.atomic import refuse_if_used
    from glimpseg.segmentation import predict
    from glimpseg.segmentation.inputs import (
        input_from_images,
        input_from_series,
        noticed,
        series_named_in,
        with_brain_mask,
    )
    from glimpseg.segmentation.passes import segment_prepared
    from glimpseg.segmentation.preparation import prepare_input, warn_of_output
    from glimpseg.segmentation.result import RECORD

    named = {Modality.T1: t1, Modality.T1C: t1c, Modality.T2: t2, Modality.FLAIR: flair}
    images = {modality: image for modality, image in named.items() if image is not None}
    _refuse_ambiguous(images=bool(images), source=source, series=series)
    if source is not None:
        if brain_mask is not None:
            raise UsageError(
                "--brain-mask is of one study, and -i may hold many. Name the study's images, or --series."
            )
        from glimpseg.batch.job import BatchOptions
        from glimpseg.batch.progress import FAILURES, Shard
        from glimpseg.batch.tree import segment_tree
        from glimpseg.segmentation.inputs import tree_contents

        loaded, share = predict.load(model, device, changes_of(change), backend), Shard.parse(shard)
        outcome = segment_tree(
            tree_contents(source, layout, named=not outputs.deidentify),
            loaded,
            output,
            BatchOptions(inference=inference, outputs=outputs),
            shard=share,
            resume=resume,
            overwrite=overwrite,
        )
        conclude(output, outcome, share.file(FAILURES))
        return
    refuse_if_used(output, overwrite=overwrite, mark=RECORD)
    loaded = predict.load(model, device, changes_of(change), backend)
    notices = StudyNotices(where=f"{RECORD} has all of them")
    with notices.telling():
        if series is None:
            study_input = noticed(lambda: input_from_images(images, brain_mask), notices)
        else:
            named_input = noticed(lambda: input_from_series("study", series_named_in(series)), notices)
            study_input = with_brain_mask(named_input, brain_mask)
        prepared = prepare_input(study_input, loaded, inference)
        warn_of_output(prepared, outputs.types)
        notices.tell()
        found = segment_prepared(prepared, loaded, inference)
        _write(found, output, outputs, overwrite=overwrite)


def conclude(output: Path, outcome: Outcome, failures: str) -> None:
    """Print the output folder of a tree.

    Args:
        output: Output folder of the batch.
        outcome: Studies by how they ended.
        failures: Name of the file that says why studies failed, for the message.

    Raises: InputError if studies failed.
    """
    typer.echo(output)
    if outcome.failed:
        there, failed = len(outcome.done) + len(outcome.kept), len(outcome.failed)
        raise InputError(
            f"{there} of {there + failed} studies are there; {failed} could not be segmented, and {output / failures} "
            "says why. Repair the input and run again with --resume."
        )


def _refuse_ambiguous(*, images: bool, source: Path | None, series: Path | None) -> None:
    given = [name for name, there in (("images", images), ("-i", source), ("--series", series)) if there]
    if len(given) > 1:
        raise UsageError(f"What is to be segmented was given as {' and as '.join(given)}. Give one of them.")
    if not given:
        raise InputError("No MRI sequence was given. Give one of --t1, --t1c, --t2, --flair, or -i, or --series.")


def _write(found: Segmentation, output: Path, outputs: OutputOptions, *, overwrite: bool) -> None:
    """Write the folder of one study, log its summary, and print the path of the label map."""
    from glimpseg.data.dicom.pseudonyms import Pseudonyms
    from glimpseg.segmentation.result import volumes_in_words

    pseudonyms = Pseudonyms() if outputs.deidentify else None
    found.save(output, labels=outputs.labels, types=outputs.types, pseudonyms=pseudonyms, overwrite=overwrite)
    volumes = volumes_in_words(found.volumes_ml)
    log.info("Used %s%s. %s.", found.used.title, f", without {found.absent.title}" if found.absent else "", volumes)
    for sentence in found.trust:
        log.info("%s", sentence)
    typer.echo(output / "seg.nii.gz")
