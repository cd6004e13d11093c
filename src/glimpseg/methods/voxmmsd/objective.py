"""Objective of Vox-MMSD: equations, and the learner that pretrains a segmenter's network.

The network restores hidden blocks of two crops. For each voxel it predicts the embedding that a slow copy of itself
computes from the other crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from glimpseg.data.cache import Case
from glimpseg.data.crops import Batch
from glimpseg.data.loader import Sampling
from glimpseg.method import Learner, Progress, Segmenter, names_by_role
from glimpseg.methods.voxmmsd.config import Config
from glimpseg.methods.voxmmsd.views import PairBatch, ViewPair, collate_pairs, view_pair
from glimpseg.modality import Modality
from glimpseg.nets.layers import Pointwise, upsampled
from glimpseg.recipe import block_start, cosine
from glimpseg.runtime.distributed import gather_from_ranks


class Projector(nn.Sequential):
    """Perceptron from a voxel's features to a unit vector, its embedding; student and teacher share it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers = [
            nn.Linear(inputs, inputs),
            nn.BatchNorm1d(inputs),
            nn.ReLU(),
            nn.Linear(inputs, inputs),
            nn.BatchNorm1d(inputs),
            nn.ReLU(),
            nn.Linear(inputs, outputs),
        ]
        super().__init__(*layers)

    def forward(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """Return embeddings of length 1; computed in fp32. Eq. (6)."""
        with torch.autocast(features.device.type, enabled=False):
            return functional.normalize(super().forward(features.float()))


class Restorer(nn.Module):
    """Image from features by convolutions of 1 x 1 x 1.

    The features are those of a decoder's finest level, or of all levels of an encoder.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.read = nn.ModuleList(Pointwise(width, len(Modality)) for width in widths)

    def forward(self, levels: Sequence[Float[Tensor, "b ..."]]) -> Float[Tensor, "b m x y z"]:
        """Return the restored image; coarser levels are upsampled and added. Eq. (4)."""
        x: Tensor | None = None
        for read, level in reversed(list(zip(self.read, levels, strict=False))):
            x = read(level) if x is None else read(level) + upsampled(x, level.shape[2] // x.shape[2])
        assert x is not None
        return x.float()


class VoxMMSD(Learner):
    """Learner that pretrains the parts that a segmenter names in `pretrainable`; labels are not needed.

    Raises: UsageError if the segmenter names no parts.
    """

    centre: Tensor

    def __init__(self, config: Config, backbone: Segmenter) -> None:
        super().__init__()
        self.config = config
        self._names = {names[0]: role for role, names in names_by_role(backbone).items()}
        self._sides = backbone.stride, backbone.smallest
        widths = pyramid_widths(backbone)
        self.student = backbone
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name in self._names)
        drop_untrained(backbone)
        self.teacher = deepcopy(backbone).requires_grad_(False)
        self.restorer = Restorer(widths[:1] if "decoder" in backbone.pretrainable else widths)
        self.projector = Projector(sum(widths), config.embedding)
        for head in (self.restorer, self.projector):
            head.requires_grad_(config.train_heads)
        self.register_buffer("centre", torch.zeros(1, config.embedding))
        self._rows: list[Tensor] = []

    @property
    def stride(self) -> int:
        """Voxels that a crop's sides have to be a multiple of, for the network and for whole blocks."""
        return math.lcm(self._sides[0], self.config.block)

    @property
    def smallest(self) -> int:
        """Smallest side of a crop, in voxels: the network's, and at least two blocks."""
        return max(self._sides[1], 2 * self.config.block)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Modules to compile: networks of student and teacher."""
        return self.student.networks + self.teacher.networks

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Modules to recompute: stages of the student; the teacher keeps no activations."""
        return self.student.stages

    @property
    def kept(self) -> dict[str, Tensor]:
        """Weights of the student's pretrained parts, by role."""
        state = self.student.state_dict()
        return {role: state[name] for name, role in self._names.items()}

    def view(self, case: Case, sampling: Sampling, rng: np.random.Generator) -> ViewPair:
        """Return two views of a study, and voxels that are visible in both. Raises: InputError as `view_pair`."""
        return view_pair(case, sampling.patch, self.config, rng)

    def collate(self, samples: Sequence[ViewPair]) -> tuple[PairBatch, tuple[()]]:
        """Return the batch, and no augmentation to be done on the device."""
        return collate_pairs(samples), ()

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Return the terms `distillation` and `restoration`, multiplied by their weights.

        One pass of the student and one of the teacher go over all views. Eq. (11).
        """
        assert isinstance(batch, PairBatch), "pretraining needs its own views"
        levels = self.student.pyramid(batch.image, batch.available)
        student = self.projector(voxel_features(levels, batch.voxels, batch.image.shape[2:]))
        with torch.no_grad():  # the same numbers as with a graph, in less memory
            slow = self.teacher.pyramid(batch.image, batch.available)
            teacher = self.projector(voxel_features(slow, batch.voxels, batch.image.shape[2:]))
        temperatures = self.config.student_temperature, self.temperature(progress)
        distilled = distillation_loss(student, teacher, self.centre, temperatures)
        self._rows.append(teacher.mean(0, keepdim=True))
        restored = self.restorer(levels)
        restored = restored.tanh() if self.config.scaling == "crop" else restored
        return {
            "distillation": self.config.distillation * distilled,
            "restoration": self.config.restoration * restoration_loss(restored, batch),
        }

    def temperature(self, progress: Progress) -> float:
        """Return the teacher's temperature: it rises linearly over `Config.warming`, in steps of `Config.epoch`.

        It is `Config.ahead` steps early. Eq. (8).
        """
        first, last = self.config.temperatures
        since = block_start(progress.step, self.config.epoch) + self.config.ahead
        return first + (last - first) * min(since / max(self.config.warming * progress.steps, 1), 1.0)

    def momentum(self, progress: Progress) -> float:
        """Return the share of its own weights that the teacher keeps.

        It rises from `Config.momentum` to 1 along half a cosine, in steps of `Config.epoch`. Eq. (10).
        """
        return cosine(block_start(progress.step, self.config.epoch), progress.steps, self.config.momentum, 1.0)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Update the teacher's weights and the centre.

        The teacher follows the student by its weights only; its norms have their own statistics. The centre follows the
        mean of the teacher's embeddings over all passes and ranks. Eq. (9), Eq. (10).
        """
        slow: list[Tensor] = list(self.teacher.parameters())
        fast: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(slow, fast, 1 - self.momentum(progress))
        rows = gather_from_ranks(torch.cat(self._rows)).mean(0, keepdim=True)
        self._rows.clear()
        self.centre.lerp_(rows, 1 - self.config.centre_momentum)

    def parameter_groups(self) -> list[dict]:
        """Return the trained parameters in two groups; norms and biases have no weight decay."""
        trained = [p for p in self.parameters() if p.requires_grad]
        kinds = {True: [p for p in trained if p.dim() > 1], False: [p for p in trained if p.dim() == 1]}
        return [{"params": kinds[True]}, {"params": kinds[False], "weight_decay": 0.0}]


def voxel_features(
    levels: Sequence[Float[Tensor, "b ..."]], voxels: Int[Tensor, "b n 3"], shape: Sequence[int]
) -> Float[Tensor, "bn c"]:
    """Return the features of each voxel at every level, concatenated.

    At a coarser level, they are those of the cell that contains the voxel.

    Args:
        levels: features of each level, finest first.
        voxels: voxels of each view.
        shape: sides of the image, in voxels.

    Eq. (5).
    """
    features = []
    for level in levels:
        x, y, z = (
            place * side // whole for place, side, whole in zip(voxels.unbind(2), level.shape[2:], shape, strict=True)
        )
        place = (x * level.shape[3] + y) * level.shape[4] + z  # b n
        flat = level.flatten(2)
        features.append(flat.gather(2, place[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2))
    return torch.cat(features, 2).flatten(0, 1)


def distillation_loss(
    student: Float[Tensor, "n d"],
    teacher: Float[Tensor, "n d"],
    centre: Float[Tensor, "1 d"],
    temperatures: tuple[float, float],
) -> Float[Tensor, ""]:
    """Return the cross-entropy of the student's embeddings with the teacher's of the other view.

    The softmax is over the numbers of an embedding. Rows: all first views, then all second views. The teacher gets no
    gradient.

    Args:
        student: embeddings.
        teacher: embeddings.
        centre: running mean of the teacher's embeddings.
        temperatures: student's, then teacher's.

    Eq. (7).
    """
    target = ((teacher - centre).detach() / temperatures[1]).softmax(1)
    predicted = (student / temperatures[0]).log_softmax(1)
    one, other = target.chunk(2)
    return -(torch.cat([other, one]) * predicted).sum(1).mean()


def restoration_loss(restored: Float[Tensor, "b m x y z"], pairs: PairBatch) -> Float[Tensor, ""]:
    """Return the mean absolute difference from the original crops, in units of each crop's intensity range.

    It is over every voxel, hidden or not, of every modality that a study has. Eq. (4).
    """
    goal, there = pairs.whole, pairs.available.sum()
    missed = (restored - goal).abs().mean((2, 3, 4)) / pairs.unit  # b m
    return torch.where(pairs.available, missed, missed.new_zeros(())).sum() / there


def pyramid_widths(network: Segmenter) -> list[int]:
    """Return the channels of each level of `network.pyramid`, found on the meta device, without computing.

    Raises: UsageError if nothing of the network is pretrainable.
    """
    side = max(2 * network.stride, network.smallest)
    empty = deepcopy(network).to("meta").train()
    with torch.no_grad():
        image = torch.zeros((2, len(Modality), side, side, side), device="meta")
        levels = empty.pyramid(image, torch.ones(2, len(Modality), dtype=torch.bool, device="meta"))
    return [level.shape[1] for level in levels]


def drop_untrained(module: nn.Module) -> None:
    """Replace submodules that have weights, none of which is trained, by the identity, in place.

    `pyramid` does not need them.
    """
    for name, child in module.named_children():
        weights = list(child.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            module._modules[name] = nn.Identity()
        else:
            drop_untrained(child)
