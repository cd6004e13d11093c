"""How the authors' reference numbers are read, and compared with ours.

Each `<method>.npz` holds inputs, and what the authors' released modules made of them with weights that follow from a
rule, so that the weights need no room. Maps are stored at a stride along each spatial axis.
"""

from __future__ import annotations

import importlib
import json
import zlib
from pathlib import Path

import numpy as np
import torch

from glimpseg.losses import one_hot, region_fusion_terms
from glimpseg.method import authors_name
from glimpseg.modality import Modality

HERE = Path(__file__).parent


def drawn(salt, key, shape):
    """A tensor by the rule: one draw for each key, from a generator seeded with the CRC-32 of salt and key."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{salt}{key}".encode()))
    if key.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    draw = torch.randn(shape, generator=generator)
    if key.endswith("running_mean"):
        return 0.1 * draw
    if key.endswith(("_pos", "position_embeddings")):
        return 0.02 * draw
    if len(shape) == 1:
        return 1 + 0.1 * draw if key.endswith("weight") else 0.1 * draw
    return draw / np.sqrt(np.prod(shape[1:]))


def authors_weights(stored):
    """All weights by the rule."""
    weights = {}
    for key, text in zip(stored["keys"].tolist(), stored["shapes"].tolist(), strict=True):
        weights[key] = drawn(stored["salt"], key, json.loads(text))
    return weights


def built(name, stored):
    """The method's module, and its official network with those weights, dropout off."""
    module = importlib.import_module(f"glimpseg.methods.{name}")
    return module, module.from_authors(authors_weights(stored)).eval()


def ours(array, module):
    """An array whose second axis is in the authors' order of modalities, in ours."""
    return torch.from_numpy(array)[:, [module.ORDER.index(modality) for modality in Modality]]


def thinned(maps, stored, key):
    """Our full map at the voxels that the file holds."""
    step = maps.shape[-1] // stored[key].shape[-1]
    return maps[..., ::step, ::step, ::step]


def differences(name, stored):
    """Largest absolute difference of every stored map; relative difference of every loss; and of every gradient's
    norm the share of the tolerance 1e-3 of it + 1e-5."""
    module, network = built(name, stored)
    found = {}
    for key in (key for key in stored if key.startswith("eval_")):
        available = ours(np.array([[digit == "1" for digit in key.removeprefix("eval_")]]), module)
        with torch.inference_mode():
            output = network(ours(stored["x"], module), available)
        found[key] = largest(output, stored, key)
    seen = ours(stored["train_mask"], module)
    everything = torch.ones_like(seen)
    maps = network.maps(ours(stored["train_x"], module), everything, seen)
    found["train_fuse"] = largest(maps.fused, stored, "train_fuse")
    for m in range(len(module.ORDER)):
        found[f"train_sep{m}"] = largest(maps.singles[:, m], stored, f"train_sep{m}")
        found[f"train_prm{m}"] = largest(maps.deep[m], stored, f"train_prm{m}")
    target = one_hot(torch.from_numpy(stored["train_label"]).long(), network.labels)
    terms = region_fusion_terms(maps, target, everything)
    terms["total"] = sum(terms.values())
    for key, value in zip(stored["train_loss_names"].tolist(), stored["train_losses"].tolist(), strict=True):
        found[f"loss {key}"] = abs(float(terms[key].detach()) - value) / value
    terms["total"].backward()
    norms = {authors_name(key, module.NAMES): float(p.grad.norm()) for key, p in network.named_parameters()}
    for key, value in zip(stored["grad_names"].tolist(), stored["grad_norms"].tolist(), strict=True):
        found[f"gradient {key}"] = abs(norms.pop(key) - value) / (1e-3 * value + 1e-5)
    assert not norms, f"the reference has no gradient of {sorted(norms)}"
    return found


def largest(output, stored, key):
    return float((thinned(output, stored, key) - torch.from_numpy(stored[key])).detach().abs().max())
