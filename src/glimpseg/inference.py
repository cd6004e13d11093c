"""A prepared study and a network in; labels and probabilities on the study's own grid out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from glimpseg.checkpoint import Model
from glimpseg.data.preprocess import Prepared
from glimpseg.method import Segmenter
from glimpseg.modality import Modality, as_mask, union
from glimpseg.region import Region
from glimpseg.volume import Volume, onto

OVERLAP = 0.5
"""Share that neighbouring windows have in common. nnU-Net, RFNet: 1/2."""
WINDOWS_AT_ONCE = 2
"""On a processor without GPU two windows cost less than one (oneDNN leaves single small ones to a slow kernel)."""
WHOLE_VOXELS = 128**3
"""Of a window that shows the whole brain, at most."""


@dataclass(frozen=True, eq=False)
class Found:
    """What the network finds in a prepared study from one subset of its modalities."""

    subset: Modality
    labels: Volume
    """`Label` values, uint8, on the study's own grid."""
    probabilities: Mapping[Region, Volume] | None
    """On the own grid, if they were asked for."""


def infer(
    prepared: Prepared,
    model: Model,
    subsets: Sequence[Modality],
    *,
    keep_probabilities: bool = False,
    weighting: str = "gaussian",
) -> Iterator[Found]:
    """What each of `subsets` alone shows, on the study's own grid; one result at a time, not always in their order.

    Windows run over the brain's box on the working grid. A network that `shares` encodes each window once for all
    subsets whose box is the same. Probabilities, not labels, are interpolated back. `weighting` is how overlapping
    windows are averaged: `gaussian` or `constant`.
    """
    for group in _groups(prepared, subsets) if model.network.shares else [(subset,) for subset in subsets]:
        shown = prepared.restricted_to(union(group))
        for subset, working in zip(group, _windows(model, shown, group, weighting), strict=True):
            yield _found(subset, working[0].cpu(), shown, model, keep_probabilities)


def _groups(prepared: Prepared, subsets: Sequence[Modality]) -> list[tuple[Modality, ...]]:
    """Subsets that see the same box of the working grid, together."""
    groups: dict[tuple[tuple[int, int], ...], list[Modality]] = {}
    for subset in subsets:
        groups.setdefault(tuple((side.start, side.stop) for side in prepared.box(subset)), []).append(subset)
    return [tuple(group) for group in groups.values()]


def _windows(
    model: Model, shown: Prepared, subsets: Sequence[Modality], weighting: str
) -> tuple[Float[Tensor, "1 k x y z"], ...]:
    """Probabilities on the working grid, for each subset."""
    network, device = model.network, model.device
    roi = _window(network, model.recipe.data.sampling.patch, shown.image.shape[1:])
    image, inner = _with_air(shown, roi)
    inferer = SlidingWindowInferer(roi, sw_batch_size=WINDOWS_AT_ONCE, overlap=OVERLAP, mode=weighting)
    masks = [as_mask(subset)[None].to(device) for subset in subsets]
    wanted = as_mask(union(subsets))[None].to(device)

    def probabilities(windows: Tensor) -> tuple[Tensor, ...]:
        features = network.encode(windows, wanted.expand(len(windows), -1))
        return tuple(network.fuse(features, mask.expand(len(windows), -1)) for mask in masks)

    with torch.inference_mode(), model.computing():
        result = inferer(torch.from_numpy(image)[None].to(device), probabilities)
    results = (result,) if isinstance(result, Tensor) else result  # one output comes without its tuple
    return tuple(found[:, :, *inner] for found in results)


def _window(network: Segmenter, patch: Sequence[int], shape: Sequence[int]) -> Sequence[int]:
    """Sides of the window for images of `shape`, for a network that was trained on crops of `patch`."""
    if network.fixed_windows:
        return patch
    # A study smaller than the patch needs no larger window than the next multiple of the network's stride.
    sides = [max(-(-n // network.stride) * network.stride, network.smallest) for n in shape]
    near = all(side <= network.whole_up_to * p for side, p in zip(sides, patch, strict=True))
    if near and math.prod(sides) <= WHOLE_VOXELS:
        return sides
    return [min(side, p) for side, p in zip(sides, patch, strict=True)]


def _with_air(shown: Prepared, least: Sequence[int]) -> tuple[Float[np.ndarray, "m x y z"], tuple[slice, slice, slice]]:
    """The images with air around them where they are smaller than `least`, and where they then lie."""
    shape = shown.image.shape[1:]
    before = [max(side - n, 0) // 2 for side, n in zip(least, shape, strict=True)]
    x, y, z = (slice(start, start + n) for start, n in zip(before, shape, strict=True))
    image = np.empty((len(shown.image), *map(max, least, shape)), np.float32)
    image[:] = shown.levels[:, None, None, None]
    image[:, x, y, z] = shown.image
    return image, (x, y, z)


def _found(
    subset: Modality, working: Float[Tensor, "k x y z"], prepared: Prepared, model: Model, keep_probabilities: bool
) -> Found:
    network, affine = model.network, prepared.own.affine
    own = torch.stack([torch.from_numpy(_back(channel.numpy(), prepared)) for channel in working])[None]
    labels = Volume(network.decode(own)[0].numpy().astype(np.uint8), affine)
    if not keep_probabilities:
        return Found(subset, labels, None)
    maps = {region: Volume(p[0].numpy(), affine) for region, p in network.region_probabilities(own).items()}
    return Found(subset, labels, maps)


def _back(values: Float[np.ndarray, "x y z"], prepared: Prepared) -> Float[np.ndarray, "i j k"]:
    return onto(Volume(values, prepared.grid.affine), prepared.own).voxels
