"""Exponential moving average of a learner's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from glimpseg.method import Learner


def averaged_copy(learner: Learner, decay: float) -> AveragedModel:
    """Return a copy whose weights become the exponential moving average of the learner's, at each `update_parameters`.

    The first update copies the weights. After t updates, the next one has the decay min(`decay`, (1 + t) / (10 + t)):
    the first steps average over the few weights there are. Buffers are copied, not averaged.
    """

    def average(old: Sequence[Tensor], new: Sequence[Tensor], count: Tensor | int) -> None:
        rate = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(old), list(new), 1 - rate)

    return AveragedModel(learner, multi_avg_fn=average)
