"""Verbs about glimpseg itself: `methods`, `models`, `doctor`, `demo`, `demo-train`.

Heavy modules are imported inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from glimpseg.cli.app import app, log
from glimpseg.cli.options import ModelFolder, Output, Overwrite
from glimpseg.errors import TrainingError, UsageError
from glimpseg.model.shipped import BOX, WEIGHTS_FOLDER
from glimpseg.version import __version__

models = typer.Typer(help="Models on disk: import weights of others.", no_args_is_help=True)
app.add_typer(models, name="models")


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the methods and their recipes."""
    from glimpseg import methods as known

    found: dict[str, dict[str, Any]] = {}
    for name in known.names():
        try:
            summary, recipes = known.summary(name)
            found[name] = {"summary": summary, "recipes": recipes}
        except UsageError as error:
            found[name] = {"summary": f"cannot be read. {error}", "recipes": []}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for name, entry in found.items():
        typer.echo(f"{name:10} {entry['summary']}\n{'':10} recipes: {', '.join(entry['recipes'])}")


@models.command("import")
def import_model(
    sources: Annotated[
        list[Path],
        typer.Argument(help="The authors' checkpoint (.pth, .pt or .safetensors); for smml, those of both branches."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model folder.")],
    method: Annotated[str, typer.Option(help="Method that the weights belong to (see `glimpseg methods`).")],
    overwrite: Overwrite = False,
) -> None:
    """Make a model folder from weights that a paper's own code wrote. No code in the file is run."""
    from glimpseg.model import importing

    typer.echo(importing.import_model(method, sources, output, overwrite=overwrite))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Report what is installed, and test convolutions on every device. Send this report with a question."""
    from platform import machine, platform, python_version

    versions = {package: _version(package) for package in PACKAGES}
    box = "there" if (WEIGHTS_FOLDER / BOX).is_dir() else "not part of this installation"
    about = {"glimpseg": __version__, "model box": box, "python": python_version()}
    found: dict[str, Any] = {**about, "platform": f"{platform()} {machine()}", **versions, "memory": _memory()}
    found["extras"] = _extras()
    broken, cautions = None, []
    if versions["torch"] != "missing":
        from glimpseg.runtime import selftest

        checks = [
            selftest.check_convolutions(device, name)
            for device in selftest.available_devices()
            for name in selftest.available_precisions(device)
        ]
        found["conv3d"] = [check.record() for check in checks]
        broken, cautions = selftest.failure_message(checks), selftest.version_warnings()
    found["cautions"] = cautions
    typer.echo(json.dumps(found, indent=1) if as_json else "\n".join(_lines(found)))
    for caution in cautions:
        log.warning("%s", caution)
    if "missing" in versions.values():
        raise UsageError("A package is missing. Install again: pip install glimpseg")
    if broken is not None:
        raise TrainingError(broken)


PACKAGES = ("torch", "numpy", "scipy", "nibabel", "pydantic", "safetensors", "matplotlib")
NO_USERS = ("all", "test", "docs", "dev")
"""Extras that are not for users."""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _extras() -> dict[str, dict[str, str]]:
    """Return the version of each package by the name of its extra; `missing` if it is not installed."""
    try:
        wanted = metadata.requires("glimpseg") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, dict[str, str]] = {}
    for line in wanted:
        named = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)", line)
        if named and named[2] not in NO_USERS:
            found.setdefault(named[2], {})[named[1]] = _version(named[1])
    return found


def _memory() -> str:
    """Return total and unused memory in words, or `unknown` where the system does not report it."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"} <= set(names):
        return "unknown"
    page = os.sysconf("SC_PAGE_SIZE") / 2**30
    total, free = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    return f"{total:.1f} GiB, {free:.1f} GiB unused"


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report of `doctor` as lines of text."""
    for name, value in found.items():
        if name == "extras":
            for extra, packages in value.items():
                listed = ", ".join(f"{package} {version}" for package, version in packages.items())
                yield f"{f'[{extra}]':12} {listed}"
        elif name == "conv3d":
            for check in value:
                verdict = "right" if check["passed"] else f"WRONG: {check['where']}"
                error = "no result" if check["error"] is None else f"error {check['error']:.1e}"
                told = f"{check['device']} {check['precision']}, {error}, at most {check['bound']:.0e}"
                yield f"{name:12} {told}: {verdict}"
        elif name != "cautions":
            yield f"{name:12} {value}"


@app.command()
def demo(
    output: Output = Path("demo"),
    model: ModelFolder = BOX,
    study: Annotated[
        Path | None,
        typer.Option(help="One study of your own that is also segmented: its folder, or an archive of DICOM."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Segment a phantom from four and from two sequences, compare with its reference; segment a study of yours."""
    from glimpseg.demo import show

    for line in show(output, model=model, study=study, overwrite=overwrite):
        typer.echo(line)


@app.command()
def demo_train(
    output: Output = Path("demo"),
    overwrite: Overwrite = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps. Default: the recipe's.")] = None,
) -> None:
    """Make phantoms, train a model, score it on 15 subsets, and segment one study from two sequences."""
    from glimpseg.demo import run

    for line in run(output, overwrite=overwrite, steps=steps):
        typer.echo(line)
