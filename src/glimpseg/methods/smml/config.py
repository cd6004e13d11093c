"""What can be set of SMML: its branches, what makes a peer worth learning from, and the weight of each term."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from glimpseg.nets import token_fusion


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """SMML (Liang et al., AAAI 2025). The defaults mend the released code; `OFFICIAL` is as released, where it is."""

    network: token_fusion.Config = token_fusion.Config()
    """Of each branch: mmFormer's."""
    branch: Literal["both", 1, 2] = "both"
    """What segments: the mean of both branches' logits (authors' code), or one of them for half the cost. Training
    always has both, so that a trained model can be used either way."""

    pixel: float = 1.0
    """Weight of the divergence from the peer where it is reliable. Authors' code: 1."""
    reliable: Literal["better", "correct", "correct_self_wrong", "confident"] = "better"
    """Where the peer is learned from: where it is right and the branch itself wrong or less sure; where it is right;
    where it is right and the branch itself wrong; where it is sure, right or not. Ours: the authors' is unpublished."""
    confidence: float = 0.9
    """Probability from which a peer counts as `confident`. Ours."""
    balanced: bool = True
    """Average over classes, so that background does not swamp the rest; else over voxels. Ours."""
    feature: float = 1.0
    """Weight of the distance between relations of deep features. Authors' code: 1."""
    nodes: Literal["prototypes", "samples"] = "prototypes"
    """What is related: each sample's mean feature of each class, or each sample's whole feature, which is all that the
    released layout of tokens allows. Ours."""
    entropy_weights: bool = True
    """Relations of what both branches are unsure of weigh more. Ours, after MMANet."""

    refinement: float = 1.0
    """Weight of the refined segmentation, which needs a prior (`data.prior`); 0 leaves the refiners out. Authors' code:
    1."""
    agreement: float = 1.0
    """Weight of the divergence from the refined segmentation. Authors' code: 1."""
    refine_width: int = 32
    """Channels of a refiner's first level; doubled at each of three halvings. Authors' code: 32."""
    refine_norm: Literal["instance", "batch"] = "instance"
    """Of the refiners. Authors' code: batch, of one sample on each GPU."""
    gate: Literal["prediction", "reference"] = "prediction"
    """Whence a refiner knows how much of each class to expect. Authors' code: from the reference."""
    start: float = 0.1
    """Share of the training after which branches learn from peers and from refiners. Authors' code: 101 of 1000
    epochs."""

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
"""The released branches, refiners and schedule; for what was not released, the default where the released layout of
tokens allows it."""
