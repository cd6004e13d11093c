"""Baseline: one residual 3-D U-Net, trained with modality dropout.

The method has no paper of its own. Every method of this field should be better than it, so it is built from parts that
are known to work: the residual encoder-decoder of Myronenko (arXiv 1810.11654) as MONAI builds it (`SegResNetDS`);
nnU-Net's region targets, loss, deep supervision, augmentation and schedule (Isensee et al., arXiv 2011.00848); and
early fusion with modality dropout.

The input has eight channels: four images, where an absent modality is zero, and four presence channels, which are 1
where a modality is present and 0 where it is absent. The output has one sigmoid for each region.

Departures
| source | says or does | we do |
|---|---|---|
| Myronenko 2018 | group norm of 8 groups, variational branch | groups of 4 channels at the first level, no branch |
| nnU-Net | instance norm | group norm: instance norm removes any constant plane, and with it the presence |
| nnU-Net | SGD, 1000 epochs, polynomial decay | AdamW with the same decay; steps by recipe |
| nnU-Net | larger crop before rotation | the crop itself, background outside |
| nnU-Net | coarse heads see the target by nearest neighbour | its mean over the voxels that each covers |
| nnU-Net | heads at all but the two coarsest resolutions | three heads |
| nnU-Net | the last weights | their moving average |
| nnU-Net | all modalities always | one of the 15 subsets per sample, uniformly among those the study allows |
| nnU-Net | windows of the crop's size | a brain up to twice a crop's length in one piece |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from glimpseg.data.augment import MILD
from glimpseg.data.crops import Batch
from glimpseg.data.loader import Sampling
from glimpseg.data.preprocess import Preprocess
from glimpseg.errors import UsageError
from glimpseg.losses import binary_cross_entropy, downsample_target, soft_dice_loss
from glimpseg.method import Progress, Segmenter, blanked, draw_subsets
from glimpseg.modality import Modality
from glimpseg.nets.recompute import outermost
from glimpseg.nets.segresnet import ResidualBlock, SegResNet
from glimpseg.phantom import POPULATIONS, WIDE
from glimpseg.phantom.training_stream import Stream
from glimpseg.recipe import BUDGET, Data, Optim, Recipe
from glimpseg.region import Label, Region

TUMOUR = {Region.WT: Label.ED, Region.TC: Label.NCR, Region.ET: Label.ET}
"""Tumour regions, outermost first, and the label of voxels that lie in no region further in."""


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """Residual U-Net with one output channel for each region."""

    width: int = 32
    """Channels of the first level; doubled at each downsampling. SegResNet: 32."""
    blocks: tuple[int, ...] = (1, 2, 2, 4, 4)
    """Residual blocks of each encoder level, finest first. SegResNet: 1, 2, 2, 4; here one level more, for 128^3 crops.
    """
    channels_per_group: int = 4
    """Channels of the first level that share a group norm; more than one, because a norm over one channel removes the
    presence channels. Our choice."""
    heads: int = 3
    """Number of supervised resolutions, finest first."""
    head_weight: float = 0.5
    """Weight of each coarser head relative to the next finer one. nnU-Net: 1/2."""
    dice: float = 1.0
    """Weight of the soft Dice term. nnU-Net: 1."""
    cross_entropy: float = 1.0
    """Weight of the cross-entropy term. nnU-Net: 1."""
    full_share: float = 0.0
    """Share of samples that see all their modalities; the others see a random subset. RFNet: 0."""

    def __post_init__(self) -> None:
        if min(self.width, self.channels_per_group, *self.blocks) < 1:
            raise ValueError("width, channels_per_group and blocks should be at least 1.")
        if self.width % self.channels_per_group:
            raise ValueError(f"width ({self.width}) should be a multiple of channels_per_group; change either.")
        if not 1 <= self.heads < len(self.blocks):
            raise ValueError(f"heads should lie between 1 and {len(self.blocks) - 1} for {len(self.blocks)} levels.")


class UNet(Segmenter):
    """Early-fusion U-Net: zero channels for absent modalities, presence channels, one sigmoid for each region.

    Raises: UsageError for a label that lies in no region that the labels make up.
    """

    pretrainable: ClassVar[Mapping[str, str]] = {
        "encoder": r"network\.encoder\.(.+)",
        "decoder": r"network\.up_layers\.(\d+\.(?:upsample|blocks)\..+)",
    }

    def __init__(self, config: Config, labels: tuple[Label, ...]) -> None:
        super().__init__(labels)
        if lost := set(labels).difference(*(region.value for region in self.regions)):
            raise UsageError(
                f"unet has a head for each region, and no region that {_label_names(labels)} make up holds "
                f"{_label_names(lost)}. "
                "Add labels: WT needs NCR, ED and ET, TC needs NCR and ET."
            )
        self.config = config
        self.network = SegResNet(
            2 * len(Modality),
            len(self.regions),
            width=config.width,
            groups=config.width // config.channels_per_group,
            blocks=config.blocks,
            heads=config.heads,
        )

    @property
    def stride(self) -> int:
        """Voxels that a crop's sides have to be a multiple of: one halving for each level below the first."""
        return 2 ** (len(self.config.blocks) - 1)

    @property
    def whole_up_to(self) -> float:
        """Largest side of a brain that is segmented in one piece, in crop lengths: 2, for speed.

        The effect on Dice is on the method's page.
        """
        return 2.0

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Modules to compile: the whole network."""
        return (self.network,)

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Modules to recompute: residual blocks."""
        return tuple(outermost(self.network, ResidualBlock))

    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Return the probability of each region, in the order of `regions`.

        Regions overlap: the channels do not sum to 1.
        """
        return self.logits(image, available)[0].float().sigmoid()

    def logits(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> list[Tensor]:
        """Return the logits of each supervised resolution, finest first; outside training the finest only. Eq. (3)."""
        return self.network(self._network_input(image, available))

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """Return the decoder's features, finest first."""
        return list(self.network.decoded(self._network_input(image, available)))[::-1]

    def _network_input(self, image: Tensor, available: Tensor) -> Tensor:
        presence = available[:, :, None, None, None].expand_as(image).to(image.dtype)
        return torch.cat([blanked(image, available), presence], 1)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Return `dice` and `cross_entropy` of the regions, weighted sums over the heads, times their weights.

        Head weights are the powers of `Config.head_weight` (1, 1/2, 1/4, ...), divided by their sum. Each sample sees a
        random subset of its modalities, or all of them (`Config.full_share`). Eq. (8), Eq. (9).
        """
        assert batch.target is not None, "supervised training needs a reference for every crop"
        seen = draw_subsets(batch.available)
        if self.config.full_share:
            full = torch.rand(len(seen), 1, device=seen.device) < self.config.full_share
            seen = torch.where(full, batch.available, seen)
        logits = [head.float() for head in self.logits(batch.image, seen)]
        target = self.region_target(batch.target)
        weights = torch.tensor([self.config.head_weight**level for level in range(len(logits))])
        weights /= weights.sum()
        dice = cross_entropy = logits[0].new_zeros(())
        for weight, head in zip(weights.tolist(), logits, strict=True):
            goal = downsample_target(target, head.shape[2:])
            dice = dice + weight * soft_dice_loss(head.sigmoid(), goal)
            cross_entropy = cross_entropy + weight * binary_cross_entropy(head, goal)
        return {"dice": self.config.dice * dice, "cross_entropy": self.config.cross_entropy * cross_entropy}

    def region_target(self, target: Int[Tensor, "b x y z"]) -> Float[Tensor, "b k x y z"]:
        """Return one binary map for each region. Eq. (4)."""
        maps = [torch.isin(target, torch.tensor(region.value, device=target.device)) for region in self.regions]
        return torch.stack(maps, 1).float()

    def decode(self, probabilities: Float[Tensor, "b k x y z"]) -> Int[Tensor, "b x y z"]:
        """Return labels from regions above one half, each inside the previous one.

        Oedema where WT alone is, necrosis where TC is, then ET. A cavity where RC is above one half and more probable
        than the outermost tumour region. 0 elsewhere.
        """
        by_region = self.region_probabilities(probabilities)
        labels = torch.zeros_like(probabilities[:, 0], dtype=torch.int64)
        inside = torch.ones_like(labels, dtype=torch.bool)
        for region, label in TUMOUR.items():
            if region in by_region:
                inside = inside & (by_region[region] > 0.5)
                labels[inside] = label
        if Region.RC in by_region:
            tumour = next((by_region[region] for region in TUMOUR if region in by_region), 0.0)
            labels[(by_region[Region.RC] > 0.5) & (by_region[Region.RC] > tumour)] = Label.RC
        return labels

    def region_probabilities(self, probabilities: Float[Tensor, "b k x y z"]) -> dict[Region, Float[Tensor, "b x y z"]]:
        """Return the channels of `probabilities` by region."""
        return dict(zip(self.regions, probabilities.unbind(1), strict=True))


def _label_names(labels: Iterable[Label]) -> str:
    return ", ".join(label.name for label in sorted(labels))


METHOD = UNet

BOX = Config(width=16, blocks=(1, 2, 2, 4), full_share=0.2)
"""Settings of the network that is shipped with the package."""
ONE_SIDED = replace(MILD, zooming=0.3, gamma=0.2, mirror=(True, False, False))
"""Augmentation that mirrors left and right only, because no patient looks like the other mirror images."""
NARROWER = replace(
    WIDE, tissue=0.05, uptake=0.2, contrast=0.02, flatness=0.12, histogram=0.05, sequences=0.1, coarse=0.1, strip=0.15,
    central=0.0, lopsided=0.0,
)  # fmt: skip
"""Phantom variety of the first training stage: half as wide, to learn first where tumours lie and their appearance."""

RECIPES = {
    # Trains in minutes on two CPU cores: 3 mm voxels, a small network, phantoms. Used by `make demo` and the tests.
    "phantom": Recipe(
        method="unet",
        config=Config(width=16, blocks=(1, 2, 2, 2)),
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
        optim=Optim(steps=650, learning_rate=3e-3, warmup=20, ema=0.99, save_every=50),
    ),
    # First stage of the shipped network: 3 mm voxels, where a step costs half, and less varied phantoms.
    "box-coarse": Recipe(
        method="unet",
        config=BOX,
        data=Data(
            preprocess=Preprocess(spacing_mm=3.0),
            sampling=Sampling(patch=(40, 48, 40), batch=2, tumour_share=0.5, augment=ONE_SIDED),
            stream=Stream(first_seed=10_000_000, crops=4, post_operative=0.08, healthy=0.04, variety=NARROWER),
        ),
        optim=Optim(steps=3000, learning_rate=2e-3, warmup=100, ema=0.999, save_every=100, log_every=20),
    ),
    # Second stage: phantoms that are more varied than those of any test, drawn from a stream without epochs.
    "box-crops": Recipe(
        method="unet",
        config=BOX,
        data=Data(
            preprocess=Preprocess(spacing_mm=2.0),
            sampling=Sampling(patch=(48, 64, 48), batch=2, tumour_share=0.5, augment=ONE_SIDED),
            stream=Stream(first_seed=20_000_000, crops=4, post_operative=0.08, healthy=0.04, variety=WIDE),
        ),
        optim=Optim(steps=5500, learning_rate=1e-3, warmup=100, ema=0.999, save_every=100, log_every=20),
    ),
    # Third stage: whole brains, as in use, because the statistics of group norms depend on the size of the crop.
    "box": Recipe(
        method="unet",
        config=BOX,
        data=Data(
            preprocess=Preprocess(spacing_mm=2.0),
            sampling=Sampling(patch=(72, 88, 72), batch=1, tumour_share=0.5, augment=ONE_SIDED),
            stream=Stream(first_seed=40_000_000, crops=2, post_operative=0.08, healthy=0.04, variety=WIDE),
        ),
        optim=Optim(steps=1400, learning_rate=4e-4, warmup=100, ema=0.999, save_every=100, log_every=20),
    ),
    # The shipped network on phantom-2, with the cavity as a fourth label; crops show most of a brain. Folders of label
    # maps are added by data.stream.anatomies and data.stream.shapes.
    "box-patients": Recipe(
        method="unet",
        config=BOX,
        labels=("NCR", "ED", "ET", "RC"),
        data=Data(
            preprocess=Preprocess(spacing_mm=2.0),
            sampling=Sampling(patch=(64, 80, 64), batch=1, tumour_share=0.5, augment=ONE_SIDED),
            stream=Stream(first_seed=61_000_000, crops=2, post_operative=0.12, healthy=0.2, **POPULATIONS["patients"]),
        ),
        optim=Optim(steps=2200, learning_rate=6e-4, warmup=40, ema=0.995, save_every=50, log_every=20),
    ),
    # The last stage: whole brains.
    "box-patients-whole": Recipe(
        method="unet",
        config=BOX,
        labels=("NCR", "ED", "ET", "RC"),
        data=Data(
            preprocess=Preprocess(spacing_mm=2.0),
            sampling=Sampling(patch=(72, 88, 72), batch=1, tumour_share=0.5, augment=ONE_SIDED),
            stream=Stream(first_seed=62_000_000, crops=2, post_operative=0.12, healthy=0.15, **POPULATIONS["patients"]),
        ),
        optim=Optim(steps=1200, learning_rate=4e-4, warmup=30, ema=0.995, save_every=50, log_every=20),
    ),
    # BraTS at 1 mm with nnU-Net's number of crops; about a day on one GPU.
    "brats": Recipe(
        method="unet",
        config=Config(),
        data=Data(sampling=Sampling(patch=(128, 128, 128), batch=2)),
        optim=BUDGET,
    ),
}
