"""Vox-MMSD: pretraining without labels, by restoring hidden blocks and matching voxels of two crops.

Zhou et al., Vox-MMSD, IEEE JBHI 2025, doi 10.1109/JBHI.2025.3592116. The paper's full text was not at hand. This
package computes what the authors' released code computes (79f7bc6); no code was copied from it.

Two crops of one study overlap. In each of them most blocks of each modality are hidden. The network (student) restores
the hidden blocks. For voxels that are visible in both crops, it also predicts the embedding that a slow copy of the
network (teacher) computes from the other crop. The pretrained weights then initialise a segmenter. Files: `config.py`,
`views.py` (crops, blocks, voxels), `intensities.py`, `objective.py` (equations and class).

Departures
| source | says or does | we do |
|---|---|---|
| code | its configuration lacks a key and cannot start | recipes that do; no warm-up |
| code | projector and restorer are never trained nor saved | trained, saved; `OFFICIAL` as the code |
| code | 0 to 1 over each crop, later tested on whole volumes | as prepared in both; `OFFICIAL` as the code |
| code | restores through tanh | without; `OFFICIAL` as the code |
| code | blocks on a crop's faces are half as thick | all alike; `OFFICIAL` as the code |
| code | a voxel counts once for each modality it shows | once; `OFFICIAL` as the code |
| code | needs all four modalities | any: absent ones are never drawn, restored or counted |
| code | draws crops until enough voxels are seen twice | 20 times; then takes some twice |
| code | searches the whole volume for voxels, as floats | the overlap, as truth values |
| code | the probabilities of blur, gain and shift are inverted | what they come to |
| code | temperature, momentum, rate and decay change every 200 steps | each step; `OFFICIAL` as the code |
| code | uses each temperature a block early, and in the last block none | in its turn; `OFFICIAL` a block early |
| code | the teacher keeps a graph that nothing uses | none |
| code | half precision, its scale forgotten every 200 steps | `optim.precision`; projector and losses in fp32 |
| code | resuming restarts the teacher from noise | complete: teacher, centre, heads, momentum |
| code | keeps the weights of the lowest loss, which rises with the temperature | the last |
| code | centre of one process | of all passes and ranks |
| code | voxels of 8 bits, cut at the 99.9th percentile of a box | as prepared; `official`: 8 bits, of a tighter box |
| code | one box for all, of T1c, which loses the last slice of each axis | of all there are, nothing lost |
| code | transfers the encoder alone | `--transfer encoder`, or `encoder+decoder` |
"""

from __future__ import annotations

from glimpseg.data.loader import Sampling
from glimpseg.data.preprocess import Preprocess
from glimpseg.methods.voxmmsd.config import OFFICIAL, Config
from glimpseg.methods.voxmmsd.objective import VoxMMSD
from glimpseg.phantom.training_stream import Stream
from glimpseg.recipe import Backbone, Data, Optim, Recipe

__all__ = ["METHOD", "OFFICIAL", "RECIPES", "Config"]


def paper_recipe(config: Config, preprocess: Preprocess) -> Recipe:
    """Return a recipe with the authors' schedule and network: 60,000 steps of two studies.

    Args:
        config: settings of the objective.
        preprocess: preparation of the studies.
    """
    return Recipe(
        method="voxmmsd",
        config=config,
        backbone=Backbone(method="voxunet", config={"dropout": (0, 0, 0.2, 0.2, 0.2)}),
        data=Data(
            preprocess=preprocess,
            sampling=Sampling(patch=(96, 96, 96), batch=2),
        ),
        optim=Optim(
            steps=60_000,
            optimizer="sgd",
            momentum=0.9,
            nesterov=False,
            learning_rate=1e-3,
            weight_decay=1e-5,
            cosine_to=1e-4,
            weight_decay_to=1e-4,
            epoch=config.epoch,
            max_norm=None,
            ema=0,
            save_every=1000,
            log_every=50,
        ),
        seed=1,
    )


METHOD = VoxMMSD

RECIPES = {
    # Trains in minutes on two CPU cores: 3 mm voxels, a small network, phantoms.
    "phantom": Recipe(
        method="voxmmsd",
        config=Config(block=8, voxels=256, embedding=128),
        backbone=Backbone(method="voxunet", config={"width": 16, "dropout": (0, 0, 0.1, 0.1), "heads": 3}),
        data=Data(
            preprocess=Preprocess(spacing_mm=3.0),
            sampling=Sampling(patch=(40, 40, 40), batch=2),
            stream=Stream(),
        ),
        optim=Optim(
            steps=450,
            learning_rate=1e-3,
            warmup=20,
            cosine_to=1e-4,
            ema=0,
            save_every=50,
        ),
    ),
    "brats2023": paper_recipe(Config(), Preprocess()),
    # As released.
    "official": paper_recipe(OFFICIAL, Preprocess(scale="bytes", clip=None, margin_mm=0)),
}
