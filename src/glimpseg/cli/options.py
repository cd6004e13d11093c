"""Options that several verbs share, and verbs that take whole options dataclasses."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from glimpseg.errors import UsageError
from glimpseg.model.shipped import BOX
from glimpseg.segmentation.options import CommandLineOption, InferenceOptions, OutputOptions

if TYPE_CHECKING:
    from glimpseg.batch.job_spec import JobSpec

Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to make. It must not hold files yet.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if glimpseg made it.")]
Resume = Annotated[bool, typer.Option("--resume", "--continue", help="Go on where an earlier run stopped.")]
Change = Annotated[
    list[str] | None, typer.Option("--set", help="Change a recipe field: --set optim.steps=1000. Can be repeated.")
]
Choice = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Set what the model's method leaves open: --set config.branch=1 (smml). Can be repeated."
    ),
]
Split = Annotated[
    str | None, typer.Option(help="Only the studies of a published list: brats2020/test (see docs/evaluation.md).")
]
TREE = "a folder in any layout, a folder of DICOM, an archive, or a manifest."
Layout = Annotated[str, typer.Option(help="Layout of the studies (see docs/data.md). Default: detected.")]
MODEL = "Model folder or run folder that `train` wrote; box is the model that comes with glimpseg, ./box a folder."
ModelFolder = Annotated[str, typer.Option("-m", "--model", help=MODEL)]
ModelArgument = Annotated[str, typer.Argument(help=MODEL)]
Cache = Annotated[Path | None, typer.Option(help="Folder of prepared studies. Default: in the run folder.")]
Backbone = Annotated[
    str | None, typer.Option(help="For pretraining: train the network of this recipe, unet/brats, rfnet/brats2020 ...")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads that cut crops.")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard, too.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        "--engine",
        help="Inference backend: torch, openvino, onnx; auto takes the fastest that is installed (docs/backends.md).",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Label convention of the references: brats2015, brats2021, brats2023, brats2024. Default: detected."
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeOptions:
    """A tree of studies, the model, and the output folder, for verbs that segment on a cluster."""

    source: Annotated[Path, typer.Option("-i", "--input", help=f"Tree of studies: {TREE}")]
    output: Output
    model: ModelFolder = BOX
    layout: Layout = "auto"
    change: Choice = None
    device: Device = "auto"
    backend: Backend = "auto"

    def job_spec(self, inference: InferenceOptions, outputs: OutputOptions) -> JobSpec:
        """Return the job specification, with absolute paths."""
        from glimpseg.batch.job import BatchOptions
        from glimpseg.batch.job_spec import JobSpec

        return JobSpec(
            source=self.source.absolute(),
            output=self.output.absolute(),
            model=self.model if self.model == BOX else str(Path(self.model).absolute()),
            options=BatchOptions(inference=inference, outputs=outputs),
            layout=self.layout,
            device=self.device,
            choices=changes_of(self.change),
            backend=self.backend,
        )


def takes_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Turn each parameter of a verb that is an options dataclass into one command-line option for each field.

    A field is annotated with `typer.Option`, or with `CommandLineOption` where the dataclass belongs to the library.
    The verb receives the dataclasses, made from the given values.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        kind = groups.get(parameter.name)
        named = [parameter.replace(annotation=hints[parameter.name])] if kind is None else _parameters_of(kind)
        parameters += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in named]

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        for name, kind in groups.items():
            values = {field.name: given.pop(field.name) for field in dataclasses.fields(kind)}
            given[name] = kind(**values)
        verb(**given)

    del command.__wrapped__  # typer would look at the verb's own parameters
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _parameters_of(kind: Any) -> list[inspect.Parameter]:
    """Return a typer parameter for each field of an options dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return [_parameter(field, hints[field.name]) for field in dataclasses.fields(kind)]


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    _, *metadata = get_args(hint)
    described = [one for one in metadata if isinstance(one, CommandLineOption)]
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    if described:
        (option,) = described
        flag = option.flag or f"--{field.name.replace('_', '-')}"
        kind: Any = bool if isinstance(default, bool) else str | None if default is None else str
        hint = Annotated[kind, typer.Option(flag, help=option.help)]
        default = ",".join(default) if isinstance(default, tuple) else default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def changes_of(texts: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """Return fields and their new values, from texts such as `optim.steps=1000`. Values are read as YAML.

    Raises: UsageError for a text without `=`, or for a value that is no YAML. `option` is the name of the option in its
        message.
    """
    from glimpseg.runtime.documents import DocumentError, parse_yaml

    changes: dict[str, Any] = {}
    for text in texts or []:
        path, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{option} takes field=value, not '{text}'.")
        try:
            changes[path] = parse_yaml(value)
        except DocumentError as error:
            raise UsageError(f"{option} {path} takes a value in YAML, not '{value}' ({error}).") from error
    return changes
