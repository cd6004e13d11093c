"""The verbs about glimpseg itself: `methods`, `models`, `doctor`, `demo`, `demo-train`.

Heavy modules are imported inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from glimpseg.cli.app import app, log
from glimpseg.cli.options import ModelFolder, Output, Overwrite
from glimpseg.errors import UsageError
from glimpseg.shipped import BOX, WEIGHTS_FOLDER
from glimpseg.version import __version__

models = typer.Typer(help="Models on disk: import weights of others.", no_args_is_help=True)
app.add_typer(models, name="models")


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List the methods and their recipes."""
    from glimpseg import methods as known

    found = {name: dict(zip(("summary", "recipes"), known.summary(name), strict=True)) for name in known.names()}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for name, entry in found.items():
        typer.echo(f"{name:10} {entry['summary']}\n{'':10} recipes: {', '.join(entry['recipes'])}")


@models.command("import")
def import_model(
    sources: Annotated[
        list[Path], typer.Argument(help="The authors' checkpoint (.pth, .pt or .safetensors); of smml both branches'.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model folder.")],
    method: Annotated[str, typer.Option(help="Whose weights they are (see `glimpseg methods`).")],
    overwrite: Overwrite = False,
) -> None:
    """Make a model of weights that a paper's own code wrote; nothing in the file is run."""
    from glimpseg import models as importing

    typer.echo(importing.import_model(method, sources, output, overwrite=overwrite))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say what is installed; the first thing to send with a question."""
    from importlib import metadata
    from platform import machine, platform, python_version

    packages = ("torch", "monai", "numpy", "scipy", "nibabel", "pydantic", "safetensors", "matplotlib")
    versions: dict[str, str] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    box = "there" if (WEIGHTS_FOLDER / BOX).is_dir() else "not part of this installation"
    about = {"glimpseg": __version__, "model box": box, "python": python_version()}
    found = {**about, "platform": f"{platform()} {machine()}", **versions}
    bad = versions["torch"].startswith("2.9.")
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        for name, version in found.items():
            typer.echo(f"{name:12} {version}")
    if bad:
        log.warning("torch 2.9 computes 3-D convolutions wrongly or slowly on some GPUs. Use another version.")
    if "missing" in versions.values():
        raise UsageError("A package is missing. Install again: pip install glimpseg")


@app.command()
def demo(
    output: Output = Path("demo"),
    model: ModelFolder = BOX,
    study: Annotated[
        Path | None, typer.Option(help="A study of your own to segment, too: its folder, or an archive of DICOM.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Segment a phantom from four and from two sequences, compare with its known truth, and a study of yours."""
    from glimpseg.demo import show

    for line in show(output, model=model, study=study, overwrite=overwrite):
        typer.echo(line)


@app.command()
def demo_train(
    output: Output = Path("demo"),
    overwrite: Overwrite = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps. Default: the recipe's.")] = None,
) -> None:
    """From nothing to a report: make phantoms, train, score 15 subsets, segment one study from two sequences."""
    from glimpseg.demo import run

    for line in run(output, overwrite=overwrite, steps=steps):
        typer.echo(line)
