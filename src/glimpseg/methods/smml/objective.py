"""Objective of SMML: equations, and the learner whose two branches see different subsets of the same crop."""

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

PROBABILITY_FLOOR = 0.005
"""Lower bound of probabilities in a logarithm, as in mmFormer's cross-entropy."""
LEAST_VOXELS = 1e-3
"""Smallest size of a class that has a prototype, in voxels of the deepest level."""
EXPECTED_FLOOR = {"prediction": 1e-3, "reference": 1e-7}
"""Number added to a class's expected share before a division, by `Config.gate`. Authors' code, for the reference: 1e-7,
which makes a ratio of a million for an absent class."""


def two_subsets(available: Bool[Tensor, "b m"]) -> tuple[Bool[Tensor, "b m"], Bool[Tensor, "b m"]]:
    """Return two different non-empty subsets of each sample's modalities, all pairs equally likely.

    A sample with one modality gets it twice. Eq. (2).
    """
    rows, possible = subsets_within(available)
    order = torch.rand(possible.shape, device=available.device).masked_fill(~possible, -1).topk(2, 1)
    second = torch.where(order.values[:, 1] >= 0, order.indices[:, 1], order.indices[:, 0])
    return rows[order.indices[:, 0]], rows[second]


def divergence(teacher: Float[Tensor, "b k x y z"], student: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b x y z"]:
    """Return the Kullback-Leibler divergence of the student from the teacher at each voxel.

    In the logarithms, probabilities are at least `PROBABILITY_FLOOR`.

    Args:
        teacher: class probabilities.
        student: class probabilities.

    Eq. (4).
    """
    return (teacher * (teacher.clamp(PROBABILITY_FLOOR, 1).log() - student.clamp(PROBABILITY_FLOOR, 1).log())).sum(1)


def reliable_voxels(
    peer: Float[Tensor, "b k x y z"],
    own: Float[Tensor, "b k x y z"],
    target: Float[Tensor, "b k x y z"],
    rule: Literal["better", "correct", "correct_self_wrong", "confident"] = "better",
    confidence: float = 0.9,
) -> Bool[Tensor, "b x y z"]:
    """Return True for the voxels at which a branch learns from its peer.

    Args:
        peer: class probabilities of the other branch.
        own: class probabilities of the branch.
        target: reference, one map for each class.
        rule: as `Config.reliable`.
        confidence: as `Config.confidence`.

    Eq. (5).
    """
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
    """Return the divergence from the peer at the reliable voxels.

    It is the mean over the reliable voxels of each class, then over all classes; a class without any counts as 0.

    Args:
        peer: class probabilities of the other branch.
        own: class probabilities of the branch.
        target: reference, one map for each class.
        reliable: voxels at which the branch learns from its peer.
        balanced: False for one mean over all reliable voxels.

    Eq. (6).
    """
    apart = divergence(peer, own)
    taught = target * reliable[:, None] if balanced else reliable[:, None].to(target)
    axes = (0, 2, 3, 4)
    return ((apart[:, None] * taught).sum(axes) / taught.sum(axes).clamp_min(1)).mean()


class Nodes(NamedTuple):
    """Features whose relations are compared: of each sample's classes, or of whole samples (then k is 1)."""

    features: Float[Tensor, "b k c"]
    present: Bool[Tensor, "b k"]
    """True for nodes that exist: a sample may lack a class."""
    entropy: Float[Tensor, "b k"]
    """Mean entropy of the branch's probabilities, as uncertainty."""


def prototypes(
    deepest: Float[Tensor, "b c u v w"],
    target: Float[Tensor, "b k x y z"],
    probabilities: Float[Tensor, "b k x y z"],
) -> Nodes:
    """Return the nodes of each class in each sample: its mean deep feature and its mean entropy.

    Args:
        deepest: deep features.
        target: reference, one map for each class.
        probabilities: class probabilities of the branch, for the uncertainty.

    Eq. (7).
    """
    share = downsample_target(target, deepest.shape[2:]).flatten(2)  # b k n
    total = share.sum(2)
    with torch.autocast(deepest.device.type, enabled=False):  # their differences are small
        sums = share @ deepest.float().flatten(2).mT  # b k c
    features = sums / total.clamp_min(LEAST_VOXELS)[:, :, None]
    unsure = (_entropy(probabilities)[:, None] * target).sum((2, 3, 4)) / target.sum((2, 3, 4)).clamp_min(1)
    return Nodes(features, total > LEAST_VOXELS, unsure)


def whole_samples(deepest: Float[Tensor, "b c u v w"], probabilities: Float[Tensor, "b k x y z"]) -> Nodes:
    """Return one node for each sample: all its deep features as one vector, in memory order, and its mean entropy."""
    features = deepest.float().flatten(1)[:, None]
    present = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    return Nodes(features, present, _entropy(probabilities).mean((1, 2, 3))[:, None])


def relation_distance(own: Nodes, peer: Nodes, entropy_weights: bool = True) -> Float[Tensor, ""]:
    """Return the mean squared difference between the branches' cosine similarities of pairs of nodes.

    Pairs are those of all present nodes, of all samples of all ranks.

    Args:
        own: nodes of the branch.
        peer: nodes of the other branch.
        entropy_weights: True weighs the relations of a node by its entropy in both branches; False weighs all alike.

    Eq. (8).
    """
    present = (gather_from_ranks(own.present.float()) > 0).flatten()
    unsure = gather_from_ranks((own.entropy + peer.entropy).detach()).flatten()
    weights = torch.where(present, unsure if entropy_weights else torch.ones_like(unsure), unsure.new_zeros(()))
    weights = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    both = [functional.normalize(gather_from_ranks(nodes.features).flatten(0, 1), dim=1) for nodes in (own, peer)]
    with torch.autocast(both[0].device.type, enabled=False):
        one, other = (features @ features.T for features in both)
    rows = ((one - other).square() * present).sum(1) / present.sum().clamp_min(1)
    return (weights * rows).sum()


class BranchOutput(NamedTuple):
    """Output of one branch for its subset."""

    seen: Bool[Tensor, "b m"]
    """Modalities that the branch has seen, in the order of `Modality`."""
    logits: Float[Tensor, "b k x y z"]
    probabilities: Float[Tensor, "b k x y z"]
    maps: FusionOutputs
    nodes: Nodes

    def detached(self) -> BranchOutput:
        """Return a copy for use as a peer: no gradient flows into its logits, probabilities and nodes.

        `maps`, which a peer does not use, is not detached.
        """
        return self._replace(
            logits=self.logits.detach(),
            probabilities=self.probabilities.detach(),
            nodes=Nodes(*(value.detach() for value in self.nodes)),
        )


class SMML(Segmenter):
    """Two mmFormers that see different subsets and learn from each other."""

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
        """Voxels that a crop's sides have to be a multiple of, for branches and refiners."""
        return max(self.config.network.stride, HALVED if self.refiners else 1)

    @property
    def smallest(self) -> int:
        """Smallest side of a crop, in voxels: two at the deepest level, for padding by reflection and for norms."""
        return 2 * max(self.config.network.stride, self.stride)

    @property
    def fixed_windows(self) -> bool:
        """True for the released token layout, whose arrangement depends on the size of the crop."""
        return self.config.network.layout == "released"

    @property
    def training_only(self) -> tuple[str, ...]:
        """Name of the refiners, if `Config.refinement` is not 0; segmenting needs neither them nor priors."""
        return ("refiners",) if self.config.refinement else ()

    @property
    def needs_prior(self) -> bool:
        """True if `Config.refinement` is not 0, so that training has refiners."""
        return bool(self.config.refinement)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Modules to compile: encoders, transformers and decoders of the branches, and the refiners."""
        return tuple(outermost(self, (*token_fusion.NETWORKS, Refiner)))

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Modules to recompute: stages of encoders, layers of transformers, and blocks of decoders and refiners."""
        return tuple(outermost(self, (*token_fusion.STAGES, Block)))

    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Return class probabilities of the branch in `Config.branch`, or of the mean logits of both. Eq. (3)."""
        return self.fuse(self.encode(image, available), available)

    def encode(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> list[Features]:
        """Return the features of each branch that segments, see `Config.branch`."""
        image, available = blanked(image, available)[:, CHANNELS], available[:, CHANNELS]
        return [branch.encode(image, available) for branch in self._used_branches]

    def fuse(self, features: list[Features], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Return class probabilities from the features of the available modalities."""
        both = zip(self._used_branches, features, strict=True)
        logits = [branch.fuse(seen, available[:, CHANNELS]).logits for branch, seen in both]
        return torch.stack(logits).mean(0).softmax(1)

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """Return the features of the first branch's encoders, finest first.

        Modalities are concatenated along the channels, 0 where absent.
        """
        first: Any = self.branches[0]
        return first.pyramid(blanked(image, available)[:, CHANNELS], available[:, CHANNELS])

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of `terms` by name, each the sum of both branches. Eq. (1)."""
        assert batch.target is not None, "supervised training needs a reference for every crop"
        target = one_hot(batch.target, self.labels)
        outputs = [
            self.output(branch, batch, seen, target)
            for branch, seen in zip(self._all_branches, two_subsets(batch.available), strict=True)
        ]
        late = progress.fraction >= self.config.start
        first, second = (
            self.terms(number, own, peer.detached(), batch=batch, target=target, late=late)
            for number, (own, peer) in enumerate((outputs, outputs[::-1]))
        )
        return {name: first[name] + second[name] for name in first}

    def output(
        self, branch: TokenFusion, batch: Batch, seen: Bool[Tensor, "b m"], target: Float[Tensor, "b k x y z"]
    ) -> BranchOutput:
        """Return the output of a branch whose fusion sees a subset of the modalities.

        Its single-modality maps are of all available modalities.

        Args:
            branch: the network.
            batch: crops of several studies.
            seen: subset of each sample's modalities.
            target: reference, one map for each class.
        """
        image = blanked(batch.image, batch.available)[:, CHANNELS]
        features = branch.encode(image, batch.available[:, CHANNELS])
        fused = branch.fuse(features, seen[:, CHANNELS])
        maps = branch.supervised(features, fused)
        nodes = (
            prototypes(fused.deepest, target, maps.fused)
            if self.config.nodes == "prototypes"
            else whole_samples(fused.deepest, maps.fused)
        )
        return BranchOutput(seen=seen, logits=fused.logits, probabilities=maps.fused, maps=maps, nodes=nodes)

    def terms(
        self,
        number: int,
        own: BranchOutput,
        peer: BranchOutput,
        *,
        batch: Batch,
        target: Float[Tensor, "b k x y z"],
        late: bool,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted loss terms of one branch; their gradient reaches only that branch and its refiner.

        They are those of `region_fusion_terms`, `pixel`, `feature`, `refine/ce`, `refine/dice` and `refine/agree`. A
        term with weight 0, or that is not yet due, is 0.

        Args:
            number: index of the branch.
            own: output of the branch.
            peer: detached output of the other branch.
            batch: crops of several studies.
            target: reference, one map for each class.
            late: False before the branches learn from peers and refiners: `pixel` and `refine/agree` are then 0.

        Eq. (1).
        """
        config, nothing = self.config, target.new_zeros(())
        terms = region_fusion_terms(own.maps, target, batch.available[:, CHANNELS])
        terms["pixel"] = terms["feature"] = nothing
        if config.pixel and late:
            reliable = reliable_voxels(
                peer.probabilities,
                own.probabilities.detach(),
                target,
                rule=config.reliable,
                confidence=config.confidence,
            )
            apart = pixel_divergence(
                peer.probabilities, own.probabilities, target, reliable=reliable, balanced=config.balanced
            )
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
        self, number: int, own: BranchOutput, batch: Batch, target: Float[Tensor, "b k x y z"]
    ) -> Float[Tensor, "b k x y z"]:
        """Return the logits of a branch's refiner; no gradient reaches the branch.

        Args:
            number: index of the branch.
            own: output of the branch.
            batch: crops of several studies, with priors.
            target: reference, one map for each class.
        """
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
        """Return two parameter groups, each a branch and its refiner, because gradients are clipped by group."""
        groups: list[list[nn.Parameter]] = [list(branch.parameters()) for branch in self.branches]
        for group, refiner in zip(groups, self.refiners or (), strict=False):
            group.extend(refiner.parameters())
        return [{"params": group} for group in groups]

    @property
    def _all_branches(self) -> list[TokenFusion]:
        return list(self.branches)  # type: ignore[arg-type]

    @property
    def _used_branches(self) -> list[TokenFusion]:
        return self._all_branches if self.config.branch == "both" else [self._all_branches[self.config.branch - 1]]


def prior_maps(prior: Int[Tensor, "b m x y z"], labels: Sequence[int]) -> Float[Tensor, "b k m x y z"]:
    """Return prior label maps as one map for the background and one for each label, of each modality."""
    maps = one_hot(prior.flatten(0, 1), labels)
    return maps.unflatten(0, prior.shape[:2]).transpose(1, 2)


def _entropy(probabilities: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b x y z"]:
    """Entropy of the class probabilities at each voxel, without gradient."""
    return torch.special.entr(probabilities.detach()).sum(1)
