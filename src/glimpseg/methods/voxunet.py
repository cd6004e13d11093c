"""U-Net of Vox-MMSD: batch norm, deep supervision; its authors pretrain (`voxmmsd`) and fine-tune it.

Zhou et al., Vox-MMSD, IEEE JBHI 2025, doi 10.1109/JBHI.2025.3592116. The paper's full text was not at hand. This module
computes what the authors' released code computes (79f7bc6; its fine-tuning of children's tumours at b185259d); no code
was copied from it.

A plain 3-D U-Net over four channels, where an absent modality is zero. The four finest resolutions of the decoder are
supervised with Dice and cross-entropy.

Departures
| source | says or does | we do |
|---|---|---|
| code | fine-tunes and tests with all four modalities | draws subsets; `OFFICIAL` as the code (`full_share`) |
| code | mixes pairs of crops half of the time | not at all; `OFFICIAL` as the code (`mixup`) |
| code | voxels of 8 bits, cut at the 99.5th percentile of a box | z-scores in the brain; `bratsped`: 8 bits, 99.9th |
| code | then 0 to 1 over the crop, at test over the volume | as prepared in both |
| code | noise of 0.05 on every crop; gamma keeps the range | nnU-Net's: noise now and then; gamma keeps the mean |
| code | learning rate changes every 100 of 10,000 steps | in `bratsped`; else each step |
| code | keeps the weights that validate best | the last, or their moving average |
| code | windows side by side at test | overlap as every method's |
| code | NaN of an absent modality reaches everything | absent channels are 0 by selection |
| code | a random 70 % of a directory in its own order | `--split`, `--labelled` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from glimpseg.data.augment import MILD, Augment
from glimpseg.data.crops import Batch
from glimpseg.data.loader import Sampling
from glimpseg.data.preprocess import Preprocess
from glimpseg.losses import downsample_target, one_hot, soft_dice_loss
from glimpseg.method import Progress, Segmenter, blanked, draw_subsets
from glimpseg.modality import Modality
from glimpseg.nets.authors import take_weights
from glimpseg.nets.layers import Pointwise, upsampled
from glimpseg.nets.recompute import outermost
from glimpseg.phantom.training_stream import Stream
from glimpseg.recipe import BUDGET, Data, Optim, Recipe
from glimpseg.region import Label


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """Settings of the U-Net of Vox-MMSD (Zhou et al., JBHI 2025)."""

    width: int = 32
    """Channels of the first level; doubled at each downsampling. Authors' code: 32."""
    dropout: tuple[float, ...] = (0, 0, 0.2, 0.3, 0.4)
    """Dropout probability of each level, finest first; its length is the number of levels. Authors' code: these values;
    in pretraining at most 0.2."""
    heads: int = 4
    """Number of supervised resolutions, finest first, with equal weights. Authors' code: 4."""
    full_share: float = 0.0
    """Share of samples that see all their modalities; the others see a random subset. Authors' code: 1."""
    mixup: float = 0.0
    """Probability that a batch is blended with itself in another order (mixup). Authors' code: 0.5."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width should be at least 1, not {self.width}.")
        if not 1 <= self.heads < len(self.dropout):
            raise ValueError(f"heads should lie between 1 and {len(self.dropout) - 1} for {len(self.dropout)} levels.")

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.width * 2**level for level in range(len(self.dropout))]


OFFICIAL = Config(full_share=1.0, mixup=0.5)
"""Settings of the released fine-tuning."""


class Block(nn.Sequential):
    """Two convolutions of 3 x 3 x 3, each with batch norm and leaky ReLU; dropout between them."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        layers = [
            nn.Conv3d(inputs, outputs, 3, padding=1),
            nn.BatchNorm3d(outputs),
            nn.LeakyReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv3d(outputs, outputs, 3, padding=1),
            nn.BatchNorm3d(outputs),
            nn.LeakyReLU(inplace=True),
        ]
        super().__init__(*layers)


class Encoder(nn.Module):
    """Features at every resolution; max pooling halves between two levels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.entry = Block(len(Modality), config.width, config.dropout[0])
        self.pool = nn.MaxPool3d(2)
        self.down = nn.ModuleList(
            Block(above, width, dropout)
            for (above, width), dropout in zip(pairwise(config.widths), config.dropout[1:], strict=True)
        )

    def forward(self, image: Float[Tensor, "b m x y z"]) -> list[Float[Tensor, "b ..."]]:
        """Return the features of each level, finest first."""
        levels = [self.entry(image)]
        for down in self.down:
            levels.append(down(self.pool(levels[-1])))
        return levels


class UpBlock(nn.Module):
    """Decoder level: the coarser features are narrowed, upsampled and concatenated with the encoder's features."""

    def __init__(self, below: int, width: int, dropout: float) -> None:
        super().__init__()
        self.narrow = Pointwise(below, width)
        self.block = Block(2 * width, width, dropout)

    def forward(
        self, skip: Float[Tensor, "b c x y z"], below: Float[Tensor, "b d u v w"]
    ) -> Float[Tensor, "b c x y z"]:
        """Return the features of this level. The encoder's channels (`skip`) come first in the concatenation."""
        return self.block(torch.cat([skip, upsampled(self.narrow(below))], 1))


class Decoder(nn.Module):
    """Decoder back to full resolution."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = list(zip(pairwise(config.widths), config.dropout[:-1], strict=True))
        self.levels = nn.ModuleList(UpBlock(below, width, dropout) for (width, below), dropout in reversed(sizes))

    def forward(self, levels: Sequence[Float[Tensor, "b ..."]]) -> list[Float[Tensor, "b ..."]]:
        """Return the features of each level but the deepest, finest first."""
        *skips, x = levels
        maps: list[Tensor] = []
        for level, skip in zip(self.levels, reversed(skips), strict=True):
            x = level(skip, x)
            maps.insert(0, x)
        return maps


class VoxUNet(Segmenter):
    """Plain U-Net; absent modalities are zero channels."""

    pretrainable: ClassVar[Mapping[str, str]] = {"encoder": r"encoder\.(.+)", "decoder": r"decoder\.(.+)"}

    def __init__(self, config: Config, labels: tuple[Label, ...]) -> None:
        super().__init__(labels)
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.heads = nn.ModuleList(Pointwise(width, len(labels) + 1) for width in config.widths[: config.heads])

    @property
    def stride(self) -> int:
        """Voxels that a crop's sides have to be a multiple of: one halving for each level below the first."""
        return 2 ** (len(self.config.dropout) - 1)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Modules to compile: encoder and decoder."""
        return self.encoder, self.decoder

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Modules to recompute: blocks of two convolutions."""
        return tuple(outermost(self, Block))

    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Return probabilities of background and labels."""
        return self.heads[0](self.pyramid(image, available)[0]).float().softmax(1)

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """Return the decoder's features, finest first. Eq. (1)."""
        return self.decoder(self.encoder(blanked(image, available)))

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Return `dice` and `cross_entropy`, means over the supervised resolutions.

        Each sample sees a random subset of its modalities, or all of them (`Config.full_share`). Some batches are
        blended (`Config.mixup`). Eq. (5).
        """
        assert batch.target is not None, "supervised training needs a reference for every crop"
        seen = draw_subsets(batch.available)
        full = torch.rand(len(seen), 1, device=seen.device) < self.config.full_share
        image = blanked(batch.image, torch.where(full, batch.available, seen))
        target = one_hot(batch.target, self.labels)
        if torch.rand(()) < self.config.mixup:
            image, target = blended(image, target)
        maps = self.decoder(self.encoder(image))
        terms = {"dice": image.new_zeros(()), "cross_entropy": image.new_zeros(())}
        for head, features in zip(self.heads, maps, strict=False):
            probabilities = head(features).float().softmax(1)
            goal = downsample_target(target, probabilities.shape[2:])
            terms["dice"] = terms["dice"] + soft_dice_loss(probabilities, goal) / len(self.heads)
            terms["cross_entropy"] = terms["cross_entropy"] + cross_entropy(probabilities, goal) / len(self.heads)
        return terms


def blended(
    image: Float[Tensor, "b m x y z"], target: Float[Tensor, "b k x y z"]
) -> tuple[Float[Tensor, "b m x y z"], Float[Tensor, "b k x y z"]]:
    """Return the batch blended with itself in two random orders (mixup); the share of each sample is uniform in 0 to 1.

    Eq. (2).
    """
    share = torch.rand((len(image), 1, 1, 1, 1), device=image.device)
    first, second = (torch.randperm(len(image), device=image.device) for _ in range(2))
    return torch.lerp(image[second], image[first], share), torch.lerp(target[second], target[first], share)


def cross_entropy(probabilities: Float[Tensor, "b k x y z"], target: Float[Tensor, "b k x y z"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over all voxels.

    Probabilities are first scaled to 0.0005 ... 0.9995, because the logarithm of 0 is infinite. Eq. (4).
    """
    return -(target * (0.999 * probabilities + 5e-4).log()).sum(1).mean()


NAMES = (
    (r"encoder\.entry", "encoder.in_conv.conv_conv"),
    (r"encoder\.down\.(?P<l>\d)", "encoder.down{l}.maxpool_conv.1.conv_conv"),
    (r"decoder\.levels\.(?P<l>\d)\.narrow", "decoder.up{l}.conv1x1"),
    (r"decoder\.levels\.(?P<l>\d)\.block", "decoder.up{l}.conv.conv_conv"),
    (r"heads\.0", "decoder.out_conv"),
    (r"heads\.(?P<k>\d)", "decoder.out_conv{k}"),
)
"""Patterns of our tensor names, and the authors' names, for `take_weights`."""


def from_authors(weights: Mapping[str, Tensor]) -> VoxUNet:
    """Return the official network with the weights of an authors' fine-tuned checkpoint.

    Args:
        weights: state dict of the checkpoint.

    Raises: ModelError for weights that are not this U-Net's, or of another number of classes than four.
    """
    network = VoxUNet(OFFICIAL, (Label.NCR, Label.ED, Label.ET))
    take_weights(network, weights, NAMES)
    return network


def authors_recipe(network: VoxUNet) -> Recipe:
    """Return the recipe for imported weights: `bratsped`."""
    return RECIPES["bratsped"]


METHOD = VoxUNet

RECIPES = {
    # Trains in minutes on two CPU cores: 3 mm voxels, a small network, phantoms.
    "phantom": Recipe(
        method="voxunet",
        config=Config(width=16, dropout=(0, 0, 0.1, 0.2), heads=3),
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
    # The authors' fine-tuning, the only one they released.
    "bratsped": Recipe(
        method="voxunet",
        config=OFFICIAL,
        data=Data(
            preprocess=Preprocess(scale="bytes", clip=None),
            sampling=Sampling(
                patch=(96, 96, 96),
                batch=2,
                tumour_share=0,
                augment=Augment(
                    rotation=0, zooming=0, mirror=(True, False, False), blur=0, brightness=0, contrast=0,
                    low_resolution=0, gamma=0.8,
                ),
            ),
        ),
        optim=Optim(
            steps=10_000,
            optimizer="adam",
            learning_rate=2e-4,
            weight_decay=1e-4,
            cosine_to=0.0,
            epoch=100,
            max_norm=None,
            ema=0,
            precision="fp32",
            save_every=1000,
            log_every=50,
        ),
        seed=1,
    ),
    # The network with the training budget of `unet/brats`.
    "brats": Recipe(
        method="voxunet",
        config=Config(),
        data=Data(sampling=Sampling(patch=(128, 128, 128), batch=2)),
        optim=BUDGET,
    ),
}  # fmt: skip
