"""Objective of MST-KDNet: equations, and the learner that trains teacher, student and discriminator by one sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from glimpseg.data.crops import Batch
from glimpseg.errors import UsageError
from glimpseg.method import Progress, Segmenter, blanked, draw_subsets, frozen
from glimpseg.methods.mstkdnet.config import Config
from glimpseg.methods.mstkdnet.network import Discriminator, Network, NetworkOutput, Residual, TransformerLayer
from glimpseg.modality import ALL, Modality
from glimpseg.nets.recompute import outermost
from glimpseg.region import Label, Region

ENTRIES_AT_ONCE = 2**23
"""Largest number of attention entries that are compared at a time, over both networks, all layers, heads and samples:
some 300 MB. The released crop has a sixth of it for each sample."""


def label_maps(target: Int[Tensor, "b x y z"], labels: Sequence[int]) -> Float[Tensor, "b k x y z"]:
    """Return one map for each label and, last, one for voxels without a label.

    Voxels of a label that is not in `labels` are in no map.

    Args:
        target: label of each voxel.
        labels: labels, in channel order.
    """
    return torch.stack([target == label for label in (*labels, 0)], 1).float()


def squared_dice(probabilities: Float[Tensor, "b k x y z"], target: Float[Tensor, "b k x y z"]) -> Float[Tensor, "k"]:
    """Return 1 - Dice with squares in the denominator, for each class, over the whole batch.

    A class that the target lacks costs 1. Eq. (4).
    """
    axes = (0, 2, 3, 4)
    both = (probabilities * target).sum(axes)
    return 1 - 2 * both / (probabilities.square().sum(axes) + target.square().sum(axes) + 1e-7)


def mean_square(one: Float[Tensor, "b ..."], other: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
    """Return the mean squared difference within each sample. Eq. (5)."""
    return (one.float() - other.float()).square().flatten(1).mean(1)


def scale_distance(teacher: NetworkOutput, student: NetworkOutput) -> Float[Tensor, "b"]:
    """Return the mean squared differences of the scales of both UNETR decoders, summed (MS-TKD). Eq. (6)."""
    return torch.stack([mean_square(*pair) for pair in zip(teacher.scales, student.scales, strict=True)]).sum(0)


def attention_distance(teacher: NetworkOutput, student: NetworkOutput) -> Float[Tensor, "b"]:
    """Return the distance between the attentions of teacher and student (MS-TKD): summed mean squared differences.

    Each attention entry is multiplied by the largest, the smallest and the mean value of that entry over the used
    layers (MS-TKD's extreme values). Values are relative to even attention, which makes them independent of the number
    of tokens.

    Where there are many tokens, the matrices are compared some rows at a time, and again in the backward pass: no copy
    of the matrices' size is kept. Eq. (7).
    """
    both = (*teacher.attentions, *student.attentions)
    tokens = both[0].shape[-1]
    rows = max(1, ENTRIES_AT_ONCE * tokens // sum(attention.numel() for attention in both))
    if rows >= tokens:
        return attention_rows_distance(*both)
    total = both[0].new_zeros(len(both[0]))
    for part in zip(*(attention.split(rows, 2) for attention in both), strict=True):
        apart: Tensor = checkpoint(attention_rows_distance, *part, use_reentrant=False, preserve_rng_state=False)
        total = total + apart * (part[0].shape[2] / tokens)
    return total


def attention_rows_distance(*both: Float[Tensor, "b h r n"]) -> Float[Tensor, "b"]:
    """Return the attention distance of some rows.

    Args:
        both: attentions of the teacher's layers, then of the student's.
    """
    layers = len(both) // 2
    stacks = [torch.stack(half, 1) * half[0].shape[-1] for half in (both[:layers], both[layers:])]
    total = stacks[0].new_zeros(len(stacks[0]))
    for extreme in (torch.amax, torch.amin, torch.mean):
        one, other = (stack * extreme(stack, 1, keepdim=True) for stack in stacks)
        total = total + layers * mean_square(one, other)
    return total


def prediction_weight(fraction: float, ramp: float) -> float:
    """Return the factor of the prediction term: from 0.0067 at the beginning of training to 1 at `ramp`.

    Args:
        fraction: share of the training that is done.
        ramp: share of the training over which the factor rises.

    Eq. (8).
    """
    done = min(fraction / ramp, 1.0) if ramp else 1.0
    return math.exp(-5 * (1 - done) ** 2)


def class_distance(teacher: Float[Tensor, "b k x y z"], student: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b k"]:
    """Return the mean squared difference of each class's probabilities (DMLD's first mode). Eq. (9)."""
    return (teacher - student).square().mean((2, 3, 4))


def logit_divergence(
    student: Float[Tensor, "b k x y z"],
    teacher: Float[Tensor, "b k x y z"],
    temperature: float,
    axis: Literal["depth", "class"] = "depth",
) -> Float[Tensor, "b"]:
    """Return the Kullback-Leibler divergence of the student from the teacher (DMLD's second mode).

    Logits are standardised along an axis and divided by the temperature, then compared as softmax probabilities. The
    result is the mean over voxels, times the squared temperature, divided by the number of classes.

    Args:
        student: logits.
        teacher: logits.
        temperature: as `Config.temperature`.
        axis: as `Config.standardise`.

    Eq. (10).
    """
    along = -1 if axis == "depth" else 1

    def soft(logits: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(logits, along, keepdim=True)
        return ((logits - mean) / (deviation + 1e-7) / temperature).log_softmax(1)

    one, other = soft(student), soft(teacher)
    per_voxel = (other.exp() * (other - one)).sum(1)
    return temperature**2 / student.shape[1] * per_voxel.flatten(1).mean(1)


def style_products(layers: Sequence[Float[Tensor, "b c x y z"]]) -> list[Float[Tensor, "b c c"]]:
    """Return the channel products of each layer with the layer before it, mean over voxels.

    The first layer is multiplied with the last.
    """
    flat = [layer.float().flatten(2) for layer in layers]
    with torch.autocast(flat[0].device.type, enabled=False):  # small differences of large sums
        return [layer @ flat[number - 1].mT / layer.shape[-1] for number, layer in enumerate(flat)]


def gram_distance(teacher: NetworkOutput, student: NetworkOutput) -> Float[Tensor, "b"]:
    """Return the distance between the Gram matrices of teacher and student (GSME).

    The matrices hold the channel products of each two of entry, style and content. Each layer is scaled to a mean
    square of 1, and the distance is a mean over the entries of each matrix. It is at most 12, and weaker features do
    not make it smaller. Eq. (11).
    """

    def products(seen: NetworkOutput) -> list[Tensor]:
        layers = (seen.entry, seen.style, seen.content)
        return style_products([functional.rms_norm(layer.float(), layer.shape[1:], eps=1e-12) for layer in layers])

    pairs = zip(products(teacher), products(student), strict=True)
    return torch.stack([mean_square(one, other) for one, other in pairs]).sum(0)


class MSTKDNet(Segmenter):
    """Teacher and student that are trained together; only the student segments."""

    pretrainable: ClassVar[Mapping[str, str]] = {
        "encoder": r"(?:student|teacher)\.((?:enter|stages|bottleneck|style|fuse)\..+)",
        "decoder": r"(?:student|teacher)\.((?:narrow|merge)\..+)",
    }

    def __init__(self, config: Config, labels: tuple[Label, ...]) -> None:
        super().__init__(labels)
        self.config = config
        self.student = Network(config, len(labels) + 1)
        self.teacher = Network(config, len(labels) + 1)
        self.discriminator = Discriminator(config.widths[-1], config.style_width)

    @property
    def stride(self) -> int:
        """Voxels that a crop's sides have to be a multiple of: those of one token."""
        return self.config.stride

    @property
    def fixed_windows(self) -> bool:
        """True, because position embeddings are trained for crops of one size."""
        return True

    @property
    def training_only(self) -> tuple[str, ...]:
        """Names of the teacher and the discriminator."""
        return ("teacher", "discriminator")

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Modules to compile: student and teacher."""
        return self.student, self.teacher

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Modules to recompute: residual blocks, and layers of the transformers."""
        return tuple(outermost(self, (Residual, TransformerLayer)))

    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Return the student's probability of each label, and of no label.

        They are independent sigmoids: the channels do not sum to 1.
        """
        seen: NetworkOutput = self.student(blanked(image, available))
        return seen.logits.sigmoid()

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """Return the features of the student's decoder, finest first."""
        return self.student.features(blanked(image, available))[0]

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of `terms` and `adversaries`.

        The teacher sees the available modalities of each sample, the student a random subset of them.
        """
        assert batch.target is not None, "supervised training needs a reference for every crop"
        # The teacher also runs where no sample is complete, because every rank needs the same gradients to add.
        keep = bool(self.config.attention)
        teacher: NetworkOutput = self.teacher(blanked(batch.image, batch.available), keep)
        student: NetworkOutput = self.student(blanked(batch.image, draw_subsets(batch.available)), keep)
        target, complete = label_maps(batch.target, self.labels), batch.available.all(1)
        terms = self.terms(teacher, student, target, complete=complete, fraction=progress.fraction)
        return terms | self.adversaries(teacher, student, complete)

    def terms(
        self,
        teacher: NetworkOutput,
        student: NetworkOutput,
        target: Float[Tensor, "b k x y z"],
        complete: Bool[Tensor, "b"],
        fraction: float,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the segmentation terms of both networks and the distillation terms, multiplied by their weights.

        A distillation term whose weight is 0 is not computed, and is 0.

        Args:
            teacher: the teacher's output.
            student: the student's output.
            target: one map for each label and one for none.
            complete: samples with all modalities. The others train the student's segmentation only.
            fraction: share of the training that is done.

        Eq. (13).
        """
        config = self.config
        by_teacher = _complete_dice(teacher, target, complete)
        by_student = squared_dice(student.logits.sigmoid(), target)
        fixed = teacher.detached() if config.detach_teacher else teacher
        prediction = class_distance(fixed.logits.sigmoid(), student.logits.sigmoid())
        ends = (student.logits, fixed.logits)
        if config.released_terms:
            by_student = torch.cat([by_student[:-1], by_teacher[-1:]])
            prediction = torch.cat([prediction[:, :-1], by_teacher[None, -1:].expand(len(prediction), 1)], 1)
            ends = (fixed.logits, student.logits)

        def distilled(weight: float, distance: Callable[[], Float[Tensor, "b"]]) -> Float[Tensor, ""]:
            return weight * _mean(distance(), complete) if weight else target.new_zeros(())

        ramped = config.prediction * prediction_weight(fraction, config.ramp)
        return {
            "segment/teacher": config.teacher * by_teacher.sum(),
            "segment/student": config.student * by_student.sum(),
            "content": distilled(config.content, lambda: mean_square(fixed.content, student.content)),
            "mstkd/features": distilled(config.features, lambda: scale_distance(fixed, student)),
            "mstkd/attention": distilled(config.attention, lambda: attention_distance(fixed, student)),
            "dmld/prediction": distilled(ramped, lambda: prediction.sum(1)),
            "dmld/logits": distilled(
                config.logits, lambda: logit_divergence(*ends, config.temperature, config.standardise)
            ),
            "gsme/gram": distilled(config.gram, lambda: gram_distance(fixed, student)),
        }

    def adversaries(
        self, teacher: NetworkOutput, student: NetworkOutput, complete: Bool[Tensor, "b"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the adversarial terms of student and discriminator (GSME), from samples with all modalities.

        Only the student's term has a weight, `Config.adversary`.
        The student learns to be classified as a teacher, the discriminator to tell them apart. The gradients of their
        sum are those of two alternating steps. Eq. (14).
        """

        def adversarial(logits: Tensor, missing: float) -> Tensor:
            target = torch.full_like(logits, missing)
            return _mean(functional.binary_cross_entropy_with_logits(logits, target, reduction="none"), complete)

        return {
            "gsme/adversary": self.config.adversary * adversarial(frozen(self.discriminator)(student.style), 0.0),
            "gsme/discriminator": adversarial(self.discriminator(teacher.style.detach()), 0.0)
            + adversarial(self.discriminator(student.style.detach()), 1.0),
        }

    def parameter_groups(self) -> list[dict]:
        """Return two groups: student and teacher together, and the discriminator.

        The discriminator has its own learning rate (`Config.adversary_rate`) and betas, and no weight decay.
        """
        return [
            {"params": [*self.student.parameters(), *self.teacher.parameters()]},
            {
                "params": list(self.discriminator.parameters()),
                "scale": self.config.adversary_rate,
                "betas": self.config.adversary_betas,
                "weight_decay": 0.0,
            },
        ]

    @classmethod
    def dataset_note(cls, available: Mapping[Modality, int]) -> str:
        """Return a line on how many studies are complete and train the teacher. Raises: UsageError if none is."""
        complete, total = available.get(ALL, 0), sum(available.values())
        if not complete:
            raise UsageError(
                f"MST-KDNet's teacher needs studies with all four sequences; none of these {total} has them. Add "
                "complete studies, or train unet, rfnet or mmformer, which need none."
            )
        return f"{complete} of {total} studies have all four sequences and teach; the others train the student alone"

    def decode(self, probabilities: Float[Tensor, "b k x y z"]) -> Int[Tensor, "b x y z"]:
        """Return labels from probabilities above one half; where several labels are, the innermost; where none is, 0.

        The unions of the labels are then the regions of the authors' thresholds. A cavity is only where no tumour is.
        """
        labels = torch.zeros_like(probabilities[:, 0], dtype=torch.int64)
        for label in (Label.RC, Label.ED, Label.NCR, Label.ET):
            if label in self.labels:
                labels[probabilities[:, self.labels.index(label)] > 0.5] = label
        return labels

    def region_probabilities(self, probabilities: Float[Tensor, "b k x y z"]) -> dict[Region, Float[Tensor, "b x y z"]]:
        """Return the highest probability of a region's labels."""
        return {
            region: torch.stack([probabilities[:, self.labels.index(label)] for label in region.value]).amax(0)
            for region in self.regions
        }


def _mean(values: Float[Tensor, "b"], kept: Bool[Tensor, "b"]) -> Float[Tensor, ""]:
    """Return the mean over all samples, with 0 for those not kept.

    Each sample then counts the same, however a batch is divided.
    """
    return (values * kept).mean()


def _complete_dice(
    seen: NetworkOutput, target: Float[Tensor, "b k x y z"], kept: Bool[Tensor, "b"]
) -> Float[Tensor, "k"]:
    """Return the squared Dice over the kept samples, times their share."""
    some = kept[:, None, None, None, None]
    return squared_dice(seen.logits.sigmoid() * some, target * some) * kept.float().mean()
