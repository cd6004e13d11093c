"""A study and a model in; labels, probabilities and volumes on the study's own grid out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from glimpseg.data.identify.appearance import appearance_warnings
from glimpseg.data.preprocess import GRID_ORDER, Prepared, prepare, refuse_same_files
from glimpseg.data.raw.preparation import register_and_strip
from glimpseg.errors import UsageError
from glimpseg.modality import Modality, parse
from glimpseg.model.loading import Model, load_model
from glimpseg.model.shipped import BOX
from glimpseg.runtime.device import resolved_device
from glimpseg.segmentation.inference import infer
from glimpseg.segmentation.inputs import ImageLike, Visit, named_images
from glimpseg.segmentation.memory import refuse_if_short
from glimpseg.segmentation.result import Segmentation
from glimpseg.segmentation.uncertainty import Level, Uncertainty, doubts, left_out, looks
from glimpseg.study import Study

log = logging.getLogger(__name__)

Raw: TypeAlias = Literal["auto", "no"]


def load(
    path: str | Path = BOX,
    device: str = "auto",
    choices: Mapping[str, Any] = MappingProxyType({}),
    backend: str = "torch",
) -> Model:
    """A model from the folder that training wrote, on `cpu`, `cuda`, `cuda:1`, `mps`, or the best there is; `box`, or
    none named, is the one that comes with the package.

    Some methods leave open how they segment: `load("smml", choices={"config.branch": 1})`. `backend` is what computes
    the network (docs/backends.md): `torch`, so that results are the same bits whatever else is installed; `openvino` or
    `onnx`; or `auto`, what is best for the model of what is installed.

    Raises: ModelError if the folder holds none that this version can read; UsageError for a choice it does not have, or
        a backend that is not installed.
    """
    return load_model(path, resolved_device(device), choices, backend)


def segment(
    *,
    t1: ImageLike | None = None,
    t1c: ImageLike | None = None,
    t2: ImageLike | None = None,
    flair: ImageLike | None = None,
    model: str | Path | Model = BOX,
    brain_mask: ImageLike | None = None,
    grid: str | None = None,
    raw: Raw = "auto",
    probabilities: bool = False,
    uncertainty: Level = "quick",
    device: str = "auto",
    choices: Mapping[str, Any] = MappingProxyType({}),
    backend: str = "torch",
) -> Segmentation:
    """Segments one visit from the sequences that exist; those not named are absent, and order never matters.

    Each image is a path (NIfTI, or a folder of one DICOM series), a nibabel image or a `Volume`. The result lies on the
    grid of the sequence `grid`, by default of the first that exists of t1c, t1, flair, t2. With `raw="auto"` images
    that are not registered or not skull-stripped are, if the extras are installed; with `"no"` they are taken as they
    are. `model` is the one that comes with the package, unless another folder or a loaded model is given. `device`,
    `choices` and `backend` as in `load`, where it is not loaded.

    With `uncertainty` the result says how sure it is (docs/trust.md): `quick` takes one pass more, of the mirrored
    images; `full` mirrors them along all axes and leaves out each sequence; `none` is the plain pass. Labels are the
    same in any case. Probabilities are calibrated if the model has temperatures.

    Raises: InputError for images that cannot be used, ModelError without a usable model, UsageError for raw scans
        without the extras.
    """
    refuse_unknown_level(uncertainty)
    named = {Modality.T1: t1, Modality.T1C: t1c, Modality.T2: t2, Modality.FLAIR: flair}
    visit = named_images({m: image for m, image in named.items() if image is not None}, brain_mask)
    loaded = model if isinstance(model, Model) else load(model, device, choices, backend)
    wanted = None if grid is None else parse(grid)
    done = read(visit, loaded, wanted, raw)
    return segment_read(done, loaded, probabilities=probabilities, uncertainty=uncertainty)


def segment_study(
    study: Study,
    model: Model,
    *,
    probabilities: bool = False,
    uncertainty: Level = "none",
    grid: Modality | None = None,
    raw: Raw = "auto",
) -> Segmentation:
    """Segments a study with a model that is already loaded; with `probabilities`, keeps each region's. Results lie on
    the grid of the sequence `grid`, by default of the first that exists of T1c, T1, FLAIR, T2. `raw` as in `read`,
    `uncertainty` as in `segment`."""
    done = read(Visit(study), model, grid, raw)
    return segment_read(done, model, probabilities=probabilities, uncertainty=uncertainty)


def refuse_unknown_level(word: str) -> None:
    """Raises UsageError for what is no level of uncertainty."""
    if word not in get_args(Level):
        raise UsageError(f"Uncertainty is {', '.join(get_args(Level))}, not '{word}'.")


@dataclass(frozen=True, eq=False)
class Read:
    """A visit whose files have been read: all that the network needs of it."""

    visit: Visit
    prepared: Prepared
    grid: Modality
    """The sequence on whose grid results lie."""
    seconds: float
    warnings: tuple[str, ...]


def read(visit: Visit, model: Model, grid: Modality | None = None, raw: Raw = "auto") -> Read:
    """Reads and checks a visit's images, brings raw scans together, and prepares them.

    `raw`: `auto` registers and skull-strips what needs it (`data.raw`), `no` takes the images as they are.

    Raises: InputError for images that cannot be used, or that need clearly more memory than there is; UsageError where
        something is needed that is not installed.
    """
    begun = time.perf_counter()
    with _warnings_kept() as warnings:
        refuse_same_files(visit.study)
        refuse_if_short(visit.study, model.recipe.data.preprocess.spacing_mm, len(model.network.labels) + 1)
        if raw == "auto":
            brought = register_and_strip(visit.study, grid)
            visit = replace(visit, study=brought.study, notes=(*visit.notes, *brought.notes))
        prepared = prepare(visit.study, model.recipe.data.preprocess, grid)
        for sentence in appearance_warnings(prepared):
            log.warning("%s: %s", visit.study.id, sentence)
    lies_on = grid or next(modality for modality in GRID_ORDER if modality in prepared.available)
    return Read(visit, prepared, lies_on, time.perf_counter() - begun, tuple(warnings))


def segment_read(done: Read, model: Model, *, probabilities: bool = False, uncertainty: Level = "none") -> Segmentation:
    """What the network finds in a visit that has been read; `uncertainty` as in `segment`."""
    begun, available = time.perf_counter(), done.prepared.available
    temperatures = model.expectations.temperatures(available) if model.expectations else {}
    wanted = temperatures if probabilities or uncertainty != "none" else None
    (found,) = infer(done.prepared, model, [available], keep_probabilities=probabilities, temperatures=wanted)
    computed = model.backend.record
    seconds = {"reading": done.seconds, "network": time.perf_counter() - begun}
    doubted: Uncertainty | None = None
    if uncertainty != "none":
        assert found.estimates is not None
        begun, members = time.perf_counter(), _members(done.prepared, model, uncertainty)
        doubted = doubts(found.labels, found.estimates, members, level=uncertainty, calibrated=bool(temperatures))
        seconds["uncertainty"] = time.perf_counter() - begun
    return Segmentation(
        found.labels,
        found.probabilities,
        available,
        model,
        done.visit.study.images,
        seconds,
        done.warnings,
        done.visit.series.get(done.grid),
        done.visit.notes,
        doubted,
        computed,
    )


def _members(prepared: Prepared, model: Model, level: Level) -> Iterator[tuple[str, Volume]]:
    """What the network finds when it looks in other ways, by name; one at a time."""
    for name, look in looks(prepared, level):
        (found,) = infer(look, model, [look.available])
        yield name, found.labels
    names = left_out(prepared.available, level)
    for found in infer(prepared, model, list(names)) if names else ():
        yield names[found.subset], found.labels


class _warnings_kept(logging.Handler):
    """Collects what the package warns of in this thread while a study is read, for `run.json`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.reader = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        # A large file is read more than once.
        if record.thread == self.reader and record.getMessage() not in self.messages:
            self.messages.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("glimpseg").addHandler(self)
        return self.messages

    def __exit__(self, *error: object) -> None:
        logging.getLogger("glimpseg").removeHandler(self)
