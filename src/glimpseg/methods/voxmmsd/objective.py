"""What Vox-MMSD minimises: a network restores what is hidden of two crops, and predicts of each voxel what a slow copy
of itself sees of it in the other crop."""

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
from glimpseg.methods.voxmmsd.views import Pair, Pairs, collated, pair
from glimpseg.modality import Modality
from glimpseg.nets.layers import Pointwise, upsampled
from glimpseg.recipe import block_start, cosine
from glimpseg.runtime.distributed import gather_from_ranks


class Projector(nn.Sequential):
    """A voxel's features as a point on the unit sphere; student and teacher share it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Linear(inputs, inputs),
            nn.BatchNorm1d(inputs),
            nn.ReLU(),
            nn.Linear(inputs, inputs),
            nn.BatchNorm1d(inputs),
            nn.ReLU(),
            nn.Linear(inputs, outputs),
        )

    def forward(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """In fp32. Eq. (6)."""
        with torch.autocast(features.device.type, enabled=False):
            return functional.normalize(super().forward(features.float()))


class Restorer(nn.Module):
    """The image from features, by convolutions of 1 x 1 x 1: of a decoder's finest level, or of all of an encoder's."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.read = nn.ModuleList(Pointwise(width, len(Modality)) for width in widths)

    def forward(self, levels: Sequence[Float[Tensor, "b ..."]]) -> Float[Tensor, "b m x y z"]:
        """Coarser levels are up-sampled and added. Eq. (4)."""
        x: Tensor | None = None
        for read, level in reversed(list(zip(self.read, levels, strict=False))):
            x = read(level) if x is None else read(level) + upsampled(x, level.shape[2] // x.shape[2])
        assert x is not None
        return x.float()


class VoxMMSD(Learner):
    """Trains the parts that a segmenter names; labels are not needed."""

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
        """Of the network, and whole blocks."""
        return math.lcm(self._sides[0], self.config.block)

    @property
    def smallest(self) -> int:
        """Of the network; a crop has two blocks at least."""
        return max(self._sides[1], 2 * self.config.block)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Those of the student and its teacher."""
        return self.student.networks + self.teacher.networks

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Those of the student; the teacher keeps nothing anyway."""
        return self.student.stages

    @property
    def kept(self) -> dict[str, Tensor]:
        """The student's parts, by role."""
        state = self.student.state_dict()
        return {role: state[name] for name, role in self._names.items()}

    def view(self, case: Case, sampling: Sampling, rng: np.random.Generator) -> Pair:
        """Two crops, and voxels that are seen in both."""
        return pair(case, sampling.patch, self.config, rng)

    def collate(self, samples: Sequence[Pair]) -> tuple[Pairs, tuple[()]]:
        """Nothing awaits them on the device."""
        return collated(samples), ()

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Both terms, from one pass of the student over all views and one of the teacher. Eq. (11)."""
        assert isinstance(batch, Pairs), "pretraining needs its own views"
        levels = self.student.pyramid(batch.image, batch.available)
        student = self.projector(at_voxels(levels, batch.voxels, batch.image.shape[2:]))
        with torch.no_grad():  # numbers as with a graph, without the room
            slow = self.teacher.pyramid(batch.image, batch.available)
            teacher = self.projector(at_voxels(slow, batch.voxels, batch.image.shape[2:]))
        temperatures = self.config.student_temperature, self.temperature(progress)
        distilled = distillation(student, teacher, self.centre, temperatures)
        self._rows.append(teacher.mean(0, keepdim=True))
        restored = self.restorer(levels)
        restored = restored.tanh() if self.config.scaling == "crop" else restored
        return {
            "distillation": self.config.distillation * distilled,
            "restoration": self.config.restoration * restoration(restored, batch),
        }

    def temperature(self, progress: Progress) -> float:
        """The teacher's; it rises on a line. Eq. (8)."""
        first, last = self.config.temperatures
        since = block_start(progress.step, self.config.epoch) + self.config.ahead
        return first + (last - first) * min(since / max(self.config.warming * progress.steps, 1), 1.0)

    def momentum(self, progress: Progress) -> float:
        """Share of its own weights that the teacher keeps; it rises to 1 along half a cosine. Eq. (10)."""
        return cosine(block_start(progress.step, self.config.epoch), progress.steps, self.config.momentum, 1.0)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """The teacher follows the student, by its weights alone: its norms keep statistics of their own. The centre
        follows the teacher's rows of all passes and ranks. Eq. (9), Eq. (10)."""
        slow: list[Tensor] = list(self.teacher.parameters())
        fast: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(slow, fast, 1 - self.momentum(progress))
        rows = gather_from_ranks(torch.cat(self._rows)).mean(0, keepdim=True)
        self._rows.clear()
        self.centre.lerp_(rows, 1 - self.config.centre_momentum)

    def parameter_groups(self) -> list[dict]:
        """Norms and biases do not decay."""
        trained = [p for p in self.parameters() if p.requires_grad]
        kinds = {True: [p for p in trained if p.dim() > 1], False: [p for p in trained if p.dim() == 1]}
        return [{"params": kinds[True]}, {"params": kinds[False], "weight_decay": 0.0}]


def at_voxels(
    levels: Sequence[Float[Tensor, "b ..."]], voxels: Int[Tensor, "b n 3"], shape: Sequence[int]
) -> Float[Tensor, "bn c"]:
    """Each voxel's features at every level, side by side; of a coarser level, of the cell that holds it. Eq. (5)."""
    found = []
    for level in levels:
        x, y, z = (
            place * side // whole for place, side, whole in zip(voxels.unbind(2), level.shape[2:], shape, strict=True)
        )
        place = (x * level.shape[3] + y) * level.shape[4] + z  # b n
        flat = level.flatten(2)
        found.append(flat.gather(2, place[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2))
    return torch.cat(found, 2).flatten(0, 1)


def distillation(
    student: Float[Tensor, "n d"],
    teacher: Float[Tensor, "n d"],
    centre: Float[Tensor, "1 d"],
    temperatures: tuple[float, float],
) -> Float[Tensor, ""]:
    """Cross-entropy of the student's voxels of one view with the teacher's of the other, over the numbers of the
    embedding; rows are all first views', then all second ones'. The teacher gets no gradient. Eq. (7)."""
    wanted = ((teacher - centre).detach() / temperatures[1]).softmax(1)
    predicted = (student / temperatures[0]).log_softmax(1)
    one, other = wanted.chunk(2)
    return -(torch.cat([other, one]) * predicted).sum(1).mean()


def restoration(restored: Float[Tensor, "b m x y z"], pairs: Pairs) -> Float[Tensor, ""]:
    """Mean absolute difference from the crops as they were, over every voxel of every modality that a study has, in
    units of each crop's range. Eq. (4)."""
    goal, there = pairs.whole, pairs.available.sum()
    missed = (restored - goal).abs().mean((2, 3, 4)) / pairs.unit  # b m
    return torch.where(pairs.available, missed, missed.new_zeros(())).sum() / there


def pyramid_widths(network: Segmenter) -> list[int]:
    """Channels of each level, found without computing anything."""
    side = max(2 * network.stride, network.smallest)
    empty = deepcopy(network).to("meta").train()
    with torch.no_grad():
        image = torch.zeros(2, len(Modality), side, side, side, device="meta")
        levels = empty.pyramid(image, torch.ones(2, len(Modality), dtype=torch.bool, device="meta"))
    return [level.shape[1] for level in levels]


def drop_untrained(module: nn.Module) -> None:
    """Takes out what has weights and trains none of them: `pyramid` does not need it."""
    for name, child in module.named_children():
        weights = list(child.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            module._modules[name] = nn.Identity()
        else:
            drop_untrained(child)
