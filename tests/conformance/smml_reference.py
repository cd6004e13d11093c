"""How the reference numbers of SMML's authors are read, and compared with ours.

The file holds what one released branch with its refiner computed of a 32^3 crop; the consistency losses were never
released, so that nothing of them is in it. Both of our branches get the same weights, by the rule.
"""

from __future__ import annotations

import json

import numpy as np
import torch

from conformance.reference import drawn, largest, ours
from glimpseg.losses import one_hot
from glimpseg.methods import smml
from glimpseg.nets.pyramid import CHANNELS
from glimpseg.study import Batch


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
    """The official networks with those weights, dropout off and norms with their running statistics."""
    return smml.from_authors(authors_weights(stored)).eval()


def compared(network, stored, number):
    """Largest absolute difference of every stored map to that of one branch."""
    branch, found = network.branches[number], {}
    for key in (key for key in stored if key.startswith("eval_")):
        available = ours(np.array([[digit == "1" for digit in key.removeprefix("eval_")]]), smml)[:, CHANNELS]
        image = ours(stored["x"], smml)[:, CHANNELS] * available[:, :, None, None, None]
        found[key] = largest(branch.fuse(branch.encode(image, available), available).logits, stored, key)
    image, seen = ours(stored["train_x"], smml), ours(stored["train_mask"], smml)
    prior = ours(stored["train_prior_label"], smml).long()
    everything = torch.ones_like(seen)
    batch = Batch(image, everything, torch.from_numpy(stored["train_label"]).long(), ["a", "b"], prior)
    target = one_hot(batch.target, network.labels)
    features = branch.encode(image[:, CHANNELS], everything)
    found["train_feature"] = largest(branch.fuse(features, seen[:, CHANNELS]).deepest, stored, "train_feature")
    output = network.output(branch, batch, seen, target)
    found["train_fuse"] = largest(output.logits, stored, "train_fuse")
    for m in range(4):
        found[f"train_sep{m}"] = largest(output.maps.singles[:, m], stored, f"train_sep{m}")
        found[f"train_prm{m}"] = largest(output.maps.deep[m], stored, f"train_prm{m}")
    found["train_refined"] = largest(network.refined(number, output, batch, target), stored, "train_refined")
    return found


def differences(stored):
    """Of both branches."""
    network = built(stored)
    with torch.inference_mode():
        both = [compared(network, stored, number) for number in range(2)]
    return {name: max(one[name] for one in both) for name in both[0]}
