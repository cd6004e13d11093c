"""Load batches of crops in an order that depends only on the seed and the step.

Sample n is drawn from a random generator with the key (seed, n). So the loader has no state to save: a resumed run, any
number of threads and any number of ranks get the same crops. Threads only slice mapped files. Augmentation is applied
to the whole batch on the training device (see `augment`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from glimpseg.data import augment
from glimpseg.data.augment import Augment, Transform
from glimpseg.data.cache import Case
from glimpseg.data.crops import Batch
from glimpseg.data.prior_cache import open_case
from glimpseg.errors import InputError
from glimpseg.modality import Modality, to_flags
from glimpseg.runtime.pipeline import ahead

BATCHES_AHEAD = 3
"""Number of batches that are prepared ahead."""


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Sampling:
    """Settings for drawing crops from studies."""

    patch: tuple[int, int, int] = (128, 128, 128)
    """Size of a crop in voxels. nnU-Net uses 128^3 for BraTS."""
    batch: int = 2
    """Number of crops in one optimiser step, over all ranks and accumulation steps together."""
    tumour_share: float = 0.33
    """Share of crops that are laid around a tumour voxel, if the study has one; its label is drawn first. nnU-Net: 1/3.

    The voxel lies in the crop's middle half, except where the crop would reach beyond the study.
    """
    augment: Augment = Augment()
    """Augmentation settings."""

    def __post_init__(self) -> None:
        if self.batch < 1 or min(self.patch) < 1:
            raise ValueError(f"batch and patch should be at least 1, not {self.batch} and {self.patch}.")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One crop, with the augmentation that will be applied to it on the device."""

    image: Float[np.ndarray, "m x y z"]
    available: Modality
    target: UInt8[np.ndarray, "x y z"] | None
    transform: Transform
    study: str
    prior: UInt8[np.ndarray, "m x y z"] | None = None


@runtime_checkable
class Views(Protocol):
    """Interface for cutting samples from studies and collating them; threads call both ahead of time."""

    def view(self, case: Case, sampling: Sampling, rng: np.random.Generator) -> Any:
        """Cut one sample from a study."""

    def collate(self, samples: Sequence[Any]) -> tuple[Batch, Sequence[Transform]]:
        """Make a batch of samples. Returns it with the transforms to apply on the device: one for each, or none."""


@runtime_checkable
class Cases(Protocol):
    """Interface of a source of studies for training."""

    def case(self, n: int, seed: int) -> Case:
        """Return the study from which sample n is cropped."""


class CachedStudies:
    """A fixed set of cached studies. Every epoch takes each study once, in an order of its own.

    Raises: InputError if there are none, or as `open_case`.
    """

    def __init__(self, paths: Sequence[Path], priors: Sequence[Path] = ()) -> None:
        if not paths:
            raise InputError("There is no study to train on.")
        beside: Sequence[Path | None] = priors or [None] * len(paths)
        self.cases = [open_case(*both) for both in zip(paths, beside, strict=True)]

    def case(self, n: int, seed: int) -> Case:
        """Return the study of sample n. Each epoch is a permutation that depends on (seed, epoch)."""
        epoch, place = divmod(n, len(self.cases))
        return self.cases[int(np.random.default_rng([seed, epoch]).permutation(len(self.cases))[place])]


def random_crop(case: Case, sampling: Sampling, rng: np.random.Generator) -> Sample:
    """Cut a random crop from a study, and draw its augmentation; a share of crops contains tumour.

    Args:
        case: prepared study.
        sampling: crop size, share of crops with tumour, and augmentation.
        rng: random generator of this sample.
    """
    size = np.array(sampling.patch)
    room = np.array(case.shape) - size
    start = np.floor(rng.random(3) * (np.abs(room) + 1)).astype(int)
    start = np.where(room >= 0, start, -start)  # a study smaller than the crop is placed anywhere inside it
    on_tumour, which, offset = rng.random() < sampling.tumour_share, rng.random(2), rng.random(3)
    if on_tumour and len(case.seeds):
        labels = np.unique(case.seeds[:, 0])
        seeds = case.seeds[case.seeds[:, 0] == labels[int(which[0] * len(labels))], 1:]
        # The voxel lies anywhere in the middle half of the crop, so that tumours are not always central.
        start = seeds[int(which[1] * len(seeds))] - np.floor(size * (0.25 + 0.5 * offset)).astype(int)
        start = np.clip(start, np.minimum(room, 0), np.maximum(room, 0))
    image, target, prior = case.crop(start.tolist(), sampling.patch)
    return Sample(
        image=image,
        available=case.available,
        target=target,
        transform=augment.sample(sampling.augment, rng),
        study=case.id,
        prior=prior,
    )


def collate(samples: Sequence[Sample]) -> tuple[Batch, list[Transform]]:
    """Collate crops in their stored types. Returns the batch, and the transforms to apply on the device.

    The batch has a target, or a prior, only if all samples have one.
    """
    targets = [torch.from_numpy(sample.target) for sample in samples if sample.target is not None]
    priors = [torch.from_numpy(sample.prior) for sample in samples if sample.prior is not None]
    batch = Batch(
        image=torch.from_numpy(np.stack([sample.image for sample in samples])),
        available=torch.stack([to_flags(sample.available) for sample in samples]),
        target=torch.stack(targets) if len(targets) == len(samples) else None,
        study=[sample.study for sample in samples],
        prior=torch.stack(priors) if len(priors) == len(samples) else None,
    )
    return batch, [sample.transform for sample in samples]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Samples of the steps of a training, and their division among backward passes."""

    sampling: Sampling
    seed: int
    steps: range
    """Numbers of the steps to make."""
    shares: Sequence[range]
    """Places within a step's `sampling.batch` samples, one range for each backward pass of this rank."""


def batches(
    cases: Cases, views: Views, schedule: Schedule, *, device: torch.device, threads: int = 1
) -> Iterator[list[Batch]]:
    """Yield, for each step, one batch for each of the schedule's shares.

    Args:
        cases: Source of the studies.
        views: Cuts crops and collates them.
        schedule: The samples of each step.
        device: Device of the batches. They are moved there and augmented in the caller's thread.
        threads: Threads that cut crops ahead.
    """
    sampling, seed = schedule.sampling, schedule.seed

    def sample(number: int) -> Any:
        return views.view(cases.case(number, seed), sampling, np.random.default_rng([seed, 1, number]))

    def cut(step: int) -> list[tuple[Batch, Sequence[Transform]]]:
        first = step * sampling.batch
        return [views.collate([sample(first + place) for place in share]) for share in schedule.shares]

    with closing(ahead(schedule.steps, cut, BATCHES_AHEAD, threads=threads)) as steps:
        for parts in steps:
            yield [_finished(batch, transforms, device) for batch, transforms in parts]


def _finished(batch: Batch, transforms: Sequence[Transform], device: torch.device) -> Batch:
    batch = batch.to(device)
    if not transforms:
        return batch
    if batch.target is None or batch.prior is None:
        assert batch.prior is None, "a prior is for learning from a reference"
        batch.image, batch.target = augment.apply(transforms, batch.image, batch.target)
    else:
        labels = torch.cat([batch.target[:, None], batch.prior], 1)
        batch.image, labels = augment.apply(transforms, batch.image, labels)  # type: ignore[assignment]
        batch.target, batch.prior = labels[:, 0], labels[:, 1:]
    return batch
