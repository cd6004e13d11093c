"""What MST-KDNet minimises: the equations, and teacher, student and discriminator trained by their sum."""

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
from glimpseg.methods.mstkdnet.network import Discriminator, Layer, Network, Residual, Seen
from glimpseg.modality import ALL, Modality
from glimpseg.nets.recompute import outermost
from glimpseg.region import Label, Region

AT_ONCE = 2**23
"""Entries of attention, of both networks, all layers, heads and samples, that are compared at a time: some 300 MB. The
released crop has a sixth of it for each sample."""


def label_maps(target: Int[Tensor, "b x y z"], labels: Sequence[int]) -> Float[Tensor, "b k x y z"]:
    """One map for each label and one for what has none, which comes last. A label that is not told apart is in no
    map."""
    return torch.stack([target == label for label in (*labels, 0)], 1).float()


def squared_dice(probabilities: Float[Tensor, "b k x y z"], target: Float[Tensor, "b k x y z"]) -> Float[Tensor, "k"]:
    """1 - Dice with squares in the denominator, each class over the whole batch. Eq. (4)."""
    axes = (0, 2, 3, 4)
    both = (probabilities * target).sum(axes)
    return 1 - 2 * both / (probabilities.square().sum(axes) + target.square().sum(axes) + 1e-7)


def mean_square(one: Float[Tensor, "b ..."], other: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
    """Of the differences within each sample. Eq. (5)."""
    return (one.float() - other.float()).square().flatten(1).mean(1)


def scale_distance(teacher: Seen, student: Seen) -> Float[Tensor, "b"]:
    """Between the scales of the two decoders in the bottleneck (MS-TKD). Eq. (6)."""
    return torch.stack([mean_square(*pair) for pair in zip(teacher.scales, student.scales, strict=True)]).sum(0)


def attention_distance(teacher: Seen, student: Seen) -> Float[Tensor, "b"]:
    """Between attentions, each weighted by the largest, the smallest and the mean of its entry over the tapped layers
    (MS-TKD's extreme values). Relative to even attention, so that it does not depend on how many tokens there are.

    Where there are many tokens, some rows of the matrices are compared at a time, and again in the backward pass:
    nothing of the matrices' size is kept beside them. Eq. (7).
    """
    both = (*teacher.attentions, *student.attentions)
    tokens = both[0].shape[-1]
    rows = max(1, AT_ONCE * tokens // sum(attention.numel() for attention in both))
    if rows >= tokens:
        return rows_distance(*both)
    total = both[0].new_zeros(len(both[0]))
    for part in zip(*(attention.split(rows, 2) for attention in both), strict=True):
        apart: Tensor = checkpoint(rows_distance, *part, use_reentrant=False, preserve_rng_state=False)
        total = total + apart * (part[0].shape[2] / tokens)
    return total


def rows_distance(*both: Float[Tensor, "b h r n"]) -> Float[Tensor, "b"]:
    """The same of some rows: those of the teacher's layers, then those of the student's."""
    layers = len(both) // 2
    stacks = [torch.stack(half, 1) * half[0].shape[-1] for half in (both[:layers], both[layers:])]
    total = stacks[0].new_zeros(len(stacks[0]))
    for extreme in (torch.amax, torch.amin, torch.mean):
        one, other = (stack * extreme(stack, 1, keepdim=True) for stack in stacks)
        total = total + layers * mean_square(one, other)
    return total


def prediction_weight(fraction: float, ramp: float) -> float:
    """From 0.0067 at the beginning of training to 1 at `ramp` of it. Eq. (8)."""
    done = min(fraction / ramp, 1.0) if ramp else 1.0
    return math.exp(-5 * (1 - done) ** 2)


def class_distance(teacher: Float[Tensor, "b k x y z"], student: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b k"]:
    """Mean square difference of each class's probabilities (DMLD's first mode). Eq. (9)."""
    return (teacher - student).square().mean((2, 3, 4))


def logit_divergence(
    student: Float[Tensor, "b k x y z"],
    teacher: Float[Tensor, "b k x y z"],
    temperature: float,
    axis: Literal["depth", "class"] = "depth",
) -> Float[Tensor, "b"]:
    """Kullback-Leibler divergence of the student's from the teacher's class probabilities, both from logits
    standardised along an axis, softened (DMLD's second mode). Eq. (10)."""
    along = -1 if axis == "depth" else 1

    def soft(logits: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(logits, along, keepdim=True)
        return ((logits - mean) / (deviation + 1e-7) / temperature).log_softmax(1)

    one, other = soft(student), soft(teacher)
    per_voxel = (other.exp() * (other - one)).sum(1)
    return temperature**2 / student.shape[1] * per_voxel.flatten(1).mean(1)


def style_products(layers: Sequence[Float[Tensor, "b c x y z"]]) -> list[Float[Tensor, "b c c"]]:
    """Of the channels of each layer with those of the one before it, the first's with the last's, mean over voxels."""
    flat = [layer.float().flatten(2) for layer in layers]
    with torch.autocast(flat[0].device.type, enabled=False):  # small differences of large sums
        return [layer @ flat[number - 1].mT / layer.shape[-1] for number, layer in enumerate(flat)]


def gram_distance(teacher: Seen, student: Seen) -> Float[Tensor, "b"]:
    """Between the matrices of products of each two of entry, style and content, each scaled to a mean square of 1, mean
    over the matrices' entries (GSME). It is at most 12, and no network makes it smaller by weaker features. Eq. (11).
    """

    def products(seen: Seen) -> list[Tensor]:
        layers = (seen.entry, seen.style, seen.content)
        return style_products([functional.rms_norm(layer.float(), layer.shape[1:], eps=1e-12) for layer in layers])

    pairs = zip(products(teacher), products(student), strict=True)
    return torch.stack([mean_square(one, other) for one, other in pairs]).sum(0)


class MSTKDNet(Segmenter):
    """Teacher and student are trained together; the student alone segments."""

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
        """A whole number of tokens."""
        return self.config.stride

    @property
    def fixed_windows(self) -> bool:
        """Positions are learned for windows of one size."""
        return True

    @property
    def training_only(self) -> tuple[str, ...]:
        """All but the student."""
        return ("teacher", "discriminator")

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Student and teacher."""
        return self.student, self.teacher

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Residual blocks and layers of the transformers."""
        return tuple(outermost(self, (Residual, Layer)))

    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """The student's probability of each label, and of none of them; they are independent and do not sum to 1."""
        seen: Seen = self.student(blanked(image, available))
        return seen.logits.sigmoid()

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """The student's decoder's maps."""
        return self.student.features(blanked(image, available))[0]

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """The teacher sees what there is, the student a subset of it."""
        assert batch.target is not None, "supervised training needs a reference for every crop"
        # The teacher also runs where it has nothing to say, so that every rank has the same gradients to add.
        keep = bool(self.config.attention)
        teacher: Seen = self.teacher(blanked(batch.image, batch.available), keep)
        student: Seen = self.student(blanked(batch.image, draw_subsets(batch.available)), keep)
        target, complete = label_maps(batch.target, self.labels), batch.available.all(1)
        terms = self.terms(teacher, student, target, complete, progress.fraction)
        return terms | self.adversaries(teacher, student, complete)

    def terms(
        self,
        teacher: Seen,
        student: Seen,
        target: Float[Tensor, "b k x y z"],
        complete: Bool[Tensor, "b"],
        fraction: float,
    ) -> dict[str, Float[Tensor, ""]]:
        """Segmentation by both, and what the student is taught: samples that are not `complete` teach nothing, and
        train the student alone. Eq. (13)."""
        config = self.config
        by_teacher = _masked_dice(teacher, target, complete)
        by_student = squared_dice(student.logits.sigmoid(), target)
        fixed = teacher.detached() if config.detach_teacher else teacher
        prediction = class_distance(fixed.logits.sigmoid(), student.logits.sigmoid())
        ends = (student.logits, fixed.logits)
        if config.released_terms:
            by_student = torch.cat([by_student[:-1], by_teacher[-1:]])
            prediction = torch.cat([prediction[:, :-1], by_teacher[None, -1:].expand(len(prediction), 1)], 1)
            ends = (fixed.logits, student.logits)

        def taught(weight: float, distance: Callable[[], Float[Tensor, "b"]]) -> Float[Tensor, ""]:
            return weight * _mean(distance(), complete) if weight else target.new_zeros(())

        ramped = config.prediction * prediction_weight(fraction, config.ramp)
        return {
            "segment/teacher": config.teacher * by_teacher.sum(),
            "segment/student": config.student * by_student.sum(),
            "content": taught(config.content, lambda: mean_square(fixed.content, student.content)),
            "mstkd/features": taught(config.features, lambda: scale_distance(fixed, student)),
            "mstkd/attention": taught(config.attention, lambda: attention_distance(fixed, student)),
            "dmld/prediction": taught(ramped, lambda: prediction.sum(1)),
            "dmld/logits": taught(
                config.logits, lambda: logit_divergence(*ends, config.temperature, config.standardise)
            ),
            "gsme/gram": taught(config.gram, lambda: gram_distance(fixed, student)),
        }

    def adversaries(self, teacher: Seen, student: Seen, complete: Bool[Tensor, "b"]) -> dict[str, Float[Tensor, ""]]:
        """The student's wish to be taken for a teacher, and the discriminator's to tell them apart (GSME). One sum of
        both has the gradients of two alternating steps. Eq. (14)."""

        def judged(logits: Tensor, missing: float) -> Tensor:
            wanted = torch.full_like(logits, missing)
            return _mean(functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none"), complete)

        return {
            "gsme/adversary": self.config.adversary * judged(frozen(self.discriminator)(student.style), 0.0),
            "gsme/discriminator": judged(self.discriminator(teacher.style.detach()), 0.0)
            + judged(self.discriminator(student.style.detach()), 1.0),
        }

    def parameter_groups(self) -> list[dict]:
        """The discriminator has moments of its own and no weight decay."""
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
        """How many studies teach. Raises: UsageError if none does."""
        complete, total = available.get(ALL, 0), sum(available.values())
        if not complete:
            raise UsageError(
                f"MST-KDNet's teacher needs studies with all four sequences; none of these {total} has them. Add "
                "complete studies, or train unet, rfnet or mmformer, which need none."
            )
        return f"{complete} of {total} studies have all four sequences and teach; the others train the student alone"

    def decode(self, probabilities: Float[Tensor, "b k x y z"]) -> Int[Tensor, "b x y z"]:
        """Whatever is likelier than not; where several labels are, the innermost: their unions are then the regions
        of the authors' thresholds. A cavity only where no tumour is."""
        labels = torch.zeros_like(probabilities[:, 0], dtype=torch.int64)
        for label in (Label.RC, Label.ED, Label.NCR, Label.ET):
            if label in self.labels:
                labels[probabilities[:, self.labels.index(label)] > 0.5] = label
        return labels

    def region_probabilities(self, probabilities: Float[Tensor, "b k x y z"]) -> dict[Region, Float[Tensor, "b x y z"]]:
        """The highest of a region's labels: a region is wherever one of its labels is."""
        return {
            region: torch.stack([probabilities[:, self.labels.index(label)] for label in region.value]).amax(0)
            for region in self.regions
        }


def _mean(values: Float[Tensor, "b"], kept: Bool[Tensor, "b"]) -> Float[Tensor, ""]:
    """Over all samples, those that are not kept with 0: however a batch is divided, a sample counts the same."""
    return (values * kept).mean()


def _masked_dice(seen: Seen, target: Float[Tensor, "b k x y z"], kept: Bool[Tensor, "b"]) -> Float[Tensor, "k"]:
    """Over the samples that are kept, weighted by their share."""
    some = kept[:, None, None, None, None]
    return squared_dice(seen.logits.sigmoid() * some, target * some) * kept.float().mean()
