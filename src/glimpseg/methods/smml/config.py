"""Settings of SMML: branches, choice of reliable voxels, weight of each loss term."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from glimpseg.nets import token_fusion


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """SMML (Liang et al., AAAI 2025): settings of network and objective.

    The defaults correct the released code (see Departures); `OFFICIAL` is as released, as far as it was released.
    """

    network: token_fusion.Config = token_fusion.Config()
    """Settings of each branch: mmFormer's."""
    branch: Literal["both", 1, 2] = "both"
    """Branches that segment: both, by the mean of their logits (authors' code), or one, for half the cost. Training
    always has both, so this setting can be changed afterwards."""

    pixel: float = 1.0
    """Weight of the divergence from the peer at reliable voxels. Authors' code: 1."""
    reliable: Literal["better", "correct", "correct_self_wrong", "confident"] = "better"
    """Voxels at which a branch learns from its peer. `better`: the peer is right, and the branch is wrong or less
    confident. `correct`: the peer is right. `correct_self_wrong`: the peer is right and the branch wrong. `confident`:
    the peer is confident, right or not. Ours: the authors' rule is unpublished."""
    confidence: float = 0.9
    """Probability above which a peer counts as `confident`. Ours."""
    balanced: bool = True
    """True averages over classes, because background would dominate an average over voxels. Ours."""
    feature: float = 1.0
    """Weight of the distance between relations of deep features. Authors' code: 1."""
    nodes: Literal["prototypes", "samples"] = "prototypes"
    """Features whose relations are compared: each sample's mean feature of each class (`prototypes`), or each sample's
    whole feature (`samples`), the only choice that the released layout of tokens allows. Ours."""
    entropy_weights: bool = True
    """True weighs relations by the sum of both branches' entropies. Ours, after MMANet."""

    refinement: float = 1.0
    """Weight of the refined segmentation, which needs a prior (`data.prior`); 0 leaves the refiners out. Authors' code:
    1."""
    agreement: float = 1.0
    """Weight of the divergence from the refined segmentation. Authors' code: 1."""
    refine_width: int = 32
    """Channels of a refiner's first level; doubled at each of three halvings. Authors' code: 32."""
    refine_norm: Literal["instance", "batch"] = "instance"
    """Norm layers of the refiners. Authors' code: batch norm, over one sample on each GPU."""
    gate: Literal["prediction", "reference"] = "prediction"
    """Source of the class proportions that a refiner expects: the branch's prediction, or the reference (authors'
    code)."""
    start: float = 0.1
    """Share of the training after which branches learn from peers and refiners. Authors' code: 101 of 1000 epochs."""

    def __post_init__(self) -> None:
        if self.nodes == "prototypes" and self.network.layout == "released":
            raise ValueError(
                "nodes should be samples where network.layout is released: its deepest voxels have no place in the "
                "image, so that no label is theirs. Change one of them."
            )
        for name in ("start", "confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} should lie between 0 and 1, not {getattr(self, name)}.")
        if self.refine_width < 1:
            raise ValueError(f"refine_width should be at least 1, not {self.refine_width}.")
        if self.agreement and not self.refinement:
            raise ValueError(
                f"agreement should be 0 where refinement is 0, not {self.agreement}: there is nothing to agree with."
            )


OFFICIAL = Config(network=token_fusion.OFFICIAL, nodes="samples", refine_norm="batch", gate="reference", start=0.101)
"""Settings of the released branches, refiners and schedule. Where nothing was released: the defaults, as far as the
released layout of tokens allows them."""
