"""Verb `export`.

Heavy modules are imported inside the verb, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glimpseg.cli.app import app, log
from glimpseg.cli.options import Choice, ModelArgument, changes_of


@app.command()
def export(
    model: ModelArgument,
    to: Annotated[str, typer.Option(help="onnx, openvino (a folder), or pt2 (torch.export).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write; for openvino a folder.")],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Run the written network, and keep it only if its labels agree with torch's."),
    ] = False,
    change: Choice = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a model's network for other programs, with its preparation and decision rule in the file's metadata."""
    from glimpseg.model import export as exporting
    from glimpseg.model.loading import load_model

    loaded = load_model(model, "cpu", changes_of(change))
    found = exporting.export(loaded, output, to, verify=verify, overwrite=overwrite)
    if found is not None:
        log.info(
            "Compared with torch, probabilities differ by at most %.1e, and %.1e of the labels differ.",
            found.largest,
            found.changed,
        )
    typer.echo(output)
