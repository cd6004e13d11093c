"""The contract: what a method has to say, and the few tools that methods share."""

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
"""Share of a window that its neighbour covers as well. nnU-Net, RFNet: 1/2."""


@dataclass(frozen=True)
class Progress:
    """How far training is: optimiser steps done, and planned."""

    step: int
    steps: int

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        return self.step / max(self.steps, 1)


class Learner(nn.Module):
    """Something that can be trained: what it sees and what it minimises."""

    def view(self, case: Case, sampling: Sampling, rng: np.random.Generator) -> Any:
        """What is cut from a study for one sample. Default: a random crop and an augmentation to come."""
        return loader.random_crop(case, sampling, rng)

    def collate(self, samples: Sequence[Any]) -> tuple[Batch, Sequence[Transform]]:
        """What `view` gave as one batch, and the augmentations to come. Default: of the default view's crops."""
        return loader.collate(samples)

    @abstractmethod
    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Named, weighted loss terms; their sum is minimised. Randomness only from torch's global generator,
        which the loop seeds anew for every step."""

    def parameter_groups(self) -> list[dict]:
        """For the optimiser. Default: all parameters in one group."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    @property
    def needs_prior(self) -> bool:
        """Whether batches have to come with a prior (`glimpseg.priors`). Default: no."""
        return False

    @property
    def stride(self) -> int:
        """Crops have to be multiples of this many voxels along each axis. Default: any will do."""
        return 1

    @property
    def smallest(self) -> int:
        """Crops have to have at least this many voxels along each axis. Default: one stride."""
        return self.stride

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What is worth compiling (`optim.compile`): modules that are called with tensors of the same shapes in every
        step. Default: none."""
        return ()

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """What may be computed again in the backward pass where memory is short (`optim.recompute`): modules that make
        many activations of one input. Default: none."""
        return ()

    @property
    def kept(self) -> dict[str, Tensor]:
        """The weights that a model folder holds. Default: all."""
        return self.state_dict()

    def after_step(self, progress: Progress) -> None:
        """Called after each optimiser step. Default: nothing."""

    @classmethod
    def dataset_note(cls, available: Mapping[Modality, int]) -> str | None:
        """Return a note for log and report on a dataset with so many studies of each subset. Default: None.

        Raises: UsageError if the method cannot learn from such a dataset.
        """
        return None


class Segmenter(Learner):
    """A learner that also segments a study from any non-empty subset of modalities."""

    choices: ClassVar[tuple[str, ...]] = ()
    """Fields of its config that say how it segments and may be chosen anew whenever it is used."""
    pretrainable: ClassVar[Mapping[str, str]] = {}
    """What of it may be pretrained: for its encoder, and perhaps its decoder, a pattern of its weights' names; group 1
    is what a weight is called wherever it has this role. Of copies that share a name, `pyramid` runs the first."""

    def __init__(self, labels: tuple[Label, ...]) -> None:
        super().__init__()
        self.labels = labels
        """What it tells apart, in channel order (after the background, where that has a channel)."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions it can delineate."""
        return tuple(region for region in Region if set(region.value) <= set(self.labels))

    @property
    def kept(self) -> dict[str, Tensor]:
        """The weights that segmenting needs."""
        dropped = tuple(f"{name}." for name in self.training_only)
        return {name: value for name, value in self.state_dict().items() if not name.startswith(dropped)}

    @property
    def training_only(self) -> tuple[str, ...]:
        """Its modules that segmenting does not need; a model folder lacks them. Default: none."""
        return ()

    def drop_training_parts(self) -> None:
        """Leaves what segmenting needs; training it is over."""
        for name in self.training_only:
            setattr(self, name, None)

    @abstractmethod
    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Probabilities of its own channels, fp32. What absent channels of `image` hold must not matter."""

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """What its `parts` make of an image, finest level first, which has the image's resolution: what pretraining
        trains. The decoder's maps if there is one among the parts, else the encoder's.

        Raises: UsageError if it has no parts.
        """
        raise UsageError(f"{type(self).__name__} cannot be pretrained: it names no parts.")

    @property
    def fixed_windows(self) -> bool:
        """Whether it has to be shown crops of the size it was trained on and no smaller ones. Default: no."""
        return False

    @property
    def whole_up_to(self) -> float:
        """How many times as long as a training crop, along each axis, a brain may be and still be seen in one piece;
        a longer one is seen through windows of a crop's size. Default: 1."""
        return 1.0

    def encode(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Any:
        """What of `forward` does not depend on the subset: computed once for all 15. Default: nothing.

        `available` is all that any subset will ask for. A feature may depend on no other modality than its own, or
        `fuse` could not take that modality away again.
        """
        return image

    def fuse(self, features: Any, available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """The rest of `forward`: `fuse(encode(image, available), subset)` is `forward(image, subset)` for every
        subset of `available`."""
        return self.forward(features, available)

    @property
    def shares(self) -> bool:
        """Whether `encode` does anything, so that subsets are best computed together."""
        return type(self).encode is not Segmenter.encode

    def decode(self, probabilities: Float[Tensor, "b k x y z"]) -> Int[Tensor, "b x y z"]:
        """`Label` values. Default: the most probable of background and `labels`."""
        values = torch.tensor([0, *self.labels], device=probabilities.device)
        return values[probabilities.argmax(1)]

    def region_probabilities(self, probabilities: Float[Tensor, "b k x y z"]) -> dict[Region, Float[Tensor, "b x y z"]]:
        """The probability of each region. Default: the sum over its labels' channels (after the background)."""
        order = (None, *self.labels)
        return {
            region: sum((probabilities[:, order.index(label)] for label in region.value), torch.zeros(()))
            for region in self.regions
        }


def draw_subsets(available: Bool[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
    """For each sample one of the non-empty subsets of what it has, all equally likely (RFNet's sampling,
    carried over to studies that lack a modality). Never empty, never more than there is."""
    rows, possible = subsets_within(available)
    return rows[torch.multinomial(possible.float(), 1)[:, 0]]


def subsets_within(available: Bool[Tensor, "b m"]) -> tuple[Bool[Tensor, "n m"], Bool[Tensor, "b n"]]:
    """The non-empty subsets as masks, and which of them each sample has all modalities of."""
    rows = torch.stack([to_flags(subset) for subset in SUBSETS]).to(available.device)
    return rows, (~rows[None] | available[:, None]).all(-1)


def blanked(image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b m x y z"]:
    """Absent channels set to 0 by selection: a product would let their NaN through."""
    return torch.where(
        available[:, :, None, None, None], image, torch.zeros((), dtype=image.dtype, device=image.device)
    )


def names_by_role(network: Segmenter) -> dict[str, list[str]]:
    """Names of weights by what they are: `encoder.t1c.stages.0.entry.conv.weight` and its copies."""
    found: dict[str, list[str]] = {}
    for name in network.state_dict():
        for part, pattern in network.pretrainable.items():
            match = re.fullmatch(pattern, name)
            if match:
                found.setdefault(f"{part}.{match[1]}", []).append(name)
    return found


def frozen(module: nn.Module) -> Callable[..., Tensor]:
    """The module as a function whose parameters get no gradient, though its inputs do: an adversary's student term."""
    constants = {name: value.detach() for name, value in (*module.named_parameters(), *module.named_buffers())}
    return lambda *inputs: torch.func.functional_call(module, constants, inputs)
