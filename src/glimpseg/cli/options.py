"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glimpseg.errors import UsageError

Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to make. It must not hold files yet.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if glimpseg made it.")]
Change = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field: --set optim.steps=1000. Repeat at will.")
]
Choice = Annotated[
    list[str] | None,
    typer.Option("--set", help="Choose what the model's method leaves open: --set config.branch=1 (smml)."),
]
Split = Annotated[
    str | None, typer.Option(help="Only the studies of a published list: brats2020/test (see docs/evaluation.md).")
]
Layout = Annotated[str, typer.Option(help="How the studies are laid out (see docs/data.md). Default: found out.")]
MODEL = "Model or run folder that `train` wrote; box is the model that comes with glimpseg, ./box a folder."
ModelFolder = Annotated[str, typer.Option("-m", "--model", help=MODEL)]
ModelArgument = Annotated[str, typer.Argument(help=MODEL)]
Cache = Annotated[Path | None, typer.Option(help="Folder of prepared studies. Default: in the run.")]
Backbone = Annotated[
    str | None, typer.Option(help="For pretraining: the network of this recipe, unet/brats, rfnet/brats2020 ...")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads that cut crops.")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard, too.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        "--engine",
        help="What computes the network: torch, openvino, onnx, or auto, of what is installed (docs/backends.md).",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(help="What label numbers mean: brats2015, brats2021, brats2023, brats2024. Default: found out."),
]


def changes_of(texts: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """Fields and their new values, of an option. Raises: UsageError for a text without `=`."""
    import yaml

    changes: dict[str, Any] = {}
    for text in texts or []:
        path, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{option} takes field=value, not '{text}'.")
        changes[path] = yaml.safe_load(value)
    return changes
