"""SMML: two branches see different subsets and learn from each other, with priors from other models.

Liang et al., Semantic-guided Masked Mutual Learning for multi-modal brain tumour segmentation with arbitrary missing
modalities, AAAI 2025, arXiv 2507.07592. This package computes what the authors' released code computes
(banbooliang/SMML at d401541): branches, refiners, sampling, schedule and the composition of the losses; no code was
copied from it. The two consistency losses and the priors were never released; those here are our reconstructions.

Two mmFormers (branches) see different random subsets of the same crop. Each branch learns from the reference, from the
other branch (its peer) at the voxels where the peer is reliable, and from the peer's relations between class features.
A refiner corrects each branch's output with prior label maps, and the branch also learns from the result. Only the
branches segment. Files: `config.py`, `network.py` (the refiner), `objective.py` (equations and class), `authors.py`.

Departures
| source | says or does | we do |
|---|---|---|
| code | both consistency losses are called and defined nowhere | reconstructed, by what is known of them |
| code | the second backward pass uses weights that have already changed | one of the sum; peers are constants |
| code | the divergences begin with the 102nd of 1000 epochs | after a tenth of the training; 0.101 in `OFFICIAL` |
| code | relations of scrambled deep features, 0 if not a number | of class prototypes; of samples in `OFFICIAL` |
| code | no script or file of the priors of SAM, nor which SAM | a frozen encoder, cross-fitted decoders |
| code | the prior is neither cropped, rotated nor mirrored with the image | as the reference |
| code | refiners weigh priors by the reference's class shares | by the branch's; `OFFICIAL` by the reference |
| code | an absent class divides by 1e-7 | by 1e-3 at least; `OFFICIAL` as the code |
| code | refined logits go into losses of probabilities | their softmax |
| code | batch norm over one sample for each GPU in the refiners | instance norm; `OFFICIAL` has batch norm |
| code | mmFormer's scrambled tokens, absent tokens and null biases | corrected as in mmFormer; `OFFICIAL` as the code |
| code | needs all modalities of every training study | subsets of what there is; of one sequence both branches see it |
| code | a validation list that is never used, the last epoch tested | the last; no model is chosen |
| code | scores in the cropped frame, files without their place | on the study's native grid |
| code | the evaluation after training lacks two arguments and crashes | `glimpseg evaluate` |
| code | logits are averaged over branches and windows | over branches; of windows, probabilities |
| code | five classes for BraTS 2015 | `ET` and `NCR` as in later releases (`docs/data.md`) |
"""

from __future__ import annotations

from dataclasses import replace

from glimpseg.data.augment import MILD
from glimpseg.data.augment import RFNET as RFNET_AUGMENT
from glimpseg.data.loader import Sampling
from glimpseg.data.preprocess import RFNET as RFNET_INTENSITIES
from glimpseg.data.preprocess import Preprocess
from glimpseg.methods.smml.authors import CHECKPOINTS, NAMES, ORDER, from_authors
from glimpseg.methods.smml.config import OFFICIAL, Config
from glimpseg.methods.smml.objective import SMML
from glimpseg.nets import token_fusion
from glimpseg.phantom.training_stream import Stream
from glimpseg.priors.settings import Prior
from glimpseg.recipe import BUDGET, Data, Optim, Recipe

__all__ = ["CHECKPOINTS", "METHOD", "NAMES", "OFFICIAL", "ORDER", "RECIPES", "Config", "authors_recipe", "from_authors"]


def released_recipe(config: Config, epoch: int) -> Recipe:
    """Return a recipe with the authors' crops, intensities, prior and schedule: 1000 epochs of `epoch` batches of 2.

    Args:
        config: settings of network and objective.
        epoch: optimiser steps of an epoch.
    """
    return Recipe(
        method="smml",
        config=config,
        data=Data(
            preprocess=RFNET_INTENSITIES,
            sampling=Sampling(patch=(128, 128, 128), batch=2, tumour_share=0, augment=RFNET_AUGMENT),
            prior=Prior(kind="sam"),
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


METHOD = SMML

RECIPES = {
    # Trains in minutes on two CPU cores: 3 mm voxels, small branches, phantoms, no prior.
    "phantom": Recipe(
        method="smml",
        config=Config(
            network=token_fusion.Config(levels=4, token_width=128, heads=4, mlp_width=256, crop=(32, 32, 32)),
            refinement=0,
            agreement=0,
            refine_width=8,
        ),
        data=Data(
            preprocess=Preprocess(spacing_mm=3.0),
            sampling=Sampling(
                patch=(32, 32, 32),
                batch=2,
                tumour_share=0.5,
                augment=MILD,
            ),
            stream=Stream(),
        ),
        optim=Optim(steps=450, learning_rate=3e-3, warmup=20, ema=0.99, save_every=50),
    ),
    "brats2015": released_recipe(Config(start=0.101), 121),
    "brats2018": released_recipe(Config(start=0.101), 100),
    "brats2020": released_recipe(Config(start=0.101), 110),
    # As released, on BraTS 2020.
    "official": released_recipe(OFFICIAL, 110),
    # The corrected network with the training budget of `unet/brats`.
    "brats": Recipe(
        method="smml",
        config=Config(),
        data=Data(sampling=Sampling(patch=(128, 128, 128), batch=2), prior=Prior(kind="sam")),
        optim=BUDGET,
    ),
}


def authors_recipe(network: SMML) -> Recipe:
    """Return the recipe for imported weights: `official`, with the network's settings and crop."""
    recipe = RECIPES["official"]
    sampling = replace(recipe.data.sampling, patch=network.config.network.crop)
    return replace(recipe, config=network.config, data=replace(recipe.data, sampling=sampling))
