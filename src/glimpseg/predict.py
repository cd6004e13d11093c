"""A study and a model in; labels, probabilities and volumes on the study's own grid out."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from glimpseg import checkpoint
from glimpseg.checkpoint import Model
from glimpseg.data.looks import warnings_of
from glimpseg.data.preprocess import GRID_ORDER, Prepared, prepare, refuse_same_files
from glimpseg.data.raw.together import bring_together
from glimpseg.errors import ModelError, UsageError
from glimpseg.intake import ImageLike, Visit, named_images
from glimpseg.modality import Modality, as_mask, parse, union
from glimpseg.region import Region
from glimpseg.segmentation import Segmentation
from glimpseg.study import Study
from glimpseg.volume import Volume, onto

log = logging.getLogger(__name__)

Raw: TypeAlias = Literal["auto", "no"]

OVERLAP = 0.5
"""Share that neighbouring windows have in common. nnU-Net, RFNet: 1/2."""
WINDOWS_AT_ONCE = 2
"""On a processor without GPU two windows cost less than one (oneDNN leaves single small ones to a slow kernel)."""


def load(path: str | Path, device: str = "auto", choices: Mapping[str, Any] = MappingProxyType({})) -> Model:
    """A model from the folder that training wrote, on `cpu`, `cuda`, `cuda:1`, `mps`, or the best there is.

    Some methods leave open how they segment: `load("smml", choices={"config.branch": 1})`.

    Raises: ModelError if the folder holds none that this version can read; UsageError for a choice it does not have.
    """
    return checkpoint.load(path, resolved_device(device), choices)


def segment(
    *,
    t1: ImageLike | None = None,
    t1c: ImageLike | None = None,
    t2: ImageLike | None = None,
    flair: ImageLike | None = None,
    model: str | Path | Model | None = None,
    brain_mask: ImageLike | None = None,
    grid: str | None = None,
    raw: Raw = "auto",
    probabilities: bool = False,
    device: str = "auto",
    choices: Mapping[str, Any] = MappingProxyType({}),
) -> Segmentation:
    """Segments one visit from the sequences that exist; those not named are absent, and order never matters.

    Each image is a path (NIfTI, or a folder of one DICOM series), a nibabel image or a `Volume`. The result lies on the
    grid of the sequence `grid`, by default of the first that exists of t1c, t1, flair, t2. With `raw="auto"` images
    that are not registered or not skull-stripped are, if the extras are installed; with `"no"` they are taken as they
    are. `choices` as in `load`, where the model is a folder.

    Raises: InputError for images that cannot be used, ModelError without a usable model, UsageError for raw scans
        without the extras.
    """
    named = {Modality.T1: t1, Modality.T1C: t1c, Modality.T2: t2, Modality.FLAIR: flair}
    visit = named_images({m: image for m, image in named.items() if image is not None}, brain_mask)
    if model is None:
        raise ModelError("No model was given. Name a folder that `glimpseg train` wrote (`make demo` makes demo/run).")
    loaded = model if isinstance(model, Model) else load(model, device, choices)
    wanted = None if grid is None else parse(grid)
    return segment_read(read(visit, loaded, wanted, raw), loaded, probabilities=probabilities)


def segment_study(
    study: Study, model: Model, *, probabilities: bool = False, grid: Modality | None = None, raw: Raw = "auto"
) -> Segmentation:
    """Segments a study with a model that is already loaded; with `probabilities`, keeps each region's. Results lie on
    the grid of the sequence `grid`, by default of the first that exists of T1c, T1, FLAIR, T2. `raw` as in `read`."""
    return segment_read(read(Visit(study), model, grid, raw), model, probabilities=probabilities)


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

    Raises: InputError for images that cannot be used; UsageError where something is needed that is not installed.
    """
    begun = time.perf_counter()
    with _warnings_kept() as warnings:
        refuse_same_files(visit.study)
        if raw == "auto":
            brought = bring_together(visit.study, grid)
            visit = replace(visit, study=brought.study, notes=(*visit.notes, *brought.notes))
        prepared = prepare(visit.study, model.recipe.data.preprocess, grid)
        for sentence in warnings_of(prepared):
            log.warning("%s: %s", visit.study.id, sentence)
    lies_on = grid or next(modality for modality in GRID_ORDER if modality in prepared.available)
    return Read(visit, prepared, lies_on, time.perf_counter() - begun, tuple(warnings))


def segment_read(done: Read, model: Model, *, probabilities: bool = False) -> Segmentation:
    """What the network finds in a visit that has been read."""
    begun = time.perf_counter()
    (found,) = infer(done.prepared, model, [done.prepared.available], keep_probabilities=probabilities)
    return Segmentation(
        found.labels,
        found.probabilities,
        done.prepared.available,
        model,
        done.visit.study.images,
        {"reading": done.seconds, "network": time.perf_counter() - begun},
        done.warnings,
        done.visit.series.get(done.grid),
        done.visit.notes,
    )


@dataclass(frozen=True, eq=False)
class Found:
    """What the network finds in a prepared study from one subset of its modalities."""

    subset: Modality
    labels: Volume
    """`Label` values, uint8, on the study's own grid."""
    probabilities: Mapping[Region, Volume] | None
    """On the own grid, if they were asked for."""


def infer(
    prepared: Prepared,
    model: Model,
    subsets: Sequence[Modality],
    *,
    keep_probabilities: bool = False,
    weighting: str = "gaussian",
) -> Iterator[Found]:
    """What each of `subsets` alone shows, on the study's own grid; one result at a time, not always in their order.

    Windows run over the brain's box on the working grid. A network that `shares` encodes each window once for all
    subsets whose box is the same. Probabilities, not labels, are interpolated back. `weighting` is how overlapping
    windows are averaged: `gaussian` or `constant`.
    """
    for group in _groups(prepared, subsets) if model.network.shares else [(subset,) for subset in subsets]:
        shown = prepared.restricted_to(union(group))
        for subset, working in zip(group, _windows(model, shown, group, weighting), strict=True):
            yield _found(subset, working[0].cpu(), shown, model, keep_probabilities)


def resolved_device(name: str) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; under `torchrun` each rank takes the GPU of its number.

    Raises: UsageError for a device that is not there.
    """
    if name == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        name = best
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"The device '{name}' cannot be used ({str(error).splitlines()[0]}). Try --device cpu."
        ) from error
    return device


def _groups(prepared: Prepared, subsets: Sequence[Modality]) -> list[tuple[Modality, ...]]:
    """Subsets that see the same box of the working grid, together."""
    groups: dict[tuple[tuple[int, int], ...], list[Modality]] = {}
    for subset in subsets:
        groups.setdefault(tuple((side.start, side.stop) for side in prepared.box(subset)), []).append(subset)
    return [tuple(group) for group in groups.values()]


def _windows(
    model: Model, shown: Prepared, subsets: Sequence[Modality], weighting: str
) -> tuple[Float[Tensor, "1 k x y z"], ...]:
    """Probabilities on the working grid, for each subset."""
    network, device = model.network, model.device
    patch = model.recipe.data.sampling.patch
    # A study smaller than the patch needs no larger window than the next multiple of the network's stride.
    sides = [max(-(-n // network.stride) * network.stride, network.smallest) for n in shown.image.shape[1:]]
    roi = patch if network.fixed_windows else [min(side, p) for side, p in zip(sides, patch, strict=True)]
    image, inner = _with_air(shown, roi)
    inferer = SlidingWindowInferer(roi, sw_batch_size=WINDOWS_AT_ONCE, overlap=OVERLAP, mode=weighting)
    masks = [as_mask(subset)[None].to(device) for subset in subsets]
    wanted = as_mask(union(subsets))[None].to(device)

    def probabilities(windows: Tensor) -> tuple[Tensor, ...]:
        features = network.encode(windows, wanted.expand(len(windows), -1))
        return tuple(network.fuse(features, mask.expand(len(windows), -1)) for mask in masks)

    with torch.inference_mode(), model.computing():
        result = inferer(torch.from_numpy(image)[None].to(device), probabilities)
    results = (result,) if isinstance(result, Tensor) else result  # one output comes without its tuple
    return tuple(found[:, :, *inner] for found in results)


def _with_air(shown: Prepared, least: Sequence[int]) -> tuple[Float[np.ndarray, "m x y z"], tuple[slice, slice, slice]]:
    """The images with air around them where they are smaller than `least`, and where they then lie."""
    shape = shown.image.shape[1:]
    before = [max(side - n, 0) // 2 for side, n in zip(least, shape, strict=True)]
    x, y, z = (slice(start, start + n) for start, n in zip(before, shape, strict=True))
    image = np.empty((len(shown.image), *map(max, least, shape)), np.float32)
    image[:] = shown.levels[:, None, None, None]
    image[:, x, y, z] = shown.image
    return image, (x, y, z)


def _found(
    subset: Modality, working: Float[Tensor, "k x y z"], prepared: Prepared, model: Model, keep_probabilities: bool
) -> Found:
    network, affine = model.network, prepared.own.affine
    own = torch.stack([torch.from_numpy(_back(channel.numpy(), prepared)) for channel in working])[None]
    labels = Volume(network.decode(own)[0].numpy().astype(np.uint8), affine)
    if not keep_probabilities:
        return Found(subset, labels, None)
    maps = {region: Volume(p[0].numpy(), affine) for region, p in network.region_probabilities(own).items()}
    return Found(subset, labels, maps)


def _back(values: Float[np.ndarray, "x y z"], prepared: Prepared) -> Float[np.ndarray, "i j k"]:
    return onto(Volume(values, prepared.grid.affine), prepared.own).voxels


class _warnings_kept(logging.Handler):
    """Collects what the package warns of in this thread while a study is read, for `run.json`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.reader = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.reader:
            self.messages.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("glimpseg").addHandler(self)
        return self.messages

    def __exit__(self, *error: object) -> None:
        logging.getLogger("glimpseg").removeHandler(self)
