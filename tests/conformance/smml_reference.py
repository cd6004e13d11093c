"""Reading of the SMML authors' reference numbers, and comparison with ours.

The file holds what one released branch with its refiner computed of a 32^3 crop; the consistency losses were never
released, so that nothing of them is in it. Both of our branches get the same weights, by the rule.
"""

from __future__ import annotations

import json

import numpy as np
import torch

from conformance.reference import drawn, mapped, ours
from glimpseg.data.crops import Batch
from glimpseg.losses import one_hot
from glimpseg.methods import smml
from glimpseg.nets.pyramid import CHANNELS


def authors_weights(stored):
    """All weights by the rule, as of the two checkpoints of one training; counters of batches are whole numbers, as
    torch writes them."""
    weights = {}
    for key, text in zip(stored["keys"].tolist(), stored["shapes"].tolist(), strict=True):
        value = drawn(str(stored["salt"]), key, json.loads(text))
        value = torch.tensor(110_000) if key.endswith("num_batches_tracked") else value
        weights |= {f"1.{key}": value, f"2.{key}": value}
    return weights


def built(stored):
    """Return the official networks with those weights, without dropout, norms with running statistics."""
    return smml.from_authors(authors_weights(stored)).eval()


def numbers_of(network, stored, number):
    """Return every stored map, and our maps of one branch and its refiner, in the network's precision."""
    branch, found = network.branches[number], {}
    dtype = next(branch.parameters()).dtype
    for key in (key for key in stored if key.startswith("eval_")):
        available = ours(np.array([[digit == "1" for digit in key.removeprefix("eval_")]]), smml)[:, CHANNELS]
        image = ours(stored["x"], smml)[:, CHANNELS].to(dtype) * available[:, :, None, None, None]
        found[f"map {key}"] = mapped(branch.fuse(branch.encode(image, available), available).logits, stored, key)
    image, seen = ours(stored["train_x"], smml).to(dtype), ours(stored["train_mask"], smml)
    prior = ours(stored["train_prior_label"], smml).long()
    everything = torch.ones_like(seen)
    batch = Batch(image, everything, torch.from_numpy(stored["train_label"]).long(), ["a", "b"], prior)
    target = one_hot(batch.target, network.labels)
    features = branch.encode(image[:, CHANNELS], everything)
    output = network.output(branch, batch, seen, target)
    maps = {
        "train_feature": branch.fuse(features, seen[:, CHANNELS]).deepest,
        "train_fuse": output.logits,
        **{f"train_sep{m}": output.maps.singles[:, m] for m in range(4)},
        **{f"train_prm{m}": output.maps.deep[m] for m in range(4)},
        "train_refined": network.refined(number, output, batch, target),
    }
    return found | {f"map {key}": mapped(value, stored, key) for key, value in maps.items()}


def numbers(stored, dtype=torch.float32):
    """Return the comparison of the first branch, whose weights are those of the second."""
    with torch.inference_mode():
        return numbers_of(built(stored).to(dtype), stored, 0)
