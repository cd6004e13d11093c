"""Verbs that make or read studies: `phantom`, `prepare`, `identify`, `convert`.

Heavy modules are imported inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from glimpseg.cli.app import app, log
from glimpseg.cli.options import Backbone, Change, Device, Labels, Layout, Output, Overwrite, Split, changes_of
from glimpseg.errors import UsageError


@app.command()
def phantom(
    output: Output,
    count: Annotated[int, typer.Option(min=1, help="Number of studies.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first study; the others have the next seeds.")] = 0,
    spacing: Annotated[float, typer.Option(help="Voxel side in mm; the field of view stays 240x240x155 mm.")] = 1.0,
    layout: Annotated[str, typer.Option(help="brats2020, brats2023 or brats2024.")] = "brats2023",
    post_operative: Annotated[
        float | None, typer.Option(help="Share of studies after surgery. Default: 0, for brats2024 0.7.")
    ] = None,
    healthy: Annotated[float, typer.Option(help="Share of studies without a tumour.")] = 0.0,
    population: Annotated[
        str,
        typer.Option(
            help="phantom-1: standard; wide (the shipped model is trained on it); shifted (outside of wide). "
            "phantom-2: patients; beyond (held out)."
        ),
    ] = "standard",
    anatomies: Annotated[
        Path | None,
        typer.Option(help="Folder of label maps of whole heads (FreeSurfer's numbers), for phantom-2."),
    ] = None,
    shapes: Annotated[
        Path | None, typer.Option(help="Folder of label maps of tumours (BraTS's numbers), for phantom-2.")
    ] = None,
    incomplete: Annotated[float, typer.Option(help="Share of studies that lack one to three sequences.")] = 0.0,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Make digital phantoms: four sequences and labels, in a BraTS layout."""
    from glimpseg import phantom as generator
    from glimpseg.phantom.dataset import write_phantoms
    from glimpseg.runtime.device import resolved_device

    share = post_operative if post_operative is not None else 0.7 if layout == "brats2024" else 0.0
    if population not in generator.POPULATIONS:
        raise UsageError(f"--population is {', '.join(generator.POPULATIONS)}, not '{population}'.")
    folders = {name: str(folder) for name, folder in (("anatomies", anatomies), ("shapes", shapes)) if folder}
    try:
        settings = generator.Settings.at_spacing(
            spacing, post_operative=share, healthy=healthy, **folders, **generator.POPULATIONS[population]
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    seeds = range(seed, seed + count)
    places = write_phantoms(
        output, seeds, settings, layout, incomplete=incomplete, device=resolved_device(device), overwrite=overwrite
    )
    for place in places:
        typer.echo(place)


@app.command()
def prepare(
    data: Annotated[Path, typer.Argument(help="Folder of studies, or a manifest.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Cache folder. Studies that it holds already are kept.")
    ],
    recipe: Annotated[str, typer.Option(help="Recipe whose preprocessing is used.")] = "unet/brats",
    prior: Annotated[
        str | None,
        typer.Option(help="Prior maps in place of the recipe's: none, sam or synthetic (see docs/priors.md)."),
    ] = None,
    backbone: Backbone = None,
    change: Change = None,
    layout: Layout = "auto",
    labels: Labels = None,
    split: Split = None,
    device: Device = "auto",
) -> None:
    """Report what a folder holds, then check, crop and normalise every study for training, and make its prior map."""
    from glimpseg import methods
    from glimpseg.data.layouts import find_studies, survey
    from glimpseg.data.notices import TABLE, StudyNotices
    from glimpseg.data.splits import select_studies
    from glimpseg.runtime.device import resolved_device
    from glimpseg.training import dataset

    changes = changes_of(change) | ({"data.prior.kind": prior} if prior else {})
    wanted = methods.find_recipe(recipe, changes, backbone)
    told = StudyNotices(where=f"{TABLE} has all of them")
    with told.telling():
        found = survey(data, layout, labels)
        log.info("%s", found.text())
        for kind, text in found.notices.rows():
            told.add_known(kind, text)
        if wanted.backbone is None and found.studies and not found.problems:
            studies = list(found.studies)
        else:
            references: Literal["optional", "ignored"] = "optional" if wanted.backbone is None else "ignored"
            studies = find_studies(data, layout=layout, labels=labels, references=references)
        studies = select_studies(studies, split) if split else studies
    paths, priors = dataset.prepare(studies, wanted, output, device=resolved_device(device), split=split, found=told)
    log.info("%5d  prepared", len(paths))
    if priors:
        log.info("%5d  priors: %s", len(priors), wanted.data.prior.kind)
    typer.echo(output)


@app.command()
def identify(
    place: Annotated[Path, typer.Argument(help="Folder or archive of one study: DICOM, or NIfTI files.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write series.json there. It can be edited and given to `segment`."),
    ] = None,
    words: Annotated[
        Path | None, typer.Option(help="YAML file of your own words for sequences (see docs/identify.md).")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Key of one study, if the folder holds several.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report which series is T1, T1c, T2 and FLAIR, and why."""
    from glimpseg.data.identify import identify as identified
    from glimpseg.data.notices import StudyNotices
    from glimpseg.data.unpack import unpacked

    told = StudyNotices(where=f"{output.name} has all of them" if output else "-o FILE writes all of them")
    with ExitStack() as stack:
        with told.telling():
            folder = stack.enter_context(unpacked(place))
            found = replace(identified(folder, words=words, study=study), notices=told)
        typer.echo(found.to_json() if as_json else found.text())
        if output is None:
            return
        if not place.is_dir():
            raise UsageError(f"{place.name} is an archive, and a series.json names files in a folder. Unpack it first.")
        found.write(output)
    log.info("%s can be edited and given to `glimpseg segment --series`.", output)


@app.command()
def convert(
    data: Annotated[Path, typer.Argument(help="Folder of studies, or a manifest.")],
    output: Output,
    to: Annotated[str, typer.Option(help="Layout to write: brats2021, brats2023, nnunet, bids.")],
    layout: Layout = "auto",
    labels: Labels = None,
) -> None:
    """Write studies in another layout. Voxels and affines do not change."""
    from glimpseg.data.layouts import find_studies, write_studies
    from glimpseg.data.notices import StudyNotices

    with StudyNotices(where="`glimpseg prepare` lists them").telling():
        studies = find_studies(data, layout=layout, labels=labels)
    typer.echo(write_studies(output, studies, to))
