"""The plain baseline: one residual 3-D U-Net trained under modality dropout.

No paper of its own; it is what every paper of this field has to beat, built from what is known to work: the
residual encoder-decoder of Myronenko (arXiv 1810.11654) as MONAI builds it (`SegResNetDS`), nnU-Net's region
targets, loss, deep supervision, augmentation and schedule (Isensee et al., arXiv 2011.00848), and early fusion with
modality dropout: absent modalities are zero channels, and four more channels say which are present.

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
from glimpseg.phantom import WIDE
from glimpseg.phantom.training_stream import Stream
from glimpseg.recipe import BUDGET, Data, Optim, Recipe
from glimpseg.region import Label, Region

TUMOUR = {Region.WT: Label.ED, Region.TC: Label.NCR, Region.ET: Label.ET}
"""Regions from the outermost to the innermost, and the label of what lies in none that is further in."""


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """A residual U-Net with region heads."""

    width: int = 32
    """Channels of the first level; doubled at each downsampling. SegResNet: 32."""
    blocks: tuple[int, ...] = (1, 2, 2, 4, 4)
    """Residual blocks of each encoder level. SegResNet: 1, 2, 2, 4; one level more for 128^3 crops."""
    channels_per_group: int = 4
    """Channels of the first level that share a norm; more than one, so that presence survives it. Ours."""
    heads: int = 3
    """Resolutions that are supervised, finest first."""
    head_weight: float = 0.5
    """Weight of each coarser head relative to the one above. nnU-Net: 1/2."""
    dice: float = 1.0
    """Weight of the soft Dice term. nnU-Net: 1."""
    cross_entropy: float = 1.0
    """Weight of the cross-entropy term. nnU-Net: 1."""
    full_share: float = 0.0
    """Share of samples that see all their modalities; the rest draw a subset. RFNet: 0."""

    def __post_init__(self) -> None:
        if self.width % self.channels_per_group:
            raise ValueError(f"width ({self.width}) should be a multiple of channels_per_group; change either.")
        if not 1 <= self.heads < len(self.blocks):
            raise ValueError(f"heads should lie between 1 and {len(self.blocks) - 1} for {len(self.blocks)} levels.")


class UNet(Segmenter):
    """Early fusion, presence channels, one sigmoid for each region."""

    pretrainable: ClassVar[Mapping[str, str]] = {
        "encoder": r"network\.encoder\.(.+)",
        "decoder": r"network\.up_layers\.(\d+\.(?:upsample|blocks)\..+)",
    }

    def __init__(self, config: Config, labels: tuple[Label, ...]) -> None:
        super().__init__(labels)
        if lost := set(labels).difference(*(region.value for region in self.regions)):
            raise UsageError(
                f"unet has a head for each region, and no region that {_named(labels)} make up holds {_named(lost)}. "
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
        """One halving for each level below the first."""
        return 2 ** (len(self.config.blocks) - 1)

    @property
    def whole_up_to(self) -> float:
        """Twice, for speed; what it does to Dice is on the method's page."""
        return 2.0

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All of it."""
        return (self.network,)

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Residual blocks."""
        return tuple(outermost(self.network, ResidualBlock))

    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Probability of each region, in the order of `regions`. They overlap: the channels do not sum to 1."""
        return self.logits(image, available)[0].float().sigmoid()

    def logits(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> list[Tensor]:
        """One map for each supervised resolution, finest first; only the finest outside training. Eq. (3)."""
        return self.network(self._shown(image, available))

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """The decoder's maps."""
        return list(self.network.decoded(self._shown(image, available)))[::-1]

    def _shown(self, image: Tensor, available: Tensor) -> Tensor:
        presence = available[:, :, None, None, None].expand_as(image).to(image.dtype)
        return torch.cat([blanked(image, available), presence], 1)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Dice and cross-entropy of the regions, over the heads with weights 1, 1/2, 1/4, ... that sum to 1.

        Eq. (8), Eq. (9).
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
        """One binary map for each region. Eq. (4)."""
        maps = [torch.isin(target, torch.tensor(region.value, device=target.device)) for region in self.regions]
        return torch.stack(maps, 1).float()

    def decode(self, probabilities: Float[Tensor, "b k x y z"]) -> Int[Tensor, "b x y z"]:
        """Regions above one half, each inside the last: oedema where WT alone, necrosis where TC, then ET; a
        cavity where RC is likelier than not and likelier than tumour."""
        found = self.region_probabilities(probabilities)
        labels = torch.zeros_like(probabilities[:, 0], dtype=torch.int64)
        inside = torch.ones_like(labels, dtype=torch.bool)
        for region, label in TUMOUR.items():
            if region in found:
                inside = inside & (found[region] > 0.5)
                labels[inside] = label
        if Region.RC in found:
            tumour = next((found[region] for region in TUMOUR if region in found), 0.0)
            labels[(found[Region.RC] > 0.5) & (found[Region.RC] > tumour)] = Label.RC
        return labels

    def region_probabilities(self, probabilities: Float[Tensor, "b k x y z"]) -> dict[Region, Float[Tensor, "b x y z"]]:
        """The channels, by name."""
        return dict(zip(self.regions, probabilities.unbind(1), strict=True))


def _named(labels: Iterable[Label]) -> str:
    return ", ".join(label.name for label in sorted(labels))


METHOD = UNet

BOX = Config(width=16, blocks=(1, 2, 2, 4), full_share=0.2)
"""The network that comes with the package."""
ONE_SIDED = replace(MILD, zooming=0.3, gamma=0.2, mirror=(True, False, False))
"""Mirrors left and right alone, because the other mirrors show no patient."""
NARROWER = replace(
    WIDE, tissue=0.05, uptake=0.2, contrast=0.02, flatness=0.12, histogram=0.05, sequences=0.1, coarse=0.1, strip=0.15,
    central=0.0, lopsided=0.0,
)  # fmt: skip
"""Phantoms of which a network learns first where tumours are and what they look like."""

RECIPES = {
    # Minutes on two cores: 3 mm voxels, a small network, phantoms. What `make demo` and the tests use.
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
    # The network in the box begins here, at 3 mm, where a step costs half, and on phantoms of half the widths.
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
    # It goes on here: phantoms more varied than any test on them, no folder of studies, no epoch.
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
    # And ends here, on whole brains, which is how it is used: group norms see what they will see then.
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
    # A day on one GPU, nnU-Net's budget of crops: BraTS at 1 mm.
    "brats": Recipe(
        method="unet",
        config=Config(),
        data=Data(sampling=Sampling(patch=(128, 128, 128), batch=2)),
        optim=BUDGET,
    ),
}
