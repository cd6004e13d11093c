"""Import of the authors' weights of SMML: two checkpoints, each of one branch and its refiner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from glimpseg.errors import ModelError
from glimpseg.methods.smml.config import OFFICIAL
from glimpseg.methods.smml.objective import SMML
from glimpseg.nets import token_fusion
from glimpseg.nets.authors import take_weights
from glimpseg.nets.positions import cubic_crop
from glimpseg.nets.pyramid import ORDER
from glimpseg.region import Label

__all__ = ["CHECKPOINTS", "NAMES", "ORDER", "UNUSED", "from_authors"]

CHECKPOINTS = 2
"""Number of files that make one model; tensors of the first are named `1.<name>`, of the second `2.<name>`."""
REFINER = (
    (r"gates\.(?P<k>\d+)\.(?P<j>\d)", "sam_weight_fuse.weight_fusion.{k}.weight_layer.{j}"),
    (r"down\.(?P<l>\d)\.conv", "unet3d.encoder{l}.0"),
    (r"down\.(?P<l>\d)\.norm", "unet3d.encoder{l}.1"),
    (r"up\.(?P<l>\d)", "unet3d.upconv{l}"),
    (r"merge\.(?P<l>\d)\.conv", "unet3d.decoder{l}.0"),
    (r"merge\.(?P<l>\d)\.norm", "unet3d.decoder{l}.1"),
    (r"segment", "unet3d.conv_final"),
)
"""Patterns of the tensor names of `Refiner`, and the authors' names."""
NAMES = tuple(
    (rf"{place}\.{number}\.{ours}", f"{number + 1}.{theirs}")
    for number in range(CHECKPOINTS)
    for place, names in (("branches", token_fusion.NAMES), ("refiners", REFINER))
    for ours, theirs in names
)
"""Patterns of our tensor names, and the authors' names, for `take_weights`."""
LABELS = (Label.NCR, Label.ED, Label.ET)
"""Labels that the authors' networks distinguish, besides the background."""
UNUSED = rf"[12]\.({token_fusion.UNUSED})"
"""Pattern of the authors' tensors that no forward pass uses."""


def from_authors(weights: Mapping[str, Tensor]) -> SMML:
    """Return the official network with the weights of one training, built for its crop size.

    Where both refiners are missing (branches of mmFormer, or files cut down), only the branches are loaded: they
    segment.

    Args:
        weights: tensors of both checkpoints, named as `CHECKPOINTS` says.

    Raises: ModelError for weights that are not SMML's, or of other classes than BraTS 2018 and 2020 have.
    """
    given = {name.replace(".module.", "."): value for name, value in weights.items()}
    positions, last = given.get("1.flair_pos"), given.get("1.decoder_fuse.seg_layer.weight")
    if positions is None or positions.dim() != 3 or last is None:
        raise ModelError(
            "These are not the weights of the authors' SMML: flair_pos or decoder_fuse.seg_layer is missing. Give the "
            "checkpoints of both branches."
        )
    if last.shape[0] != 1 + len(LABELS):
        raise ModelError(
            f"These weights tell {last.shape[0]} classes apart; only those of BraTS 2018 and 2020, with 4, have a "
            "meaning here. BraTS 2015 splits the tumour's core otherwise."
        )
    crop = cubic_crop(positions.shape[1], OFFICIAL.network.stride)
    config = replace(OFFICIAL, network=replace(OFFICIAL.network, crop=crop))
    network = SMML(config, LABELS)
    if not any(name.startswith(("1.unet3d.", "2.unet3d.")) for name in given):
        network.drop_training_parts()
    take_weights(network, given, NAMES, UNUSED)
    return network
