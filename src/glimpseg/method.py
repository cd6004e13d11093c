"""Base classes of every method, `Learner` and `Segmenter`, and the few functions that methods share."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glimpseg.data import loader
from glimpseg.data.augment import Transform
from glimpseg.data.cache import Case
from glimpseg.data.crops import Batch
from glimpseg.data.loader import Sampling
from glimpseg.errors import UsageError
from glimpseg.modality import SUBSETS, Modality, to_flags
from glimpseg.region import Label, Region

WINDOW_OVERLAP = 0.5
"""Share of a window, along each axis, that its neighbour covers as well. nnU-Net, RFNet: 1/2."""


@dataclass(frozen=True)
class Progress:
    """Progress of a training: the number of optimiser steps done so far, and planned in all."""

    step: int
    steps: int

    @property
    def fraction(self) -> float:
        """Share of the steps that is done, from 0 to 1."""
        return self.step / max(self.steps, 1)


class Learner(nn.Module):
    """Base class of everything that is trained: it cuts its training samples and computes its losses."""

    def view(self, case: Case, sampling: Sampling, rng: np.random.Generator) -> Any:
        """Return one training sample of a study.

        Default: a random crop, with the parameters of an augmentation that is applied later.

        Args:
            case: The study.
            sampling: Settings of crops and augmentation.
            rng: Random generator of this sample.
        """
        return loader.random_crop(case, sampling, rng)

    def collate(self, samples: Sequence[Any]) -> tuple[Batch, Sequence[Transform]]:
        """Return samples of `view` as one batch, and the augmentations to apply to it on the device.

        Default: for the samples of the default `view`.
        """
        return loader.collate(samples)

    @abstractmethod
    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Return the loss terms by name, each multiplied by its weight. Their sum is minimised.

        Random numbers may come from torch's global generator alone, which the loop seeds anew for every backward pass.
        """

    def parameter_groups(self) -> list[dict]:
        """Return the parameter groups for the optimiser. Default: all parameters in one group.

        A group may have a `weight_decay` of its own, and a `scale` that multiplies the learning rate.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    @property
    def needs_prior(self) -> bool:
        """True if the method learns from prior maps (`glimpseg.priors`), which batches then hold. Default: False."""
        return False

    @property
    def stride(self) -> int:
        """Number of voxels of which each side of a crop must be a multiple. Default: 1."""
        return 1

    @property
    def smallest(self) -> int:
        """Smallest side of a crop, in voxels, that the method takes. Default: one stride."""
        return self.stride

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Modules to compile (`optim.compile`). They are called with tensors of the same shapes in every step.

        Default: none.
        """
        return ()

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Modules whose activations are computed again in the backward pass to save memory (`optim.recompute`).

        Each computes many activations from one input. Default: none.
        """
        return ()

    @property
    def kept(self) -> dict[str, Tensor]:
        """Weights to store in a model folder, by name. Default: all."""
        return self.state_dict()

    def after_step(self, progress: Progress) -> None:
        """Update what changes after each optimiser step. `progress` does not count that step. Default: nothing."""

    @classmethod
    def dataset_note(cls, available: Mapping[Modality, int]) -> str | None:
        """Return a note on a training dataset, for log and report; None if there is nothing to say. Default: None.

        Args:
            available: Number of studies that have exactly these modalities, by subset.

        Raises: UsageError if the method cannot learn from such a dataset.
        """
        return None


class Segmenter(Learner):
    """Base class of a learner that also segments, from any non-empty subset of modalities."""

    choices: ClassVar[tuple[str, ...]] = ()
    """Names of config fields that change how it segments, and may get another value whenever the model is used."""
    pretrainable: ClassVar[Mapping[str, str]] = {}
    """Parts that may be pretrained: `encoder`, and perhaps `decoder`, each with a pattern of its weights' names.

    Group 1 of the pattern is the weight's role, by which it is found in other networks. Of copies that have the same
    role, `pyramid` runs the first.
    """

    def __init__(self, labels: tuple[Label, ...]) -> None:
        super().__init__()
        self.labels = labels
        """Labels that it segments, in channel order (after the background, if that has a channel)."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """Regions all of whose labels it segments."""
        return tuple(region for region in Region if set(region.value) <= set(self.labels))

    @property
    def kept(self) -> dict[str, Tensor]:
        """Weights that segmenting needs, by name: all but those of the modules in `training_only`."""
        dropped = tuple(f"{name}." for name in self.training_only)
        return {name: value for name, value in self.state_dict().items() if not name.startswith(dropped)}

    @property
    def training_only(self) -> tuple[str, ...]:
        """Names of modules that segmenting does not need; a model folder has none of them. Default: none."""
        return ()

    def drop_training_parts(self) -> None:
        """Remove the modules of `training_only`. The learner cannot be trained afterwards."""
        for name in self.training_only:
            setattr(self, name, None)

    @abstractmethod
    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Return the probability of each output channel, in fp32.

        Values in absent channels of the image must not change it.
        """

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """Return the feature maps that pretraining trains, finest level first; that one has the image's resolution.

        These are the decoder's maps if `pretrainable` has a decoder, else the encoder's.

        Raises: UsageError if nothing is pretrainable.
        """
        raise UsageError(f"{type(self).__name__} cannot be pretrained: it names no parts.")

    @property
    def fixed_windows(self) -> bool:
        """True if it takes windows of the size of a training crop alone, no smaller or larger ones. Default: False."""
        return False

    @property
    def whole_up_to(self) -> float:
        """Longest side of a brain that is segmented in one piece, in sides of a training crop. Default: 1.

        A brain with a longer side is segmented in windows of a crop's size.
        """
        return 1.0

    def encode(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Any:
        """Return the features of `forward` that do not depend on the subset, for use with all 15.

        Default: the image itself.

        Args:
            image: Image of all modalities that any subset will ask for.
            available: The modalities that any subset will ask for. A feature may depend on its own modality alone, or
                `fuse` could not leave that modality out.
        """
        return image

    def fuse(self, features: Any, available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Return the result of `forward` for a subset, from the features of `encode`.

        `fuse(encode(image, available), subset)` equals `forward(image, subset)` for every subset of `available`.
        """
        return self.forward(features, available)

    @property
    def shares(self) -> bool:
        """True if the method has an `encode` of its own: computing several subsets together is then faster."""
        return type(self).encode is not Segmenter.encode

    def decode(self, probabilities: Float[Tensor, "b k x y z"]) -> Int[Tensor, "b x y z"]:
        """Return `Label` values. Default: the most probable of background (0) and `labels`, in channel order."""
        values = torch.tensor([0, *self.labels], device=probabilities.device)
        return values[probabilities.argmax(1)]

    def region_probabilities(self, probabilities: Float[Tensor, "b k x y z"]) -> dict[Region, Float[Tensor, "b x y z"]]:
        """Return the probability of each region. Default: the sum over its labels' channels (after the background)."""
        order = (None, *self.labels)
        return {
            region: sum((probabilities[:, order.index(label)] for label in region.value), torch.zeros(()))
            for region in self.regions
        }


def draw_subsets(available: Bool[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
    """Return, for each sample, a random non-empty subset of its modalities; all its subsets are equally likely.

    This is RFNet's sampling, extended to studies that lack a modality. Random numbers come from torch's global
    generator.
    """
    rows, possible = subsets_within(available)
    return rows[torch.multinomial(possible.float(), 1)[:, 0]]


def subsets_within(available: Bool[Tensor, "b m"]) -> tuple[Bool[Tensor, "n m"], Bool[Tensor, "b n"]]:
    """Return the 15 non-empty subsets as flags, and for each sample True for each subset whose modalities it has."""
    rows = torch.stack([to_flags(subset) for subset in SUBSETS]).to(available.device)
    return rows, (~rows[None] | available[:, None]).all(-1)


def blanked(image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b m x y z"]:
    """Return the image with absent channels set to 0, by selection: a product with 0 would keep their NaN."""
    return torch.where(
        available[:, :, None, None, None], image, torch.zeros((), dtype=image.dtype, device=image.device)
    )


def names_by_role(network: Segmenter) -> dict[str, list[str]]:
    """Return the names of a network's pretrainable weights by role, such as `encoder.t1c.stages.0.entry.conv.weight`.

    A role is the part and group 1 of its pattern in `pretrainable`. Copies of one weight have the same role.
    """
    roles: dict[str, list[str]] = {}
    for name in network.state_dict():
        for part, pattern in network.pretrainable.items():
            match = re.fullmatch(pattern, name)
            if match:
                roles.setdefault(f"{part}.{match[1]}", []).append(name)
    return roles


def frozen(module: nn.Module) -> Callable[..., Tensor]:
    """Return a module as a function whose inputs get a gradient and whose parameters get none.

    A discriminator is frozen in this way while a network is trained against it.
    """
    constants = {name: value.detach() for name, value in (*module.named_parameters(), *module.named_buffers())}
    return lambda *inputs: torch.func.functional_call(module, constants, inputs)
