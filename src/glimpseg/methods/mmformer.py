"""mmFormer: convolutional encoders, a transformer within each modality and one between the modalities.

Zhang et al., mmFormer: Multimodal Medical Transformer for Incomplete Multimodal Learning of Brain Tumor Segmentation,
MICCAI 2022, part V, pp. 107-117, arXiv 2206.02425. This module computes what the authors' released code computes
(YaoZhang93/mmFormer at b18663a); no code was copied from it.

One encoder for each modality gives features at several levels. At the deepest level, features become tokens: a
transformer within each modality, then one between all available modalities. A convolutional decoder fuses the levels.
In training, a decoder for single modalities and the decoder's deeper levels are supervised as well. The network is
`glimpseg.nets.token_fusion`, which SMML uses, too.

Departures
| paper or code | says or does | we do |
|---|---|---|
| code | a voxel of the deepest level holds four neighbours of one modality | four modalities; `OFFICIAL` as the code |
| code | absent modalities' tokens stay in the attention, as positions | left out; `OFFICIAL` as the code |
| code | position embeddings for 128^3 crops alone | interpolated to multiples of 16 from 32 on; not in `OFFICIAL` |
| code | 87 biases before an instance norm, which cancels them | none; `OFFICIAL` has them |
| code | four convolutions that nothing calls, 262,656 parameters | none |
| code | fusion blocks as wide as there are classes | as there are modalities |
| code | needs all modalities of every training study | no term from a modality that a study lacks |
| code | NaN of an absent modality reaches the gradients | absent channels are 0 before the encoders |
| code | one learning rate an epoch, rounded to 1e-8 | one an epoch, not rounded |
| code | 24 steps an epoch: 190 cases of its own shuffled split | 25 and 28: RFNet's lists of 199 and 219 (`--split`) |
| code | an epoch's last batch is smaller | batches run on into the next epoch |
| code | Dice pools the batch of 8 over 4 GPUs | as the code; `accumulate` and `torchrun` pool each share |
| code | crops and z-scores by all four modalities | by those that are there, each in its own brain |
| code | crops lose their last plane, grow to 128 voxels | 4 mm of margin; what a window lacks is padded with air |
| code | rotation, mirroring and a jitter by planes | in `brats2018` and `brats2020`; else nnU-Net's |
| code | windows are averaged with equal weights | under the protocol `rfnet`; Gaussian under `clinical` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from glimpseg.data.augment import MILD
from glimpseg.data.augment import RFNET as RFNET_AUGMENT
from glimpseg.data.crops import Batch
from glimpseg.data.loader import Sampling
from glimpseg.data.preprocess import RFNET as RFNET_INTENSITIES
from glimpseg.data.preprocess import Preprocess
from glimpseg.errors import ModelError
from glimpseg.losses import FusionOutputs, one_hot, region_fusion_terms
from glimpseg.method import Progress, Segmenter, blanked, draw_subsets
from glimpseg.nets import token_fusion
from glimpseg.nets.authors import take_weights
from glimpseg.nets.positions import cubic_crop
from glimpseg.nets.pyramid import CHANNELS, ORDER
from glimpseg.nets.recompute import outermost
from glimpseg.nets.token_fusion import OFFICIAL, UNUSED, Config, Features, TokenFusion
from glimpseg.phantom.training_stream import Stream
from glimpseg.recipe import BUDGET, Data, Optim, Recipe
from glimpseg.region import Label

__all__ = ["METHOD", "NAMES", "OFFICIAL", "ORDER", "RECIPES", "Config", "authors_recipe", "from_authors"]


class MMFormer(Segmenter):
    """Transformer over the tokens of all available modalities, with convolutional encoders and decoder."""

    pretrainable: ClassVar[Mapping[str, str]] = {"encoder": r"network\.encoders\.(.+)"}

    def __init__(self, config: Config, labels: tuple[Label, ...]) -> None:
        super().__init__(labels)
        self.config = config
        self.network = TokenFusion(config, len(labels) + 1)

    @property
    def stride(self) -> int:
        """Voxels that a crop's sides have to be a multiple of: one halving for each level below the first."""
        return self.config.stride

    @property
    def smallest(self) -> int:
        """Smallest side of a crop, in voxels: two at the deepest level, because one cannot be padded by reflection."""
        return 2 * self.stride

    @property
    def fixed_windows(self) -> bool:
        """True for the released token layout, whose arrangement depends on the size of the crop."""
        return self.config.layout == "released"

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Modules to compile: encoders, transformers and decoders."""
        return tuple(outermost(self, token_fusion.NETWORKS))

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Modules to recompute: stages of the encoders, layers of the transformers, and blocks of the decoders."""
        return tuple(outermost(self, token_fusion.STAGES))

    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Return fused class probabilities.

        Encoders of modalities that the whole batch lacks are not run, except in training and in an export.
        """
        return self.fuse(self.encode(image, available), available)

    def encode(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Features:
        """Return the encoders' features and the tokens of each modality. Eq. (1)."""
        return self.network.encode(blanked(image, available)[:, CHANNELS], available[:, CHANNELS])

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """Return the encoders' features, finest first, modalities concatenated along the channels, 0 where absent."""
        return self.network.pyramid(blanked(image, available)[:, CHANNELS], available[:, CHANNELS])

    def fuse(self, features: Features, available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Return fused class probabilities from the features of the modalities in `available`."""
        return self.network.fuse(features, available[:, CHANNELS]).logits.softmax(1)

    def maps(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"], seen: Bool[Tensor, "b m"]
    ) -> FusionOutputs:
        """Return all supervised maps. Those of single modalities are in `ORDER`; those of absent ones mean nothing.

        Args:
            image: crops; absent channels may hold anything.
            available: modalities that each sample has; the single-modality maps use these.
            seen: subset of `available` that the fusion uses.

        Eq. (6), Eq. (7).
        """
        features = self.encode(image, available)
        return self.network.supervised(features, self.network.fuse(features, seen[:, CHANNELS]))

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Return cross-entropy and Dice of the fused, the single-modality and the deep segmentations, weight 1 each.

        The fusion sees a random subset of each sample's modalities. Names are those of `region_fusion_terms`. Eq. (10).
        """
        assert batch.target is not None, "supervised training needs a reference for every crop"
        maps = self.maps(batch.image, batch.available, draw_subsets(batch.available))
        return region_fusion_terms(maps, one_hot(batch.target, self.labels), batch.available[:, CHANNELS])


NAMES = tuple((rf"network\.{ours}", theirs) for ours, theirs in token_fusion.NAMES)
"""Patterns of our tensor names, and the authors' names, for `take_weights`."""


def from_authors(weights: Mapping[str, Tensor]) -> MMFormer:
    """Return the official network with the weights of an authors' checkpoint, built for its crop size.

    Args:
        weights: state dict of the checkpoint.

    Raises: ModelError for weights that are not mmFormer's, or of other classes than BraTS 2018 and 2020 have.
    """
    positions = [value for name, value in weights.items() if name.endswith("flair_pos")]
    if not positions or positions[0].dim() != 3:
        raise ModelError("These are not the weights of the authors' mmFormer: flair_pos is missing.")
    crop = cubic_crop(positions[0].shape[1], OFFICIAL.stride)
    network = MMFormer(replace(OFFICIAL, crop=crop), (Label.NCR, Label.ED, Label.ET))
    take_weights(network, weights, NAMES, UNUSED)
    return network


def authors_recipe(network: MMFormer) -> Recipe:
    """Return the recipe for imported weights: `brats2020`, with the network's settings and crop."""
    recipe = RECIPES["brats2020"]
    sampling = replace(recipe.data.sampling, patch=network.config.crop)
    return replace(recipe, config=network.config, data=replace(recipe.data, sampling=sampling))


def released_recipe(epoch: int) -> Recipe:
    """Return the recipe of the authors' training: 1000 epochs of `epoch` batches of 8.

    Args:
        epoch: optimiser steps of an epoch.
    """
    return Recipe(
        method="mmformer",
        config=OFFICIAL,
        data=Data(
            preprocess=RFNET_INTENSITIES,
            sampling=Sampling(patch=(128, 128, 128), batch=8, tumour_share=0, augment=RFNET_AUGMENT),
        ),
        optim=Optim(
            steps=1000 * epoch,
            optimizer="amsgrad",
            learning_rate=2e-4,
            weight_decay=1e-4,
            epoch=epoch,
            max_norm=None,
            ema=0,
            precision="fp32",
            save_every=1000,
            log_every=50,
        ),
        seed=1024,
    )


METHOD = MMFormer

RECIPES = {
    # Trains in minutes on two CPU cores: 3 mm voxels, a small network, phantoms.
    "phantom": Recipe(
        method="mmformer",
        config=Config(levels=4, token_width=128, heads=4, mlp_width=256, crop=(40, 40, 40)),
        data=Data(
            preprocess=Preprocess(spacing_mm=3.0),
            sampling=Sampling(
                patch=(40, 40, 40),
                batch=2,
                tumour_share=0.5,
                augment=MILD,
            ),
            stream=Stream(),
        ),
        optim=Optim(steps=450, learning_rate=3e-3, warmup=20, ema=0.99, save_every=50),
    ),
    "brats2018": released_recipe(25),
    "brats2020": released_recipe(28),
    # The corrected network with the training budget of `unet/brats`.
    "brats": Recipe(
        method="mmformer",
        config=Config(),
        data=Data(sampling=Sampling(patch=(128, 128, 128), batch=2)),
        optim=BUDGET,
    ),
}
