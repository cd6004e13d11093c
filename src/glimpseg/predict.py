"""A study and a model in; labels, probabilities and volumes on the study's own grid out."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from monai.inferers import SlidingWindowInferer
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from glimpseg import checkpoint, metrics
from glimpseg.atomic import atomic_folder
from glimpseg.checkpoint import Model
from glimpseg.data import nifti
from glimpseg.data.layouts import convention_named
from glimpseg.data.preprocess import Prepared, prepare
from glimpseg.errors import InputError, ModelError, UsageError
from glimpseg.modality import ALL, Modality, as_mask, union
from glimpseg.picture import TITLES, preview
from glimpseg.region import Label, Region
from glimpseg.study import Study
from glimpseg.version import __version__
from glimpseg.volume import Volume, onto

log = logging.getLogger(__name__)

OVERLAP = 0.5
"""Share that neighbouring windows have in common. nnU-Net, RFNet: 1/2."""
WINDOWS_AT_ONCE = 2
"""On a processor without GPU two windows cost less than one (oneDNN leaves single small ones to a slow kernel)."""
RECORD = "run.json"
"""What was used and how; also the mark of a folder that may be overwritten."""
NOT_A_DEVICE = "Research software, not a medical device: not for diagnosis or treatment."

ImageLike: TypeAlias = str | Path | Volume | SpatialImage


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one study."""

    labels: Volume
    """`Label` values, uint8, on the study's own grid."""
    probabilities: Mapping[Region, Volume] | None
    used: Modality
    model: Model
    images: Mapping[Modality, ImageLike] = field(repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def absent(self) -> Modality:
        """The sequences that were not there."""
        return ALL & ~self.used

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions the model delineates."""
        return self.model.network.regions

    @property
    def volumes_ml(self) -> dict[Region, float]:
        """Millilitres of each region."""
        voxel = self.labels.grid.voxel_ml
        return {region: metrics.volume_ml(region.of(self.labels.voxels), voxel) for region in self.regions}

    @property
    def lesions(self) -> dict[Region, int]:
        """Connected parts of each region."""
        return {region: metrics.lesion_count(region.of(self.labels.voxels)) for region in self.regions}

    def save(
        self,
        folder: str | Path,
        *,
        labels: str = "brats2024",
        overwrite: bool = False,
    ) -> Path:
        """Writes `seg.nii.gz`, `seg.json`, `statistics.json`, `preview.png`, `run.json` and, if they were kept,
        `probabilities_<region>.nii.gz`; all of it or nothing.

        `labels` names the convention of the numbers in `seg.nii.gz`.

        Raises: UsageError if the folder holds files (without `overwrite`) or `labels` is unknown; InputError if
            the convention has no number for a label that was found; OutputError when the disk refuses.
        """
        convention = convention_named(labels)
        numbers = {number: label for number, label in convention.meaning.items() if label in self.model.network.labels}
        with atomic_folder(folder, overwrite=overwrite, mark=RECORD) as place:
            values = Volume(convention.write(self.labels.voxels), self.labels.affine)
            nifti.write_labels(place / "seg.nii.gz", values, {number: label.name for number, label in numbers.items()})
            for region, volume in (self.probabilities or {}).items():
                nifti.write_image(place / f"probabilities_{region.name}.nii.gz", volume)
            _write_json(place / "seg.json", self._names(labels, numbers))
            _write_json(place / "statistics.json", self._statistics())
            _write_json(place / RECORD, self._record(labels))
            self.preview().savefig(place / "preview.png", dpi=110)
        return Path(folder)

    def preview(self) -> Any:
        """The matplotlib figure of `preview.png`: three planes of each present sequence, radiological side."""
        volumes = {m: onto(_volume(self.images[m]), self.labels.grid) for m in Modality if m in self.used}
        absent = f"   absent: {self.absent.title}" if self.absent else ""
        return preview(volumes, self.labels, title=f"{self.used.title}{absent}   ({self.model.name})")

    def _names(self, convention: str, numbers: Mapping[int, Label]) -> dict[str, Any]:
        return {
            "convention": convention,
            "labels": {str(number): {"name": label.name, "title": TITLES[label]} for number, label in numbers.items()},
            "regions": {region.name: [label.name for label in region.value] for region in self.regions},
        }

    def _statistics(self) -> dict[str, Any]:
        lesions = self.lesions
        return {
            region.name: {"title": region.title, "volume_ml": round(volume, 4), "lesions": lesions[region]}
            for region, volume in self.volumes_ml.items()
        }

    def _record(self, labels: str) -> dict[str, Any]:
        grid = self.labels.grid
        prior = self.model.provenance.get("data", {}).get("prior")
        return {
            "glimpseg": __version__,
            "notice": NOT_A_DEVICE,
            "model": {
                "name": self.model.name,
                "method": self.model.recipe.method,
                "sha256": self.model.provenance["sha256"][checkpoint.WEIGHTS],
                "steps": self.model.provenance.get("steps"),
                "written_by": self.model.provenance.get("glimpseg"),
                **({"choices": self.model.chosen} if self.model.chosen else {}),
                **({"prior": prior} if prior else {}),
            },
            "sequences": {"used": [m.key for m in self.used], "absent": [m.key for m in self.absent]},
            "grid": {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm), "axes": grid.axes},
            "labels": labels,
            "device": str(self.model.device),
            "precision": self.model.precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "warnings": list(self.warnings),
        }


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
    probabilities: bool = False,
    device: str = "auto",
    choices: Mapping[str, Any] = MappingProxyType({}),
) -> Segmentation:
    """Segments one visit from the sequences that exist; those not named are absent, and order never matters.

    Each image is a path, a nibabel image or a `Volume`; skull-stripped, and registered to each other. `choices` as in
    `load`, where the model is a folder.

    Raises: InputError for images that cannot be used, ModelError without a usable model.
    """
    named = {Modality.T1: t1, Modality.T1C: t1c, Modality.T2: t2, Modality.FLAIR: flair}
    images = {modality: _given(image) for modality, image in named.items() if image is not None}
    if not images:
        raise InputError("No MRI sequence was given. Give at least one of t1, t1c, t2, flair.")
    if model is None:
        raise ModelError("No model was given. Name a folder that `glimpseg train` wrote (`make demo` makes demo/run).")
    loaded = model if isinstance(model, Model) else load(model, device, choices)
    study = Study("study", images, brain=None if brain_mask is None else _given(brain_mask))
    return segment_study(study, loaded, probabilities=probabilities)


def segment_study(study: Study, model: Model, *, probabilities: bool = False) -> Segmentation:
    """Segments a study with a model that is already loaded; with `probabilities`, keeps each region's."""
    begun = time.perf_counter()
    with _warnings_kept() as warnings:
        prepared = prepare(study, model.recipe.data.preprocess)
    read = time.perf_counter()
    (found,) = infer(prepared, model, [prepared.available], keep_probabilities=probabilities)
    seconds = {"reading": read - begun, "network": time.perf_counter() - read}
    return Segmentation(
        found.labels, found.probabilities, prepared.available, model, study.images, seconds, tuple(warnings)
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


def _given(image: ImageLike) -> Volume | Path:
    if isinstance(image, Volume):
        return image
    if isinstance(image, str | Path):
        return Path(image)
    return nifti.from_nibabel(image)


def _volume(image: ImageLike) -> Volume:
    given = _given(image)
    return given if isinstance(given, Volume) else nifti.read_volume(given)


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", "utf-8")


class _warnings_kept(logging.Handler):
    """Collects what the package warns of while a study is read, for `run.json`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("glimpseg").addHandler(self)
        return self.messages

    def __exit__(self, *error: object) -> None:
        logging.getLogger("glimpseg").removeHandler(self)
