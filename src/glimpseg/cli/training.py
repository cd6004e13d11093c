"""Verbs `train` and `pretrain`.

Heavy modules are imported inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from glimpseg.cli.app import app, log
from glimpseg.cli.options import (
    Backbone,
    Cache,
    Change,
    Device,
    Labels,
    Resume,
    Split,
    Tensorboard,
    Threads,
    changes_of,
)
from glimpseg.errors import UsageError


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="method/recipe (see `glimpseg methods`) or a YAML file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Run folder.")],
    data: Annotated[Path | None, typer.Option(help="Folder of studies. Default: the recipe's phantom stream.")] = None,
    change: Change = None,
    resume: Resume = False,
    labels: Labels = None,
    split: Split = None,
    cache: Cache = None,
    init: Annotated[
        Path | None, typer.Option(help="Initialise with the weights of a pretraining, or of another model.")
    ] = None,
    transfer: Annotated[
        str | None,
        typer.Option(
            "--transfer",
            "--part",
            help="Weights that are taken from --init: encoder (default), encoder+decoder, or whole (all weights).",
        ),
    ] = None,
    labelled: Annotated[
        float | None, typer.Option(help="Train on this share of the studies, chosen by the recipe's seed.")
    ] = None,
    threads: Threads = 1,
    tensorboard: Tensorboard = False,
    device: Device = "auto",
) -> None:
    """Train a method. Under `torchrun` the same command trains on every rank."""
    from glimpseg import methods
    from glimpseg.runtime.device import resolved_device
    from glimpseg.training import loop
    from glimpseg.training.options import TrainOptions

    if transfer is not None and init is None:
        raise UsageError("--transfer says which weights are taken from --init: name a model with --init, too.")
    flags = {"init.weights": init and str(init), "init.transfer": transfer, "data.labelled": labelled}
    changes = changes_of(change) | {path: value for path, value in flags.items() if value is not None}
    wanted = methods.find_recipe(recipe, changes)
    if wanted.backbone is not None:
        raise UsageError(f"{recipe} is pretraining: run `glimpseg pretrain`, then `glimpseg train ... --init`.")
    options = TrainOptions(
        data=data,
        labels=labels,
        split=split,
        cache=cache,
        resume=resume,
        device=resolved_device(device),
        threads=threads,
        tensorboard=tensorboard,
        quiet=log.level > logging.INFO,
    )
    typer.echo(loop.train(wanted, output, options))


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="method/recipe: voxmmsd/brats2023, or a YAML file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Run folder.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of studies, with or without labels, complete or not. Default: phantoms."),
    ] = None,
    backbone: Backbone = None,
    change: Change = None,
    resume: Resume = False,
    split: Split = None,
    cache: Cache = None,
    threads: Threads = 1,
    tensorboard: Tensorboard = False,
    device: Device = "auto",
) -> None:
    """Pretrain a network without labels; `train --init` starts from its weights."""
    from glimpseg import methods
    from glimpseg.runtime.device import resolved_device
    from glimpseg.training import loop
    from glimpseg.training.options import TrainOptions

    wanted = methods.find_recipe(recipe, changes_of(change), backbone)
    if wanted.backbone is None:
        raise UsageError(f"{recipe} is no pretraining: run `glimpseg train`.")
    options = TrainOptions(
        data=data,
        split=split,
        cache=cache,
        resume=resume,
        device=resolved_device(device),
        threads=threads,
        tensorboard=tensorboard,
        quiet=log.level > logging.INFO,
    )
    typer.echo(loop.train(wanted, output, options))
