"""Reading of the authors' reference numbers, and comparison with ours.

Each `<method>.npz` holds inputs, and what the authors' released modules made of them with weights that follow from a
rule, so that the weights need no room. Maps are stored at a stride along each spatial axis.
"""

from __future__ import annotations

import importlib
import json
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glimpseg.losses import one_hot, region_fusion_terms
from glimpseg.modality import Modality
from glimpseg.nets.authors import authors_name

HERE = Path(__file__).parent


class Pair(NamedTuple):
    """Our value and the authors' value of the same number or array."""

    ours: np.ndarray
    theirs: np.ndarray
    floor: float = 0.0
    """An absolute difference that rounding may make whatever its scale, where whole steps or sums that cancel ask for
    one."""


def pair(ours, theirs, floor=0.0):
    """Return both values as fp64 arrays; ours may be a tensor with a gradient."""
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else ours
    theirs = np.asarray(theirs, np.float64)
    return Pair(np.asarray(ours, np.float64).reshape(theirs.shape), theirs, floor)


class Rounded(TorchDispatchMode):
    """Change results of matrix products, convolutions and norms as other rounding would, in both directions.

    Each number is moved by a normal draw of ULP of the result's root mean square. Rounding turns some ReLUs and floors
    on or off, which one processor shows for one voxel and another for another: this draws more such cases.
    """

    MOVED = (
        "convolution",
        "conv3d",
        "linear",
        "matmul",
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "native_batch_norm",
        "native_layer_norm",
    )

    def __init__(self, seed):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def moved(self, value):
        """Return a tensor changed by rounding; anything else unchanged."""
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.device.type != "cpu":
            return value
        noise = torch.randn(value.shape, generator=self.generator, dtype=torch.float32)
        return value + ULP * value.square().mean().sqrt() * noise

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.removesuffix("_backward")
        if name not in self.MOVED:
            return out
        return tuple(map(self.moved, out)) if isinstance(out, tuple) else self.moved(out)


MULTIPLE = 10
ULP = 2.0**-23
NULL = 1e-2


def kind(name):
    """Return the kind of a number: the first word of its name, or the part before the first slash of a single word."""
    return name.partition(" ")[0] if " " in name else name.partition("/")[0]


def size(number):
    """Largest magnitude of a number or array."""
    return float(np.abs(number).max())


def scales(exact, runs):
    """Return the effect of rounding on each number, by name.

    The difference between our fp32 and our fp64 result is rounding alone (`exact` is fp64, every one of `runs` fp32).
    One run shows too little: two results may agree by luck, and rounding may switch a ReLU or a floor that moves a
    gradient by a thousandth, on one processor but not on another. So the scale of a number is the root mean square
    over runs with several instruction sets, and at least that of its kind, relative to the sizes of the numbers.
    Some numbers are 0 but for rounding, such as the gradient of a bias in front of a norm: their rounding is above
    the share `NULL` of their size. They have no relative rounding, and their kind is pooled in absolute terms.
    """
    own = {
        name: float(np.sqrt(np.mean([np.abs(run[name].ours - number.ours).max() ** 2 for run in runs])))
        for name, number in exact.items()
    }
    sizes = {name: size(number.theirs) for name, number in exact.items()}
    is_null = {name: own[name] > NULL * sizes[name] for name in own}
    unit = {name: 1.0 if is_null[name] else sizes[name] for name in own}
    pools = {}
    for name in own:
        pools.setdefault((kind(name), is_null[name]), []).append(own[name] / unit[name])
    pooled = {which: float(np.sqrt(np.mean(np.square(values)))) for which, values in pools.items()}
    return {name: max(own[name], pooled[kind(name), is_null[name]] * unit[name]) for name in own}


def shares(method, found):
    """Return the difference between our numbers and the authors', as a share of the allowed difference.

    Allowed is MULTIPLE * (how far rounding moves the number) + ULP * (its size), and its floor if it has one. The
    authors computed in fp32 on a machine of their own, so that their numbers hold a rounding error as large as ours. A
    difference of two such errors that exceeds 10 times the scale of one has another cause. The scales are stored
    (`rounding.npz`, made by `compare.py --rounding`): a fault cannot widen its own tolerance, and the tests need no
    fp64, which takes six times as long. ULP is the spacing of fp32 numbers: the authors' numbers were stored
    with it.
    """
    with np.load(HERE / "rounding.npz") as held:
        scale = dict(zip(held[f"{method}_names"].tolist(), held[f"{method}_scales"].tolist(), strict=True))
    return {
        name: size(number.ours - number.theirs) / (MULTIPLE * scale[name] + ULP * size(number.theirs) + number.floor)
        for name, number in found.items()
    }


def beyond(method, found):
    """Return the numbers that differ by more than rounding explains, NaN included, with their shares."""
    return {name: share for name, share in shares(method, found).items() if not share <= 1}


@contextmanager
def in_fp64():
    """Compute everything in fp64 inside, also where our code asks for fp32 (`Tensor.float`)."""
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def drawn(salt, key, shape):
    """Return a tensor by the rule: random numbers from a generator seeded with the CRC-32 of salt and key."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{salt}{key}".encode()))
    if key.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float32)
    draw = torch.randn(shape, generator=generator, dtype=torch.float32)
    if key.endswith("running_mean"):
        return 0.1 * draw
    if key.endswith(("_pos", "position_embeddings")):
        return 0.02 * draw
    if len(shape) == 1:
        return 1 + 0.1 * draw if key.endswith("weight") else 0.1 * draw
    return draw / np.sqrt(np.prod(shape[1:]))


def authors_weights(stored):
    """Set all weights by the rule."""
    weights = {}
    for key, text in zip(stored["keys"].tolist(), stored["shapes"].tolist(), strict=True):
        weights[key] = drawn(stored["salt"], key, json.loads(text))
    return weights


def built(name, stored):
    """Return the method's module, and its official network with those weights, without dropout."""
    module = importlib.import_module(f"glimpseg.methods.{name}")
    return module, module.from_authors(authors_weights(stored)).eval()


def ours(array, module):
    """Return an array in our order of modalities; its second axis is in the authors' order."""
    return torch.from_numpy(array)[:, [module.ORDER.index(modality) for modality in Modality]]


def thinned(maps, stored, key):
    """Return our full map at the voxels that the file holds."""
    step = maps.shape[-1] // stored[key].shape[-1]
    return maps[..., ::step, ::step, ::step]


def numbers(name, stored, dtype=torch.float32):
    """Return maps, losses and gradient norms, a `Pair` by name. The first word of a name is its kind."""
    module, network = built(name, stored)
    network = network.to(dtype)
    found = {}
    for key in (key for key in stored if key.startswith("eval_")):
        available = ours(np.array([[digit == "1" for digit in key.removeprefix("eval_")]]), module)
        with torch.inference_mode():
            output = network(ours(stored["x"], module).to(dtype), available)
        found[f"map {key}"] = mapped(output, stored, key)
    seen = ours(stored["train_mask"], module)
    everything = torch.ones_like(seen)
    maps = network.maps(ours(stored["train_x"], module).to(dtype), everything, seen)
    found["map train_fuse"] = mapped(maps.fused, stored, "train_fuse")
    for m in range(len(module.ORDER)):
        found[f"map train_sep{m}"] = mapped(maps.singles[:, m], stored, f"train_sep{m}")
        found[f"map train_prm{m}"] = mapped(maps.deep[m], stored, f"train_prm{m}")
    target = one_hot(torch.from_numpy(stored["train_label"]).long(), network.labels)
    terms = region_fusion_terms(maps, target, everything)
    terms["total"] = sum(terms.values())
    for key, value in zip(stored["train_loss_names"].tolist(), stored["train_losses"].tolist(), strict=True):
        found[f"loss {key}"] = pair(terms[key], value)
    terms["total"].backward()
    norms = {authors_name(key, module.NAMES): p.grad.norm() for key, p in network.named_parameters()}
    for key, value in zip(stored["grad_names"].tolist(), stored["grad_norms"].tolist(), strict=True):
        found[f"gradient {key}"] = pair(norms.pop(key), value)
    assert not norms, f"the reference has no gradient of {sorted(norms)}"
    return found


def mapped(output, stored, key):
    """Return the authors' map, and our map at the same voxels."""
    return pair(thinned(output, stored, key), stored[key])
