"""The command line: one verb, one function. Results go to stdout, progress and warnings to stderr.

Heavy modules are imported inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from glimpseg.errors import InputError, ModelError, OutputError, Preempted, TrainingError, UsageError
from glimpseg.version import __version__

EXIT_CODES: dict[type[Exception], int] = {
    UsageError: 2,
    InputError: 3,
    ModelError: 4,
    OutputError: 1,
    TrainingError: 1,
    Preempted: 75,
}
"""0 done, 1 unexpected or not writable, 2 wrong usage, 3 input unusable, 4 model missing or mismatched, 75 stopped
by SIGTERM with its state saved, 130 interrupted."""

app = typer.Typer(
    help="Brain-tumour segmentation from whatever MRI sequences exist.\n\n"
    "Research software, not a medical device: not for diagnosis or treatment.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
models = typer.Typer(help="Models on disk: import weights of others.", no_args_is_help=True)
app.add_typer(models, name="models")
log = logging.getLogger("glimpseg")

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
ModelFolder = Annotated[Path, typer.Option("-m", "--model", help="Model or run folder that `train` wrote.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of prepared studies. Default: in the run.")]
Backbone = Annotated[
    str | None, typer.Option(help="For pretraining: the network of this recipe, unet/brats, rfnet/brats2020 ...")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads that cut crops.")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard, too.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Labels = Annotated[
    str | None,
    typer.Option(help="What label numbers mean: brats2015, brats2021, brats2023, brats2024. Default: found out."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"glimpseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Write the log there, too.")] = None,
) -> None:
    context.obj = {"quiet": quiet, "debug": debug}
    log.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = handlers


def _changes(texts: list[str] | None) -> dict[str, Any]:
    """Fields and their new values. Raises: UsageError for a text without `=`."""
    import yaml

    changes: dict[str, Any] = {}
    for text in texts or []:
        path, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set takes field=value, not '{text}'.")
        changes[path] = yaml.safe_load(value)
    return changes


@app.command()
def segment(
    output: Output,
    model: ModelFolder,
    t1: Annotated[Path | None, typer.Option("--t1", "--t1n", "--t1w", help="T1 without contrast (NIfTI).")] = None,
    t1c: Annotated[Path | None, typer.Option("--t1c", "--t1ce", "--t1gd", help="T1 with contrast.")] = None,
    t2: Annotated[Path | None, typer.Option("--t2", "--t2w", help="T2.")] = None,
    flair: Annotated[Path | None, typer.Option("--flair", "--fla", "--t2f", help="FLAIR.")] = None,
    brain_mask: Annotated[Path | None, typer.Option(help="Brain mask, if the background is not constant.")] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write each region's probabilities.")] = False,
    labels: Annotated[str, typer.Option(help="Label numbers to write: brats2021, brats2023, brats2024.")] = "brats2024",
    change: Choice = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Segment one study from the sequences it has; order never matters.

    Images are skull-stripped and registered to each other. Leave out what does not exist.
    """
    from glimpseg import atomic, predict

    atomic.refuse_if_used(output, overwrite=overwrite, mark=predict.RECORD)
    found = predict.segment(
        t1=t1,
        t1c=t1c,
        t2=t2,
        flair=flair,
        model=model,
        brain_mask=brain_mask,
        probabilities=probabilities,
        device=device,
        choices=_changes(change),
    )
    found.save(output, labels=labels, overwrite=overwrite)
    volumes = ", ".join(f"{region.name} {volume:.1f} ml" for region, volume in found.volumes_ml.items())
    log.info("Used %s%s. %s.", found.used.title, f", without {found.absent.title}" if found.absent else "", volumes)
    typer.echo(output / "seg.nii.gz")


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

    changes = _changes(change) | ({"data.prior.kind": prior} if prior else {})
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


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="method/recipe (see `glimpseg methods`) or a YAML file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Run folder.")],
    data: Annotated[Path | None, typer.Option(help="Folder of studies. Default: the recipe's phantom stream.")] = None,
    change: Change = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    labels: Labels = None,
    split: Split = None,
    cache: Cache = None,
    init: Annotated[
        Path | None, typer.Option(help="Begin with the weights of a pretraining, or of another model.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="What of --init is taken over: encoder, or encoder+decoder. Default: encoder.")
    ] = None,
    labelled: Annotated[
        float | None, typer.Option(help="Learn from this share of the studies, chosen by the recipe's seed.")
    ] = None,
    threads: Threads = 1,
    tensorboard: Tensorboard = False,
    device: Device = "auto",
) -> None:
    """Train a method. Under `torchrun` the same command uses every rank."""
    from glimpseg import methods
    from glimpseg import train as training
    from glimpseg.predict import resolved_device

    if part is not None and init is None:
        raise UsageError("--part says what of --init is taken over: name a model with --init, too.")
    flags = {"init.weights": init and str(init), "init.part": part, "data.labelled": labelled}
    changes = _changes(change) | {path: value for path, value in flags.items() if value is not None}
    wanted = methods.find_recipe(recipe, changes)
    if wanted.backbone is not None:
        raise UsageError(f"{recipe} is pretraining: run `glimpseg pretrain`, then `glimpseg train ... --init`.")
    model = training.train(
        wanted,
        output,
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
    typer.echo(model)


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
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    split: Split = None,
    cache: Cache = None,
    threads: Threads = 1,
    tensorboard: Tensorboard = False,
    device: Device = "auto",
) -> None:
    """Pretrain a network without labels; `train --init` goes on from it."""
    from glimpseg import methods
    from glimpseg import train as training
    from glimpseg.predict import resolved_device

    wanted = methods.find_recipe(recipe, _changes(change), backbone)
    if wanted.backbone is None:
        raise UsageError(f"{recipe} is no pretraining: run `glimpseg train`.")
    model = training.train(
        wanted,
        output,
        data=data,
        split=split,
        cache=cache,
        resume=resume,
        device=resolved_device(device),
        threads=threads,
        tensorboard=tensorboard,
        quiet=log.level > logging.INFO,
    )
    typer.echo(model)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model or run folder.")],
    data: Annotated[Path, typer.Option(help="Folder of studies with references.")],
    output: Output,
    protocol: Annotated[
        str, typer.Option(help="clinical, or rfnet for comparison with published tables only.")
    ] = "clinical",
    subsets: Annotated[str, typer.Option(help="all, or subsets separated by commas: t1c,t1c+flair.")] = "all",
    metrics: Annotated[
        str, typer.Option(help="all, or some: dice,hd95,hd95_pooled,surface_dice_1mm,lesion_dice,ece ...")
    ] = "all",
    split: Split = None,
    change: Choice = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an evaluation that was stopped.")] = False,
    labels: Labels = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Score a model on every subset of sequences; write scores, a summary and a report."""
    from glimpseg import evaluate as evaluation
    from glimpseg import predict, report
    from glimpseg.data.layouts import find_studies
    from glimpseg.data.splits import chosen
    from glimpseg.modality import SUBSETS, parse
    from glimpseg.protocol import protocol_named
    from glimpseg.scores import metrics_named

    protocol_named(protocol)
    wanted = metrics_named(metrics)
    if not subsets.strip():
        raise UsageError("--subsets names none. Name subsets separated by commas, or all.")
    shown = SUBSETS if subsets == "all" else tuple(parse(word) for word in subsets.split(","))
    studies = find_studies(data, labels=labels)
    if split is not None:
        studies = chosen(studies, split)
    done = evaluation.evaluate(
        predict.load(model, device, _changes(change)),
        studies,
        output,
        protocol=protocol,
        subsets=shown,
        metrics=wanted,
        split=split,
        resume=resume,
        overwrite=overwrite,
    )
    log.info("%s", report.text_table(done))
    typer.echo(report.write_report(output))
    failed = done.record["failed"]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(done.record['studies'])} studies could not be scored; the others are in {output}. "
            "Repair them and run again with --resume.\n"
            + "\n".join(f"{study}: {message}" for study, message in failed.items())
        )


@app.command()
def compare(
    evaluations: Annotated[list[Path], typer.Argument(help="Folders that `evaluate` wrote; the first is the measure.")],
    output: Output,
    metrics: Annotated[str, typer.Option(help="all, or some, as in `evaluate`.")] = "dice,hd95",
    published: Annotated[
        str | None,
        typer.Option(
            help="Put published tables beside: BraTS2018, BraTS2020, BraTS2024, FeTS2024. Default: by the list."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare evaluations case by case: paired tests, effect sizes, wins and losses; published tables beside."""
    from glimpseg import compare as comparison
    from glimpseg.report import write_comparison
    from glimpseg.scores import metrics_named

    comparison.compare(evaluations, output, metrics=metrics_named(metrics), published=published, overwrite=overwrite)
    typer.echo(write_comparison(output))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `evaluate` or `compare` wrote.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="HTML file. Default: in that folder.")] = None,
) -> None:
    """Make the HTML report of an evaluation or comparison again."""
    from glimpseg.report import write_comparison, write_report
    from glimpseg.results import COMPARISON

    write = write_comparison if (folder / COMPARISON).is_file() else write_report
    typer.echo(write(folder, output))


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
    found = {"glimpseg": __version__, "python": python_version(), "platform": f"{platform()} {machine()}", **versions}
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
    overwrite: Overwrite = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps. Default: the recipe's.")] = None,
) -> None:
    """From nothing to a report: make phantoms, train, score 15 subsets, segment one study from two sequences."""
    from glimpseg.demo import run

    for line in run(output, overwrite=overwrite, steps=steps):
        typer.echo(line)


def main() -> None:
    """Runs the command line; every known error becomes one message and its exit code."""
    # Threads that wait for each other spin by default: beside another busy process a training step then took
    # six times as long (5.6 s against 0.9 s on two cores). Read when torch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except tuple(EXIT_CODES) as error:
        if "--debug" in sys.argv:
            raise
        text = error.strerror if isinstance(error, OutputError) and error.strerror else str(error)
        print(f"glimpseg: {text}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_CODES[type(error)])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        message = f"{type(error).__name__}: {error}"
        print(f"glimpseg: unexpected error ({message}). Add --debug after glimpseg for the trace.", file=sys.stderr)  # noqa: T201
        sys.exit(1)
