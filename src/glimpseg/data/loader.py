"""Batches of crops, in an order that is a pure function of (seed, step).

Sample number n is drawn from a generator keyed by (seed, n). Nothing about the loader has to be saved: a
resumed run, any number of threads and any number of ranks see the same crops. Threads only slice mapped
files; augmentation is applied to the whole batch on the training device (see `augment`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from glimpseg.data.prior_cache import with_prior
from glimpseg.errors import InputError
from glimpseg.modality import Modality, to_flags

BATCHES_AHEAD = 3
"""Batches made before they are asked for."""


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Sampling:
    """How crops are drawn from studies."""

    patch: tuple[int, int, int] = (128, 128, 128)
    """Voxels of a crop. nnU-Net's for BraTS: 128^3."""
    batch: int = 2
    """Crops of one optimiser step, over all ranks and accumulation steps together."""
    tumour_share: float = 0.33
    """Share of crops centred on a tumour voxel, its label drawn first; nnU-Net: 1/3."""
    augment: Augment = Augment()

    def __post_init__(self) -> None:
        if self.batch < 1 or min(self.patch) < 1:
            raise ValueError(f"batch and patch should be at least 1, not {self.batch} and {self.patch}.")


@dataclass(frozen=True)
class Sample:
    """One crop and what is still to be done to it."""

    image: Float[np.ndarray, "m x y z"]
    available: Modality
    target: UInt8[np.ndarray, "x y z"] | None
    transform: Transform
    study: str
    prior: UInt8[np.ndarray, "m x y z"] | None = None


@runtime_checkable
class Views(Protocol):
    """How a learner sees studies; both are called by threads, ahead of time."""

    def view(self, case: Case, sampling: Sampling, rng: np.random.Generator) -> Any:
        """What is cut from a study for one sample."""

    def collate(self, samples: Sequence[Any]) -> tuple[Batch, Sequence[Transform]]:
        """Samples as one batch, and the transforms, one for each or none at all, that await them on the device."""


@runtime_checkable
class Cases(Protocol):
    """Where sample number n comes from."""

    def case(self, n: int, seed: int) -> Case:
        """The study that sample n is cropped from."""


class CachedStudies:
    """A fixed set of cached studies. Every epoch takes each study once, in an order of its own."""

    def __init__(self, paths: Sequence[Path], priors: Sequence[Path] = ()) -> None:
        if not paths:
            raise InputError("There is no study to train on.")
        beside: Sequence[Path | None] = priors or [None] * len(paths)
        self.cases = [with_prior(*both) for both in zip(paths, beside, strict=True)]

    def case(self, n: int, seed: int) -> Case:
        """The study of sample n: epochs are permutations keyed by (seed, epoch)."""
        epoch, place = divmod(n, len(self.cases))
        return self.cases[int(np.random.default_rng([seed, epoch]).permutation(len(self.cases))[place])]


def view(case: Case, sampling: Sampling, rng: np.random.Generator) -> Sample:
    """The default view: a random crop, a share of them around tumour, and an augmentation's parameters."""
    size = np.array(sampling.patch)
    room = np.array(case.shape) - size
    start = np.floor(rng.random(3) * (np.abs(room) + 1)).astype(int)
    start = np.where(room >= 0, start, -start)  # a study smaller than the crop lies anywhere inside it
    on_tumour, which, offset = rng.random() < sampling.tumour_share, rng.random(2), rng.random(3)
    if on_tumour and len(case.seeds):
        labels = np.unique(case.seeds[:, 0])
        seeds = case.seeds[case.seeds[:, 0] == labels[int(which[0] * len(labels))], 1:]
        # The voxel lies anywhere in the crop's middle half, so that tumours are not always central.
        wanted = seeds[int(which[1] * len(seeds))] - np.floor(size * (0.25 + 0.5 * offset)).astype(int)
        start = np.clip(wanted, np.minimum(room, 0), np.maximum(room, 0))
    image, target, prior = case.crop(start.tolist(), sampling.patch)
    return Sample(image, case.available, target, augment.sample(sampling.augment, rng), case.id, prior)


def collate(samples: Sequence[Sample]) -> tuple[Batch, list[Transform]]:
    """A batch of crops as they were cut, as narrow as they are stored, and the transforms that await them on the
    device."""
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


def batches(
    cases: Cases,
    views: Views,
    sampling: Sampling,
    *,
    seed: int,
    steps: range,
    parts: Sequence[range],
    device: torch.device,
    threads: int = 1,
) -> Iterator[list[Batch]]:
    """For each step the batches of `parts`: ranges of sample numbers within the step's `sampling.batch`.

    Crops are cut ahead by threads; moving to `device` and augmenting happen in the caller's thread.
    """

    def cut(step: int) -> list[tuple[Batch, Sequence[Transform]]]:
        numbers = [[step * sampling.batch + place for place in part] for part in parts]
        return [views.collate([_sample(cases, views, sampling, seed, n) for n in part]) for part in numbers]

    ahead: deque[Future[list[tuple[Batch, Sequence[Transform]]]]] = deque()
    pool = ThreadPoolExecutor(max(threads, 1), thread_name_prefix="loader")
    try:
        for step in steps:
            while len(ahead) < BATCHES_AHEAD and step + len(ahead) < steps.stop:
                ahead.append(pool.submit(cut, step + len(ahead)))
            yield [_finished(batch, transforms, device) for batch, transforms in ahead.popleft().result()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _sample(cases: Cases, views: Views, sampling: Sampling, seed: int, n: int) -> Any:
    return views.view(cases.case(n, seed), sampling, np.random.default_rng([seed, 1, n]))


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
