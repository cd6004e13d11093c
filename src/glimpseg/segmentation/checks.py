"""Check of the first output of a user's own method, before a whole study is computed with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glimpseg.errors import UsageError
from glimpseg.method import Segmenter

TOLERANCE = 0.02
"""Largest deviation from 0, from 1, and of the sum over channels from 1. bf16 resolves 1/256 near 1."""


def refuse_no_probabilities(network: Segmenter, output: Any, windows: Tensor) -> None:
    """Raise UsageError if an output of a network holds no probabilities for its windows (b m x y z).

    They should be finite, from 0 to 1, and sum to 1 over the channels. Channels may have another meaning, and another
    sum, where the class has a `decode` or a `region_probabilities` of its own.
    """
    wrong = _deviation(network, output, windows)
    if wrong:
        name = type(network).__name__
        raise UsageError(
            f"forward (or fuse) of {name} should return probabilities, and {wrong}. Return softmax(1) of the scores."
        )


def _deviation(network: Segmenter, output: Any, windows: Tensor) -> str | None:
    """Return the first thing that is wrong with an output, in words; None if nothing is."""
    if not isinstance(output, Tensor):
        return f"returns {type(output).__name__}"
    kind = type(network)
    own = kind.decode is not Segmenter.decode or kind.region_probabilities is not Segmenter.region_probabilities
    channels = output.shape[1] if own and output.ndim == 5 else 1 + len(network.labels)
    expected = (len(windows), channels, *windows.shape[2:])
    if tuple(output.shape) != expected:
        return f"the shape is {tuple(output.shape)}, not {expected}"
    if not torch.isfinite(output).all():
        return "some values are not finite"
    low, high = float(output.min()), float(output.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        return f"the values reach from {low:.3g} to {high:.3g}, not from 0 to 1"
    sums = output.float().sum(1)
    if not own and float((sums - 1).abs().max()) > TOLERANCE:
        return (
            f"the sums over the channels reach from {float(sums.min()):.3g} to {float(sums.max()):.3g}, and are not 1"
        )
    return None
