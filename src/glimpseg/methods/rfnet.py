"""RFNet: one encoder for each modality, and fusion region by region, guided by a coarse segmentation.

Ding, Yu and Yang, RFNet: Region-aware Fusion Network for Incomplete Multi-modal Brain Tumor Segmentation, ICCV 2021,
pp. 3975-3984. This module computes what the authors' released code computes (dyh127/RFNet at 1e475fa); no code was
copied from it.

Four encoders run on the modalities that a study has. At every level a coarse segmentation locates each class. For each
class, small gates weigh the modalities; the weighted sums are fused and decoded. In training, a decoder for single
modalities and the coarse segmentations are supervised as well.

Departures
| paper or code | says or does | we do |
|---|---|---|
| paper | fuses by attention along modalities | as the code: a weighted sum |
| code | fuse terms times 0 for 3000 steps, while decay goes on | supervised at once; `OFFICIAL` as the code |
| code | 106 biases before an instance norm, which cancels them | none; `OFFICIAL` has them |
| code | needs all modalities of every training study | no term from a modality that a study lacks |
| code | NaN of an absent modality reaches the gradients | absent channels are 0 before the encoders |
| code | a stack of 4 C K channels of region features | sums at once; equal to rounding |
| code | gates are convolutions of 1 x 1 x 1 | linear layers |
| code | one learning rate an epoch, rounded to 1e-8 | one an epoch, not rounded |
| code | Dice pools the batch | as the code; `accumulate` and `torchrun` pool each share |
| code | crops and z-scores by all four modalities | by those that are there, each in its own brain |
| code | crops lose their last plane, grow to 128 voxels | 4 mm of margin; what a window lacks is padded with air |
| code | rotation, mirroring and a jitter by planes | in `brats2018` and `brats2020`; else nnU-Net's |
| code | windows are averaged with equal weights | under the protocol `rfnet`; Gaussian under `clinical` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from einops import einsum
from jaxtyping import Bool, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from glimpseg.data.augment import MILD
from glimpseg.data.augment import RFNET as RFNET_AUGMENT
from glimpseg.data.crops import Batch
from glimpseg.data.loader import Sampling
from glimpseg.data.preprocess import RFNET as RFNET_INTENSITIES
from glimpseg.data.preprocess import Preprocess
from glimpseg.losses import FusionOutputs, one_hot, region_fusion_terms
from glimpseg.method import Progress, Segmenter, blanked, draw_subsets
from glimpseg.nets.authors import take_weights
from glimpseg.nets.layers import Pointwise, convolution, upsampled
from glimpseg.nets.pyramid import (
    CHANNELS,
    MOST_LEVELS,
    ORDER,
    Encoder,
    SingleDecoder,
    Stage,
    UpBlock,
    concatenated_modalities,
    drop_biases,
    encoded,
    initialise,
    zero_absent,
)
from glimpseg.nets.recompute import outermost
from glimpseg.phantom.training_stream import Stream
from glimpseg.recipe import BUDGET, Data, Optim, Recipe
from glimpseg.region import Label


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """RFNet (Ding et al., ICCV 2021): settings of network and objective.

    The defaults correct the released code (see Departures); `OFFICIAL` is as released.
    """

    width: int = 16
    """Channels of the first level, a multiple of 4; doubled at each downsampling. Authors' code: 16."""
    levels: int = 4
    """Number of resolution levels. Authors' code: 4."""
    coarse_width: int = 16
    """Channels before the coarse maps, at every level. Authors' code: 16."""
    gate_width: int = 128
    """Hidden units of a gate. Authors' code: 128."""
    fuse_from: int = 0
    """Optimiser steps before the fused output is supervised. Authors' code: 3000 (20 epochs of 150). During these steps
    the fused terms are multiplied by 0, and L2 decay shrinks the 34 tensors that only they train."""
    null_biases: bool = False
    """True keeps the biases before an instance norm, which cancels them. Authors' code: true."""

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 4 or not 2 <= self.levels <= MOST_LEVELS:
            raise ValueError(
                f"width should be a multiple of 4 and levels between 2 and {MOST_LEVELS}, not {self.width} and "
                f"{self.levels}."
            )
        for name in ("coarse_width", "gate_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, not {getattr(self, name)}.")

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.width * 2**level for level in range(self.levels)]


OFFICIAL = Config(fuse_from=3000, null_biases=True)
"""Settings of the released network and objective; the authors' weights fit it."""


class PostNorm(nn.Sequential):
    """Convolution, instance norm without parameters, leaky ReLU of slope 0.2; reflection padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs, kernel, stride)
        self.norm = nn.InstanceNorm3d(outputs)
        self.activation = nn.LeakyReLU(0.2, inplace=True)


class CoarseMap(nn.Module):
    """Coarse segmentation of one level, at that level's resolution; it guides the fusion."""

    def __init__(self, width: int, head: int, classes: int, *, deepest: bool) -> None:
        super().__init__()
        modalities = len(ORDER)
        self.embed = nn.Sequential(
            PostNorm(modalities * width, width // 4, 1),
            PostNorm(width // 4, width // 4, 3),
            PostNorm(width // 4, width, 1),
        )
        self.head = nn.Sequential(PostNorm(width if deepest else 2 * width, head, 1), Pointwise(head, classes))

    def forward(
        self, stacked: Float[Tensor, "b mc x y z"], above: Float[Tensor, "b c x y z"] | None
    ) -> Float[Tensor, "b k x y z"]:
        """Return class probabilities from the features of all modalities.

        Args:
            stacked: features of this level, modalities concatenated along the channels.
            above: the decoder's upsampled features; None at the deepest level.

        Eq. (2).
        """
        seen = self.embed(stacked)
        return self.head(seen if above is None else torch.cat([above, seen], 1)).float().softmax(1)


class RegionFusion(nn.Module):
    """Region-aware fusion: for each class of a coarse map, one weight for each modality."""

    def __init__(self, width: int, gate_width: int, classes: int) -> None:
        super().__init__()
        modalities = len(ORDER)
        self.gates = nn.ModuleList(
            nn.Sequential(
                nn.Linear(modalities * width + 1, gate_width), nn.LeakyReLU(0.2), nn.Linear(gate_width, modalities)
            )
            for _ in range(classes)
        )
        self.regions = self._block(classes * width, width)
        self.shortcut = self._block(modalities * width, width)

    def forward(
        self, features: Float[Tensor, "b m c x y z"], coarse: Float[Tensor, "b k x y z"]
    ) -> Float[Tensor, "b c x y z"]:
        """Return fused features: half of the channels from the regions, half from the concatenated modalities.

        Args:
            features: features of one level; those of absent modalities are 0.
            coarse: class probabilities of the same level. No gradient flows into them.

        Eq. (6).
        """
        coarse = coarse.detach()
        regions = self.weighted(features, coarse, self.weights(features, coarse))
        return torch.cat([self.regions(regions.flatten(1, 2)), self.shortcut(features.flatten(1, 2))], 1)

    def weights(
        self, features: Float[Tensor, "b m c x y z"], coarse: Float[Tensor, "b k x y z"]
    ) -> Float[Tensor, "b k m"]:
        """Return the weight of each modality for each class, in (0, 1), not normalised over modalities.

        The input of a gate is the mean of each feature over its class, and the class's share of the voxels. Computed in
        fp32, because shares may be tiny. Eq. (3), Eq. (4).
        """
        with torch.autocast(features.device.type, enabled=False):
            share = coarse.mean((2, 3, 4)) + 1e-7  # b k
            voxels = coarse[0, 0].numel()
            inside = einsum(features.float(), coarse, "b m c x y z, b k x y z -> b k m c") / voxels
            gated = torch.cat([(inside / share[:, :, None, None]).flatten(2), share[:, :, None]], 2)
            return torch.stack([gate(gated[:, k]) for k, gate in enumerate(self.gates)], 1).sigmoid()

    def weighted(
        self,
        features: Float[Tensor, "b m c x y z"],
        coarse: Float[Tensor, "b k x y z"],
        weights: Float[Tensor, "b k m"],
    ) -> Float[Tensor, "b k c x y z"]:
        """Return the features of each class: the weighted sum over modalities, times the coarse map of the class.

        Eq. (5).
        """
        total = einsum(weights.to(features.dtype), features, "b k m, b m c x y z -> b k c x y z")
        return total.mul_(coarse[:, :, None].to(features.dtype))  # in place: nothing else needs `total`

    @staticmethod
    def _block(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(PostNorm(inputs, width, 1), PostNorm(width, width, 3), PostNorm(width, width // 2, 1))


class JointDecoder(nn.Module):
    """Decoder of the fused segmentation; each level has a coarse map, a region-aware fusion and an up-block."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        widths = config.widths
        self.coarse = nn.ModuleList(
            CoarseMap(width, config.coarse_width, classes, deepest=width == widths[-1]) for width in widths
        )
        self.fuse = nn.ModuleList(RegionFusion(width, config.gate_width, classes) for width in widths)
        self.levels = nn.ModuleList(UpBlock(below, width, PostNorm) for width, below in pairwise(widths))
        self.segment = Pointwise(widths[0], classes)

    def forward(self, features: Sequence[Float[Tensor, "b m ..."]]) -> tuple[Float[Tensor, "b k x y z"], list[Tensor]]:
        """Return the fused class probabilities, and the coarse maps, finest first. Eq. (7)."""
        deepest = features[-1]
        maps = [self.coarse[-1](deepest.flatten(1, 2), None)]
        x = self.fuse[-1](deepest, maps[0])
        for number in reversed(range(len(self.levels))):
            level: Any = self.levels[number]
            seen = features[number]
            raised = level.upsample(x)
            maps.insert(0, self.coarse[number](seen.flatten(1, 2), raised))
            x = level.combine(self.fuse[number](seen, maps[0]), raised)
        return self.segment(x).float().softmax(1), maps


class RFNet(Segmenter):
    """Region-aware fusion over the features of the available modalities."""

    pretrainable: ClassVar[Mapping[str, str]] = {"encoder": r"encoders\.(.+)"}

    def __init__(self, config: Config, labels: tuple[Label, ...]) -> None:
        super().__init__(labels)
        self.config = config
        classes = len(labels) + 1
        self.encoders = nn.ModuleDict(
            {modality.key: Encoder(PostNorm(1, config.width, 3), config.widths, PostNorm) for modality in ORDER}
        )
        self.joint = JointDecoder(config, classes)
        self.single = SingleDecoder(config.widths, classes, PostNorm)
        initialise(self, (nn.Conv3d, nn.Linear))
        if not config.null_biases:
            drop_biases(block.conv for block in self.modules() if isinstance(block, PostNorm))

    @property
    def stride(self) -> int:
        """Voxels that a crop's sides have to be a multiple of: one halving for each level below the first."""
        return 2 ** (self.config.levels - 1)

    @property
    def smallest(self) -> int:
        """Smallest side of a crop, in voxels: two at the deepest level, because one cannot be padded by reflection."""
        return 2 * self.stride

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Modules to compile: encoders and decoders."""
        return (*self.encoders.values(), self.joint, self.single)

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Modules to recompute: stages of the encoders, and blocks of the decoders."""
        return tuple(outermost(self, (Stage, PostNorm)))

    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Return fused class probabilities.

        Encoders of modalities that the whole batch lacks are not run, except in training and in an export.
        """
        return self.fuse(self.encode(image, available), available)

    def encode(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b m ..."]]:
        """Return the encoders' features, finest first, modalities in `ORDER`.

        They are 0 where an encoder is not run, see `forward`. Eq. (1).
        """
        image, available = blanked(image, available)[:, CHANNELS], available[:, CHANNELS]
        # In training all encoders run, because every rank needs the same gradients to add. In an export all run,
        # because the exported network has to serve all subsets.
        every = self.training or torch.compiler.is_exporting()
        needed = [True] * len(ORDER) if every else available.any(0).tolist()
        return encoded(self.encoders.values(), image, needed)

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """Return the encoders' features, finest first, modalities concatenated along the channels, 0 where absent."""
        return concatenated_modalities(self.encode(image, available), available[:, CHANNELS])

    def fuse(
        self, features: list[Float[Tensor, "b m ..."]], available: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b k x y z"]:
        """Return fused class probabilities from the features of the modalities in `available`."""
        available = available[:, CHANNELS]
        return self.joint([zero_absent(level, available) for level in features])[0]

    def maps(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"], seen: Bool[Tensor, "b m"]
    ) -> FusionOutputs:
        """Return all supervised maps. Those of single modalities are in `ORDER`; those of absent ones mean nothing.

        Args:
            image: crops; absent channels may hold anything.
            available: modalities that each sample has; the single-modality maps use these.
            seen: subset of `available` that the fusion uses.

        Eq. (8), Eq. (9).
        """
        features = self.encode(image, available)
        fused, coarse = self.joint([zero_absent(level, seen[:, CHANNELS]) for level in features])
        deep = [coarse[0], *(upsampled(level, 2**number) for number, level in enumerate(coarse[1:], 1))]
        return FusionOutputs(fused, self.single(features), deep)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Return cross-entropy and Dice of the fused, the single-modality and the coarse segmentations, weight 1 each.

        The fusion sees a random subset of each sample's modalities. Names are those of `region_fusion_terms`. The fused
        terms are multiplied by 0 before step `Config.fuse_from`. Eq. (12).
        """
        assert batch.target is not None, "supervised training needs a reference for every crop"
        maps = self.maps(batch.image, batch.available, draw_subsets(batch.available))
        target = one_hot(batch.target, self.labels)
        terms = region_fusion_terms(maps, target, batch.available[:, CHANNELS])
        begun = float(progress.step >= self.config.fuse_from)  # multiplied by 0, not left out: weight decay continues
        return {name: begun * term if name.startswith("fuse/") else term for name, term in terms.items()}


NAMES = (
    (r"encoders\.(?P<m>\w+)\.stages\.(?P<l>\d)\.entry", "{m}_encoder.e{l}_c1"),
    (r"encoders\.(?P<m>\w+)\.stages\.(?P<l>\d)\.residual\.(?P<r>\d)", "{m}_encoder.e{l}_c{r}"),
    (r"joint\.coarse\.(?P<l>\d)\.embed", "decoder_fuse.prm_generator{l}.embedding_layer"),
    (r"joint\.coarse\.(?P<l>\d)\.head", "decoder_fuse.prm_generator{l}.prm_layer"),
    (r"joint\.fuse\.(?P<l>\d)\.gates\.(?P<k>\d)", "decoder_fuse.RFM{l}.modal_fusion.{k}.weight_layer"),
    (r"joint\.fuse\.(?P<l>\d)\.regions", "decoder_fuse.RFM{l}.region_fusion.fusion_layer"),
    (r"joint\.fuse\.(?P<l>\d)\.shortcut", "decoder_fuse.RFM{l}.short_cut"),
    (r"joint\.levels\.(?P<l>\d)\.up", "decoder_fuse.d{l}_c1"),
    (r"joint\.levels\.(?P<l>\d)\.merge", "decoder_fuse.d{l}_c2"),
    (r"joint\.levels\.(?P<l>\d)\.refine", "decoder_fuse.d{l}_out"),
    (r"joint\.segment", "decoder_fuse.seg_layer"),
    (r"single\.levels\.(?P<l>\d)\.up", "decoder_sep.d{l}_c1"),
    (r"single\.levels\.(?P<l>\d)\.merge", "decoder_sep.d{l}_c2"),
    (r"single\.levels\.(?P<l>\d)\.refine", "decoder_sep.d{l}_out"),
    (r"single\.segment", "decoder_sep.seg_layer"),
)
"""Patterns of our tensor names, and the authors' names, for `take_weights`."""


def from_authors(weights: Mapping[str, Tensor]) -> RFNet:
    """Return the official network with the weights of an authors' checkpoint.

    Args:
        weights: state dict of the checkpoint.

    Raises: ModelError for weights that are not RFNet's, or of other classes than BraTS 2018 and 2020 have.
    """
    network = RFNet(OFFICIAL, (Label.NCR, Label.ED, Label.ET))
    take_weights(network, weights, NAMES)
    return network


def authors_recipe(network: RFNet) -> Recipe:
    """Return the recipe for imported weights: `brats2020`, with the network's settings."""
    recipe = RECIPES["brats2020"]
    return replace(recipe, config=network.config)


METHOD = RFNet

RELEASED = Recipe(
    method="rfnet",
    config=OFFICIAL,
    data=Data(
        preprocess=RFNET_INTENSITIES,
        sampling=Sampling(patch=(80, 80, 80), batch=2, tumour_share=0, augment=RFNET_AUGMENT),
    ),
    optim=Optim(
        steps=45_000,
        optimizer="amsgrad",
        learning_rate=2e-4,
        weight_decay=1e-4,
        epoch=150,
        max_norm=None,
        ema=0,
        precision="fp32",
        save_every=1000,
        log_every=50,
    ),
    seed=1024,
)
"""Recipe of the authors' schedule: 300 epochs of 150 steps, whatever the length of the case list."""

RECIPES = {
    # Trains in minutes on two CPU cores: 3 mm voxels, a small network, phantoms.
    "phantom": Recipe(
        method="rfnet",
        config=Config(width=8),
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
    "brats2018": RELEASED,
    "brats2020": RELEASED,
    # The corrected network with the training budget of `unet/brats`.
    "brats": Recipe(
        method="rfnet",
        config=Config(),
        data=Data(sampling=Sampling(patch=(128, 128, 128), batch=2)),
        optim=BUDGET,
    ),
}
