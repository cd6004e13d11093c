"""The verbs that make or read studies: `phantom`, `prepare`.

Heavy modules are imported inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glimpseg.cli.app import app, log
from glimpseg.cli.options import Backbone, Change, Device, Labels, Output, Overwrite, Split, changes_of
from glimpseg.errors import UsageError


@app.command()
def phantom(
    output: Output,
    count: Annotated[int, typer.Option(min=1, help="How many studies.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first; the others follow.")] = 0,
    spacing: Annotated[float, typer.Option(help="Voxel side in mm; the field of view stays 240x240x155 mm.")] = 1.0,
    layout: Annotated[str, typer.Option(help="brats2020, brats2023 or brats2024.")] = "brats2023",
    post_operative: Annotated[
        float | None, typer.Option(help="Share after surgery. Default: 0, for brats2024 0.7.")
    ] = None,
    incomplete: Annotated[float, typer.Option(help="Share of studies that lack one to three sequences.")] = 0.0,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Make digital phantoms: four sequences and labels, in a BraTS layout."""
    from glimpseg.data import phantom as generator
    from glimpseg.data.phantom_archive import write_phantoms
    from glimpseg.predict import resolved_device

    share = post_operative if post_operative is not None else 0.7 if layout == "brats2024" else 0.0
    try:
        settings = generator.Settings.at_spacing(spacing, post_operative=share)
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
    data: Annotated[Path, typer.Argument(help="Folder of studies in a BraTS layout.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Cache folder; what it holds already is kept.")],
    recipe: Annotated[str, typer.Option(help="Recipe whose preprocessing is wanted.")] = "unet/brats",
    prior: Annotated[
        str | None, typer.Option(help="none, sam or synthetic, in place of the recipe's (see docs/priors.md).")
    ] = None,
    backbone: Backbone = None,
    change: Change = None,
    labels: Labels = None,
    split: Split = None,
    device: Device = "auto",
) -> None:
    """Read, check, crop and normalise every study once, and make its prior, ahead of training."""
    from glimpseg import archive, methods
    from glimpseg.data.layouts import find_studies
    from glimpseg.data.splits import chosen
    from glimpseg.modality import SUBSETS
    from glimpseg.predict import resolved_device

    changes = changes_of(change) | ({"data.prior.kind": prior} if prior else {})
    wanted = methods.find_recipe(recipe, changes, backbone)
    studies = find_studies(data, labels=labels, references="optional" if wanted.backbone is None else "ignored")
    studies = chosen(studies, split) if split else studies
    paths, priors = archive.prepare(studies, wanted, output, device=resolved_device(device), split=split)
    for subset in SUBSETS:
        count = sum(study.available == subset for study in studies)
        if count:
            log.info("%5d  %s", count, subset.title)
    convention = next((study.convention.name for study in studies if study.convention), "no references")
    log.info("%5d  in all; labels: %s", len(paths), convention)
    if priors:
        log.info("%5d  priors: %s", len(priors), wanted.data.prior.kind)
    typer.echo(output)
