"""What a pretraining's embeddings tell apart, before it and after: is a voxel found again, in how many dimensions?

    python scripts/embeddings.py RUN --data ARCHIVE [--cache CACHE] [--pairs 4]

Of voxels that two crops of a study share: the cosine of student and teacher at the same voxel and at others, the rank
of the right voxel among all of the other crops, and the effective rank of the student's embeddings (exponential of
the entropy of their covariance's spectrum; Roy and Vetterli 2007).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glimpseg import methods
from glimpseg.data.cache import Case
from glimpseg.data.layouts import find_studies
from glimpseg.data.loader import CachedStudies
from glimpseg.methods.voxmmsd.objective import VoxMMSD, at_voxels
from glimpseg.methods.voxmmsd.views import Pairs, pair
from glimpseg.model import checkpoint
from glimpseg.training.dataset import prepare_studies


def main() -> None:
    """Prints a line for random weights and one for the run's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--pairs", type=int, default=4)
    wanted = parser.parse_args()
    recipe = methods.find_recipe(str(wanted.run / "recipe.yaml"))
    studies = find_studies(wanted.data, references="ignored")[: 2 * wanted.pairs]
    cases = CachedStudies(prepare_studies(studies, recipe, wanted.cache or wanted.run / "cache"))
    learner: VoxMMSD = methods.build(recipe)
    batch = pairs_of([cases.case(number, 0) for number in range(wanted.pairs)], learner, recipe)
    torch.manual_seed(0)
    print(f"before  {measured(learner, batch)}")
    newest = checkpoint.newest_valid(wanted.run)
    assert newest is not None, f"{wanted.run} has no checkpoint"
    tensors = checkpoint.load_state(newest)[0].tensors
    kept = {name.removeprefix("learner/"): v for name, v in tensors.items() if name.startswith("learner/")}
    learner.load_state_dict(kept)
    print(f"after   {measured(learner, batch)}")


def pairs_of(cases: list[Case], learner: VoxMMSD, recipe: Any) -> Pairs:
    """Two crops of each study."""
    patch, config = recipe.data.sampling.patch, recipe.config
    pairs = [pair(case, patch, config, np.random.default_rng(number)) for number, case in enumerate(cases)]
    return learner.collate(pairs)[0]


@torch.no_grad()
def measured(learner: VoxMMSD, batch: Pairs) -> str:
    """Cosines and ranks, in words; batch norms use the batch, as in training."""
    side = batch.image.shape[2:]
    student, teacher = (
        learner.projector(at_voxels(network.pyramid(batch.image, batch.available), batch.voxels, side))
        for network in (learner.student, learner.teacher)
    )
    half = len(student) // 2
    cosines = student[:half] @ teacher[half:].T
    right = cosines.diag()
    others = (cosines.sum() - right.sum()) / (cosines.numel() - half)
    place = (cosines >= right[:, None]).sum(1).float().median()
    spectrum = torch.linalg.eigvalsh(torch.cov(student.T)).clamp_min(0)
    shares = (spectrum / spectrum.sum()).clamp_min(1e-12)
    effective = float(torch.exp(-(shares * shares.log()).sum()))
    return (
        f"cosine at the same voxel {right.mean():.3f}, at others {others:.3f}; the right one comes {place:.0f}. of "
        f"{half}; effective rank {effective:.1f} of {student.shape[1]}"
    )


if __name__ == "__main__":
    main()
