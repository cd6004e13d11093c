"""Time the augmentation of a batch of crops: ours on the whole batch, against MONAI's transforms on each sample.

    python benchmarks/augmentation.py [--crop 128] [--batch 2] [--repeat 5] [--record FILE]

- glimpseg: parameters drawn first, then one resampling of image and target for the whole batch.
- MONAI: the same steps as dictionary transforms on each sample: `RandAffined`, `RandFlipd`, `RandGaussianNoised`,
  `RandGaussianSmoothd`, `RandScaleIntensityd`, `RandSimulateLowResolutiond`, `RandAdjustContrastd`.

Every step has probability 1, so that both do the same work; only the strengths differ from sample to sample.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from glimpseg.data import augment
from glimpseg.data.augment import Augment
from turns import Contest, add_options, in_turns, tell

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what MONAI's imports say of themselves
    from monai import transforms as monai

ALWAYS = Augment(
    rotation=1, zooming=1, noise=1, blur=1, brightness=1, contrast=1, low_resolution=1, gamma=1,
)  # fmt: skip
BOTH = ["image", "target"]


def main() -> None:
    """Measure and print. Raises: SystemExit if a value that neither should change has changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    add_options(parser, repeat=5)
    wanted = parser.parse_args()
    warnings.filterwarnings("ignore", module="monai")
    generator = torch.Generator().manual_seed(0)
    side = (wanted.crop,) * 3
    image = torch.randn(wanted.batch, 4, *side, generator=generator)
    target = torch.randint(0, 4, (wanted.batch, *side), generator=generator)
    _same_where_nothing_is_asked_for(image, target)
    rng, theirs = np.random.default_rng(0), _theirs()

    def ours() -> Tensor:
        drawn = [augment.sample(ALWAYS, rng) for _ in range(wanted.batch)]
        return augment.apply(drawn, image, target)[0]

    def monais() -> Tensor:
        samples = [theirs({"image": x, "target": y[None]}) for x, y in zip(image, target, strict=True)]
        return torch.stack([torch.as_tensor(sample["image"]) for sample in samples])

    contestants: dict[str, Callable[[], Tensor]] = {"glimpseg": ours, "MONAI": monais}
    for run in contestants.values():
        run()
    tell(
        [
            Contest(
                question="Augmenting a training batch",
                setting=f"{wanted.batch} crops of 4 x {wanted.crop}^3 with targets, {torch.get_num_threads()} threads",
                unit="s",
                ours="glimpseg",
                rounds=in_turns(contestants, wanted.repeat),
                agreement="The same steps, of strengths that are drawn anew for each",
            )
        ],
        wanted.record,
    )


def _theirs() -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    turn = float(np.radians(ALWAYS.rotation_degrees))
    zoom = (1 / ALWAYS.zoom[1] - 1, 1 / ALWAYS.zoom[0] - 1)
    steps = [
        monai.RandAffined(
            BOTH, prob=1, rotate_range=[turn] * 3, scale_range=[zoom] * 3, mode=["bilinear", "nearest"],
            padding_mode="zeros", cache_grid=True, spatial_size=None,
        ),
        *[monai.RandFlipd(BOTH, prob=0.5, spatial_axis=axis) for axis in range(3)],
        monai.RandGaussianNoised("image", prob=1, std=0.3),
        monai.RandGaussianSmoothd("image", prob=1, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0)),
        monai.RandScaleIntensityd("image", prob=1, factors=0.25),
        monai.RandSimulateLowResolutiond("image", prob=1, zoom_range=(0.5, 1.0)),
        monai.RandAdjustContrastd("image", prob=1, gamma=(0.7, 1.5), retain_stats=True),
    ]  # fmt: skip
    return monai.Compose(steps).set_random_state(0)


def _same_where_nothing_is_asked_for(image: Tensor, target: Tensor) -> None:
    still = Augment(mirror=(False, False, False), **dict.fromkeys(
        ("rotation", "zooming", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma"), 0.0
    ))  # fmt: skip
    drawn = [augment.sample(still, np.random.default_rng(0)) for _ in image]
    kept, labels = augment.apply(drawn, image, target)
    if not (torch.equal(kept, image) and labels is not None and torch.equal(labels, target)):
        raise SystemExit("Augmentation changes what it was asked to leave.")


if __name__ == "__main__":
    main()
