"""What SMML minimises: the equations, and two branches that see different subsets of one crop and teach each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from glimpseg.data.crops import Batch
from glimpseg.losses import (
    FusionOutputs,
    downsample_target,
    one_hot,
    region_fusion_terms,
    soft_dice_loss,
    weighted_cross_entropy,
)
from glimpseg.method import Progress, Segmenter, blanked, subsets_within
from glimpseg.methods.smml.config import Config
from glimpseg.methods.smml.network import HALVED, Block, Refiner
from glimpseg.nets import token_fusion
from glimpseg.nets.pyramid import CHANNELS
from glimpseg.nets.recompute import outermost
from glimpseg.nets.token_fusion import Features, TokenFusion
from glimpseg.region import Label
from glimpseg.runtime.distributed import gather_from_ranks

FLOOR = 0.005
"""Probabilities are not let below it in a logarithm, as in mmFormer's cross-entropy."""
LEAST = 1e-3
"""Voxels of the deepest level that a class has to fill to have a prototype."""
EXPECTED_FLOOR = {"prediction": 1e-3, "reference": 1e-7}
"""Added to a class's expected share before something is divided by it. Authors' code, of the reference: 1e-7, so that a
class that is not there makes a ratio of a million."""


def two_subsets(available: Bool[Tensor, "b m"]) -> tuple[Bool[Tensor, "b m"], Bool[Tensor, "b m"]]:
    """For each sample two different non-empty subsets of what it has, all pairs equally likely; of a sample with one
    modality twice that one. Eq. (2)."""
    rows, possible = subsets_within(available)
    order = torch.rand(possible.shape, device=available.device).masked_fill(~possible, -1).topk(2, 1)
    second = torch.where(order.values[:, 1] >= 0, order.indices[:, 1], order.indices[:, 0])
    return rows[order.indices[:, 0]], rows[second]


def divergence(teacher: Float[Tensor, "b k x y z"], student: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b x y z"]:
    """Kullback-Leibler divergence of the student's from the teacher's probabilities at each voxel. Eq. (4)."""
    return (teacher * (teacher.clamp(FLOOR, 1).log() - student.clamp(FLOOR, 1).log())).sum(1)


def reliable_voxels(
    peer: Float[Tensor, "b k x y z"],
    own: Float[Tensor, "b k x y z"],
    target: Float[Tensor, "b k x y z"],
    rule: Literal["better", "correct", "correct_self_wrong", "confident"] = "better",
    confidence: float = 0.9,
) -> Bool[Tensor, "b x y z"]:
    """Where a branch learns from its peer. Eq. (5)."""
    if rule == "confident":
        return peer.amax(1) > confidence
    label = target.argmax(1)
    right, self_right = (probabilities.argmax(1) == label for probabilities in (peer, own))
    if rule == "correct":
        return right
    if rule == "correct_self_wrong":
        return right & ~self_right
    return right & (~self_right | ((peer * target).sum(1) > (own * target).sum(1)))


def pixel_divergence(
    peer: Float[Tensor, "b k x y z"],
    own: Float[Tensor, "b k x y z"],
    target: Float[Tensor, "b k x y z"],
    reliable: Bool[Tensor, "b x y z"],
    balanced: bool = True,
) -> Float[Tensor, ""]:
    """Divergence from the peer, mean over the voxels of each class where it is reliable, then over all classes; 0 for
    a class without such voxels. Eq. (6)."""
    apart = divergence(peer, own)
    taught = target * reliable[:, None] if balanced else reliable[:, None].to(target)
    axes = (0, 2, 3, 4)
    return ((apart[:, None] * taught).sum(axes) / taught.sum(axes).clamp_min(1)).mean()


class Nodes(NamedTuple):
    """What is related: features of each sample's classes, or of whole samples (k is then 1)."""

    features: Float[Tensor, "b k c"]
    present: Bool[Tensor, "b k"]
    entropy: Float[Tensor, "b k"]
    """How unsure the branch is there."""


def prototypes(
    deepest: Float[Tensor, "b c u v w"],
    target: Float[Tensor, "b k x y z"],
    probabilities: Float[Tensor, "b k x y z"],
) -> Nodes:
    """The mean deep feature of each class in each sample. Eq. (7)."""
    share = downsample_target(target, deepest.shape[2:]).flatten(2)  # b k n
    total = share.sum(2)
    with torch.autocast(deepest.device.type, enabled=False):  # their differences are small
        sums = share @ deepest.float().flatten(2).mT  # b k c
    features = sums / total.clamp_min(LEAST)[:, :, None]
    unsure = (_entropy(probabilities)[:, None] * target).sum((2, 3, 4)) / target.sum((2, 3, 4)).clamp_min(1)
    return Nodes(features, total > LEAST, unsure)


def whole_samples(deepest: Float[Tensor, "b c u v w"], probabilities: Float[Tensor, "b k x y z"]) -> Nodes:
    """Each sample's deep feature as it lies in memory."""
    features = deepest.float().flatten(1)[:, None]
    present = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    return Nodes(features, present, _entropy(probabilities).mean((1, 2, 3))[:, None])


def relation_distance(own: Nodes, peer: Nodes, entropy_weights: bool = True) -> Float[Tensor, ""]:
    """Between the cosines of each two nodes, of all samples on all ranks; relations of what is uncertain weigh more.
    Nodes that are absent have none. Eq. (8)."""
    present = (gather_from_ranks(own.present.float()) > 0).flatten()
    unsure = gather_from_ranks((own.entropy + peer.entropy).detach()).flatten()
    weights = torch.where(present, unsure if entropy_weights else torch.ones_like(unsure), unsure.new_zeros(()))
    weights = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    both = [functional.normalize(gather_from_ranks(nodes.features).flatten(0, 1), dim=1) for nodes in (own, peer)]
    with torch.autocast(both[0].device.type, enabled=False):
        one, other = (features @ features.T for features in both)
    rows = ((one - other).square() * present).sum(1) / present.sum().clamp_min(1)
    return (weights * rows).sum()


class Output(NamedTuple):
    """What one branch makes of its subset."""

    seen: Bool[Tensor, "b m"]
    """In our order of modalities."""
    logits: Float[Tensor, "b k x y z"]
    probabilities: Float[Tensor, "b k x y z"]
    maps: FusionOutputs
    nodes: Nodes

    def detached(self) -> Output:
        """The same as a peer: no gradient leads into it."""
        return self._replace(
            logits=self.logits.detach(),
            probabilities=self.probabilities.detach(),
            nodes=Nodes(*(value.detach() for value in self.nodes)),
        )


class SMML(Segmenter):
    """Two mmFormers that never see the same subset."""

    choices = ("branch",)
    pretrainable: ClassVar[Mapping[str, str]] = {"encoder": r"branches\.\d\.encoders\.(.+)"}

    def __init__(self, config: Config, labels: tuple[Label, ...]) -> None:
        super().__init__(labels)
        self.config = config
        classes = len(labels) + 1
        self.branches = nn.ModuleList(TokenFusion(config.network, classes) for _ in range(2))
        self.refiners = None
        if config.refinement:
            self.refiners = nn.ModuleList(
                Refiner(classes, len(CHANNELS), config.refine_width, config.refine_norm) for _ in range(2)
            )

    @property
    def stride(self) -> int:
        """Of the branches, and of the refiners where there are any."""
        return max(self.config.network.stride, HALVED if self.refiners else 1)

    @property
    def smallest(self) -> int:
        """Two voxels at the deepest level, of refiners too: fewer cannot be reflected at the border, or normalised."""
        return 2 * max(self.config.network.stride, self.stride)

    @property
    def fixed_windows(self) -> bool:
        """The released layout means another arrangement for every size."""
        return self.config.network.layout == "released"

    @property
    def training_only(self) -> tuple[str, ...]:
        """Segmenting needs neither refiners nor priors."""
        return ("refiners",) if self.config.refinement else ()

    @property
    def needs_prior(self) -> bool:
        """Only refiners use one."""
        return bool(self.config.refinement)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Encoders, transformers and decoders of the branches, and the refiners."""
        return tuple(outermost(self, (*token_fusion.NETWORKS, Refiner)))

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Encoders' stages, layers of the transformers, and the blocks of decoders and refiners."""
        return tuple(outermost(self, (*token_fusion.STAGES, Block)))

    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Probabilities of one branch, or from the mean of both branches' logits. Eq. (3)."""
        return self.fuse(self.encode(image, available), available)

    def encode(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> list[Features]:
        """Of each branch that is asked."""
        image, available = blanked(image, available)[:, CHANNELS], available[:, CHANNELS]
        return [branch.encode(image, available) for branch in self._asked]

    def fuse(self, features: list[Features], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """From the available modalities' features."""
        both = zip(self._asked, features, strict=True)
        logits = [branch.fuse(seen, available[:, CHANNELS]).logits for branch, seen in both]
        return torch.stack(logits).mean(0).softmax(1)

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """The encoders' maps of the first branch, modalities side by side."""
        first: Any = self.branches[0]
        return first.pyramid(blanked(image, available)[:, CHANNELS], available[:, CHANNELS])

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Both branches' terms, added up. Eq. (1)."""
        assert batch.target is not None, "supervised training needs a reference for every crop"
        target = one_hot(batch.target, self.labels)
        outputs = [
            self.output(branch, batch, seen, target)
            for branch, seen in zip(self._both, two_subsets(batch.available), strict=True)
        ]
        late = progress.fraction >= self.config.start
        first, second = (
            self.terms(number, own, peer.detached(), batch, target, late)
            for number, (own, peer) in enumerate((outputs, outputs[::-1]))
        )
        return {name: first[name] + second[name] for name in first}

    def output(
        self, branch: TokenFusion, batch: Batch, seen: Bool[Tensor, "b m"], target: Float[Tensor, "b k x y z"]
    ) -> Output:
        """What a branch makes of the batch, had each sample only what is `seen` of it."""
        image = blanked(batch.image, batch.available)[:, CHANNELS]
        features = branch.encode(image, batch.available[:, CHANNELS])
        fused = branch.fuse(features, seen[:, CHANNELS])
        maps = branch.supervised(features, fused)
        nodes = (
            prototypes(fused.deepest, target, maps.fused)
            if self.config.nodes == "prototypes"
            else whole_samples(fused.deepest, maps.fused)
        )
        return Output(seen, fused.logits, maps.fused, maps, nodes)

    def terms(
        self, number: int, own: Output, peer: Output, batch: Batch, target: Float[Tensor, "b k x y z"], late: bool
    ) -> dict[str, Float[Tensor, ""]]:
        """What one branch minimises: it reaches that branch and its refiner alone. Eq. (1)."""
        config, nothing = self.config, target.new_zeros(())
        terms = region_fusion_terms(own.maps, target, batch.available[:, CHANNELS])
        terms["pixel"] = terms["feature"] = nothing
        if config.pixel and late:
            rule = reliable_voxels(
                peer.probabilities, own.probabilities.detach(), target, config.reliable, config.confidence
            )
            apart = pixel_divergence(peer.probabilities, own.probabilities, target, rule, config.balanced)
            terms["pixel"] = config.pixel * apart
        if config.feature:
            terms["feature"] = config.feature * relation_distance(own.nodes, peer.nodes, config.entropy_weights)
        terms |= dict.fromkeys(("refine/ce", "refine/dice", "refine/agree"), nothing)
        if self.refiners is not None:
            refined = self.refined(number, own, batch, target).softmax(1)
            terms["refine/ce"] = config.refinement * weighted_cross_entropy(refined, target).mean()
            terms["refine/dice"] = config.refinement * soft_dice_loss(refined, target, smooth=(0, 1e-7))
            if config.agreement and late:
                terms["refine/agree"] = config.agreement * divergence(refined.detach(), own.probabilities).mean()
        return terms

    def refined(
        self, number: int, own: Output, batch: Batch, target: Float[Tensor, "b k x y z"]
    ) -> Float[Tensor, "b k x y z"]:
        """Logits of a branch's refiner, from the branch's own and the priors of what it has seen; no gradient reaches
        the branch."""
        assert self.refiners is not None
        assert batch.prior is not None, "a refiner needs priors: set data.prior, or config.refinement to 0"
        refiner: Refiner = self.refiners[number]  # type: ignore[assignment]
        expected = own.probabilities.detach() if self.config.gate == "prediction" else target
        gated = refiner.gated(
            prior_maps(batch.prior, self.labels)[:, :, CHANNELS],
            own.seen[:, CHANNELS],
            expected.mean((2, 3, 4)),
            EXPECTED_FLOOR[self.config.gate],
        )
        return refiner(gated, own.logits.detach())

    def parameter_groups(self) -> list[dict]:
        """Each branch with its refiner, so that one branch's gradient does not shrink the other's step."""
        groups: list[list[nn.Parameter]] = [list(branch.parameters()) for branch in self.branches]
        for group, refiner in zip(groups, self.refiners or (), strict=False):
            group.extend(refiner.parameters())
        return [{"params": group} for group in groups]

    @property
    def _both(self) -> list[TokenFusion]:
        return list(self.branches)  # type: ignore[arg-type]

    @property
    def _asked(self) -> list[TokenFusion]:
        return self._both if self.config.branch == "both" else [self._both[self.config.branch - 1]]


def prior_maps(prior: Int[Tensor, "b m x y z"], labels: Sequence[int]) -> Float[Tensor, "b k m x y z"]:
    """One map for the background and one for each label, of each modality."""
    maps = one_hot(prior.flatten(0, 1), labels)
    return maps.unflatten(0, prior.shape[:2]).transpose(1, 2)


def _entropy(probabilities: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b x y z"]:
    return torch.special.entr(probabilities.detach()).sum(1)
