"""mmFormer: convolutional encoders, a transformer within each modality and one between them.

Zhang et al., mmFormer: Multimodal Medical Transformer for Incomplete Multimodal Learning of Brain Tumor Segmentation,
MICCAI 2022, part V, pp. 107-117, arXiv 2206.02425. Implemented is what the authors' released code computes
(YaoZhang93/mmFormer at b18663a), from its facts.

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
from glimpseg.nets.positions import cube_of
from glimpseg.nets.pyramid import CHANNELS, ORDER
from glimpseg.nets.recompute import outermost
from glimpseg.nets.token_fusion import OFFICIAL, UNUSED, Config, Features, TokenFusion
from glimpseg.phantom.training_stream import Stream
from glimpseg.recipe import BUDGET, Data, Optim, Recipe
from glimpseg.region import Label

__all__ = ["METHOD", "NAMES", "OFFICIAL", "ORDER", "RECIPES", "Config", "authors_recipe", "from_authors"]


class MMFormer(Segmenter):
    """Tokens of all modalities look at each other; a convolutional decoder does the rest."""

    pretrainable: ClassVar[Mapping[str, str]] = {"encoder": r"network\.encoders\.(.+)"}

    def __init__(self, config: Config, labels: tuple[Label, ...]) -> None:
        super().__init__(labels)
        self.config = config
        self.network = TokenFusion(config, len(labels) + 1)

    @property
    def stride(self) -> int:
        """One halving for each level below the first."""
        return self.config.stride

    @property
    def smallest(self) -> int:
        """Two voxels at the deepest level: fewer cannot be reflected at the border."""
        return 2 * self.stride

    @property
    def fixed_windows(self) -> bool:
        """The released layout means another arrangement for every size."""
        return self.config.layout == "released"

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Encoders, transformers and decoders."""
        return tuple(outermost(self, token_fusion.NETWORKS))

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Encoders' stages, layers of the transformers, and the decoders' blocks."""
        return tuple(outermost(self, token_fusion.STAGES))

    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Fused probabilities; encoders of modalities that the whole batch lacks are not run."""
        return self.fuse(self.encode(image, available), available)

    def encode(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Features:
        """The encoders' features and each modality's tokens. Eq. (1)."""
        return self.network.encode(blanked(image, available)[:, CHANNELS], available[:, CHANNELS])

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """The encoders' maps, modalities side by side."""
        return self.network.pyramid(blanked(image, available)[:, CHANNELS], available[:, CHANNELS])

    def fuse(self, features: Features, available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """Fused probabilities from the available modalities' features."""
        return self.network.fuse(features, available[:, CHANNELS]).logits.softmax(1)

    def maps(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"], seen: Bool[Tensor, "b m"]
    ) -> FusionOutputs:
        """All that is supervised: fused from what is `seen`, singles from what is `available`. Eq. (6), Eq. (7)."""
        features = self.encode(image, available)
        return self.network.supervised(features, self.network.fuse(features, seen[:, CHANNELS]))

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropy and Dice of the fused, the single and the deep segmentations, weight 1 each. Eq. (10)."""
        assert batch.target is not None, "supervised training needs a reference for every crop"
        maps = self.maps(batch.image, batch.available, draw_subsets(batch.available))
        return region_fusion_terms(maps, one_hot(batch.target, self.labels), batch.available[:, CHANNELS])


NAMES = tuple((rf"network\.{ours}", theirs) for ours, theirs in token_fusion.NAMES)
"""Our names and the authors', for `nets.authors.take_weights`."""


def from_authors(weights: Mapping[str, Tensor]) -> MMFormer:
    """The official network with the weights of an authors' checkpoint (its state dict), for its size of crop.

    Raises: ModelError for weights that are not mmFormer's, or of other classes than BraTS 2018 and 2020 have.
    """
    positions = [value for name, value in weights.items() if name.endswith("flair_pos")]
    if not positions or positions[0].dim() != 3:
        raise ModelError("These are not the weights of the authors' mmFormer: flair_pos is missing.")
    crop = cube_of(positions[0].shape[1], OFFICIAL.stride)
    network = MMFormer(replace(OFFICIAL, crop=crop), (Label.NCR, Label.ED, Label.ET))
    take_weights(network, weights, NAMES, UNUSED)
    return network


def authors_recipe(network: MMFormer) -> Recipe:
    """How imported weights are used: with the crops and intensities that they were trained on."""
    recipe = RECIPES["brats2020"]
    sampling = replace(recipe.data.sampling, patch=network.config.crop)
    return replace(recipe, config=network.config, data=replace(recipe.data, sampling=sampling))


def released(epoch: int) -> Recipe:
    """The authors' schedule: 1000 epochs, each of as many batches of 8 as the list of cases fills."""
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
    # Minutes on two cores: 3 mm voxels, a small network, phantoms.
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
    "brats2018": released(25),
    "brats2020": released(28),
    # The mended network under the budget of `unet/brats`.
    "brats": Recipe(
        method="mmformer",
        config=Config(),
        data=Data(sampling=Sampling(patch=(128, 128, 128), batch=2)),
        optim=BUDGET,
    ),
}
