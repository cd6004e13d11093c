"""Sliding-window inference: labels and probabilities of a prepared study, on its native grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glimpseg import methods
from glimpseg.data.notices import warn
from glimpseg.data.preprocess import Prepared, brain_of
from glimpseg.errors import InputError
from glimpseg.method import WINDOW_OVERLAP, Segmenter
from glimpseg.modality import Modality, to_flags, union
from glimpseg.model.loading import Model
from glimpseg.region import Region
from glimpseg.segmentation.checks import refuse_no_probabilities
from glimpseg.segmentation.uncertainty import DiceEstimate, calibrated
from glimpseg.volume import Grid, Volume, resample, slabs

WEIGHT_SD = 0.125
"""Standard deviation of the Gaussian weights, as a share of a window's side. nnU-Net: 1/8."""
LEAST_WEIGHT = 1e-3
"""Smallest weight of a voxel in the average, where the centre has 1. MONAI: 0.001."""
WINDOWS_AT_ONCE = 2
"""Windows in one call. On a CPU two together take less time than one each (oneDNN computes a single small window with a
slow kernel)."""
WHOLE_VOXELS = 160 * 192 * 160
"""Voxels of the largest window that shows the whole brain: a large brain at 1 mm, little more than two windows of
128^3."""
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "bad allocation")


@dataclass(frozen=True, eq=False)
class Prediction:
    """Labels and probabilities of a study, from one subset of its modalities."""

    subset: Modality
    labels: Volume
    """`Label` values, uint8, on the native grid of the study."""
    probabilities: Mapping[Region, Volume] | None
    """Probability maps on the native grid, if asked for; calibrated if temperatures were given."""
    estimates: Mapping[Region, float] | None = None
    """Estimated Dice of each region, if temperatures were given (`uncertainty.estimated_dice`); NaN where nothing was
    found."""


def infer(
    prepared: Prepared,
    model: Model,
    subsets: Sequence[Modality],
    *,
    keep_probabilities: bool = False,
    temperatures: Mapping[Region, float] | None = None,
    weighting: str = "gaussian",
) -> Iterator[Prediction]:
    """Yield the prediction from each subset of modalities alone, on the native grid, one at a time.

    Predictions do not always come in the order of `subsets`. Windows run over the brain's box on the working grid. A
    network that `shares` encodes each window once for all subsets whose box is the same. For several subsets torch
    computes that; otherwise the inference backend of the model computes. Probabilities, not labels, are interpolated
    back; to a large grid slab by slab.

    Args:
        prepared: The study on the working grid.
        model: The model.
        subsets: Subsets of the available modalities.
        keep_probabilities: Keep the probability maps.
        temperatures: Temperature of each region (1 for a region without one). With them, probabilities are calibrated
            and the Dice of each region is estimated. None: neither is done.
        weighting: Weights of overlapping windows in their average, `gaussian` or `constant`.

    Raises:
        InputError: If the memory does not suffice even for one window at a time.
        UsageError: If a method of the user's own returns no probabilities (`checks.refuse_no_probabilities`).
    """
    if model.network.shares and len(subsets) > 1:
        model, groups = model.by_torch, _subsets_by_box(prepared, subsets)
    else:
        groups = [(subset,) for subset in subsets]
    for group in groups:
        shown = prepared.restricted_to(union(group))
        for subset, working in zip(group, _working_probabilities(model, shown, group, weighting), strict=True):
            yield _on_native_grid(
                subset,
                working[0].cpu(),
                prepared=shown,
                network=model.network,
                keep_probabilities=keep_probabilities,
                temperatures=temperatures,
            )


def _subsets_by_box(prepared: Prepared, subsets: Sequence[Modality]) -> list[tuple[Modality, ...]]:
    """Group the subsets that see the same box of the working grid."""
    groups: dict[tuple[tuple[int, int], ...], list[Modality]] = {}
    for subset in subsets:
        groups.setdefault(tuple((side.start, side.stop) for side in prepared.box(subset)), []).append(subset)
    return [tuple(group) for group in groups.values()]


def _working_probabilities(
    model: Model, shown: Prepared, subsets: Sequence[Modality], weighting: str
) -> tuple[Float[Tensor, "1 k x y z"], ...]:
    """Return the probabilities on the working grid, for each subset in the order given."""
    network, device = model.network, model.device
    rois = _window_sides(network, model.recipe.data.sampling.patch, shown.image.shape[1:])
    masks = [to_flags(subset)[None].to(device) for subset in subsets]
    wanted = to_flags(union(subsets))[None].to(device)

    unchecked = methods.is_own(model.recipe.method)

    def probabilities(windows: Tensor) -> tuple[Tensor, ...]:
        nonlocal unchecked
        if len(masks) == 1:
            outputs: tuple[Tensor, ...] = (model.backend(windows, wanted.expand(len(windows), -1)),)
        else:
            features = network.encode(windows, wanted.expand(len(windows), -1))
            outputs = tuple(network.fuse(features, mask.expand(len(windows), -1)) for mask in masks)
        if unchecked:
            refuse_no_probabilities(network, outputs[0], windows)
            unchecked = False
        return outputs

    with torch.inference_mode(), model.backend.computing():
        return _with_enough_memory(shown, rois, weighting, device, network=probabilities)


def _with_enough_memory(
    shown: Prepared,
    rois: Sequence[Sequence[int]],
    weighting: str,
    device: torch.device,
    *,
    network: Callable[[Tensor], tuple[Tensor, ...]],
) -> tuple[Float[Tensor, "1 k x y z"], ...]:
    """Run the windows over the image, in the first way for which the memory suffices.

    The ways, in order: windows of each of the sides `rois`; one window of the last of these sides at a time; the same
    with the image and the averages in the CPU's memory. Raises: InputError if the memory suffices for none.
    """
    cpu, least = torch.device("cpu"), rois[-1]
    plans = [*((roi, WINDOWS_AT_ONCE, device) for roi in rois), (least, 1, device)]
    for roi, at_once, place in plans if device == cpu else [*plans, (least, 1, cpu)]:
        image, inner = _padded(shown, roi)
        try:
            results = averaged(
                torch.from_numpy(image).to(place),
                network,
                sides=roi,
                weighting=weighting,
                at_once=at_once,
                device=device,
            )
            return tuple(result[None, :, *inner] for result in results)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        warn(f"The memory of {device} did not suffice for windows of {_size_in_words(roi)}, {at_once} at a time.")
        torch.cuda.empty_cache()  # nothing without a GPU
    raise InputError(
        f"The memory of {device} does not suffice for one window of {_size_in_words(least)} voxels of an image of "
        f"{_size_in_words(image.shape[1:])}, {image.nbytes >> 20} MB. Close other programs, choose another --device, "
        "or take a model with smaller windows or larger voxels."
    )


def averaged(
    image: Float[Tensor, "m x y z"],
    network: Callable[[Tensor], Sequence[Tensor]],
    sides: Sequence[int],
    weighting: str,
    at_once: int,
    device: torch.device,
) -> list[Float[Tensor, "k x y z"]]:
    """Return the outputs of a network on windows over an image, averaged where windows overlap.

    Places, weights and order of summation are the same as in MONAI 1.6's `SlidingWindowInferer`.

    Args:
        image: The image, at least as large as a window. The averages lie on its device.
        network: Function from windows (b m x y z) to one output (b k x y z) or several.
        sides: Voxels of a window along each axis.
        weighting: `gaussian` or `constant`, see `window_weights`.
        at_once: Number of windows in one call.
        device: Device of the network.

    Returns:
        One average for each output of the network.
    """
    boxes = window_boxes(image.shape[1:], sides)
    weights = window_weights(sides, weighting, device)
    sums: list[Tensor] = []
    for first in range(0, len(boxes), at_once):
        part = boxes[first : first + at_once]
        outputs = network(torch.stack([image[:, *box] for box in part]).to(device))
        if not sums:
            sums = [image.new_zeros(len(output[0]), *image.shape[1:]) for output in outputs]
        for total, output in zip(sums, outputs, strict=True):
            for box, window in zip(part, (output * weights).to(image.device), strict=True):
                total[:, *box] += window
    weight, placed = image.new_zeros(image.shape[1:]), weights.to(image.device)
    for box in boxes:
        weight[box] += placed
    return [total.div_(weight) for total in sums]


def window_boxes(shape: Sequence[int], sides: Sequence[int]) -> list[tuple[slice, slice, slice]]:
    """Return windows of `sides` voxels that cover `shape` and overlap by `WINDOW_OVERLAP` or more.

    The last window along an axis ends at the edge. No side may be longer than the axis.
    """
    starts = []
    for length, side in zip(shape, sides, strict=True):
        step = max(int(side * (1 - WINDOW_OVERLAP)), 1)
        starts.append([*range(0, length - side, step), length - side])
    return [(slice(x, x + i), slice(y, y + j), slice(z, z + k)) for i, j, k in [sides] for x, y, z in product(*starts)]


def window_weights(sides: Sequence[int], weighting: str, device: torch.device) -> Float[Tensor, "x y z"]:
    """Return the weight of each voxel of a window in the average: by `weighting`, `constant` or `gaussian`.

    `constant`: 1. `gaussian`: a Gaussian about the centre with a standard deviation of an eighth of the side, at least
    `LEAST_WEIGHT` (nnU-Net).
    """
    weights = torch.ones(tuple(sides), device=device)
    if weighting == "constant":
        return weights
    for axis, side in enumerate(sides):
        offset = torch.arange(side, dtype=torch.float, device=device) - (side - 1) / 2
        along = torch.exp(offset**2 / (-2 * (WEIGHT_SD * side) ** 2))
        weights = weights * along.reshape([-1 if other == axis else 1 for other in range(3)])
    return weights.clamp_min(max(float(weights.min()), LEAST_WEIGHT))


def _out_of_memory(error: Exception) -> bool:
    """True if an error means that memory ran out. torch has a class for it on a GPU only; else the text says it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _size_in_words(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _window_sides(network: Segmenter, patch: Sequence[int], shape: Sequence[int]) -> list[Sequence[int]]:
    """Return the sides of the windows for images of `shape`, best first; later ones need less memory.

    The first may show the whole brain, if the network can take it. `patch` are the sides of the crops that the network
    was trained on.
    """
    if network.fixed_windows:
        return [patch]
    # A study smaller than the patch needs no larger window than the next multiple of the network's stride.
    sides = [max(-(-n // network.stride) * network.stride, network.smallest) for n in shape]
    windows = [min(side, p) for side, p in zip(sides, patch, strict=True)]
    near = all(side <= network.whole_up_to * p for side, p in zip(sides, patch, strict=True))
    whole = near and sides != windows and math.prod(sides) <= WHOLE_VOXELS
    return [sides, windows] if whole else [windows]


def _padded(shown: Prepared, least: Sequence[int]) -> tuple[Float[np.ndarray, "m x y z"], tuple[slice, slice, slice]]:
    """Return the images, padded with air to at least the sides `least`, and their place in the padded array."""
    shape = shown.image.shape[1:]
    before = [max(side - n, 0) // 2 for side, n in zip(least, shape, strict=True)]
    x, y, z = (slice(start, start + n) for start, n in zip(before, shape, strict=True))
    image = np.empty((len(shown.image), *map(max, least, shape)), np.float32)
    image[:] = shown.levels[:, None, None, None]
    image[:, x, y, z] = shown.image
    return image, (x, y, z)


def _on_native_grid(
    subset: Modality,
    working: Float[Tensor, "k x y z"],
    *,
    prepared: Prepared,
    network: Segmenter,
    keep_probabilities: bool,
    temperatures: Mapping[Region, float] | None,
) -> Prediction:
    """Return the prediction on the native grid, from the probabilities on the working grid."""
    own = prepared.own
    labels, estimate = np.zeros(own.shape, np.uint8), DiceEstimate()
    maps: dict[Region, np.ndarray] = {}
    for box in slabs(own):
        part = own.crop(box)
        shown = torch.stack([torch.from_numpy(_onto(channel.numpy(), prepared, part)) for channel in working])[None]
        labels[box] = network.decode(shown)[0].numpy()
        if not keep_probabilities and temperatures is None:
            continue
        probabilities = {region: p[0].numpy() for region, p in network.region_probabilities(shown).items()}
        if temperatures is not None:
            probabilities = {r: calibrated(p, temperatures.get(r, 1.0)) for r, p in probabilities.items()}
            estimate.add(labels[box], probabilities, brain_of(prepared, part))
        if keep_probabilities:
            for region, values in probabilities.items():
                maps.setdefault(region, np.empty(own.shape, np.float32))[box] = values
    kept = {region: Volume(values, own.affine) for region, values in maps.items()} if keep_probabilities else None
    return Prediction(subset, Volume(labels, own.affine), kept, estimate.dice if temperatures is not None else None)


def _onto(values: Float[np.ndarray, "x y z"], prepared: Prepared, grid: Grid) -> Float[np.ndarray, "i j k"]:
    return resample(Volume(values, prepared.grid.affine), grid).voxels
