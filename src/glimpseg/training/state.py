"""State of a training: learner, optimiser and averaged weights, with one optimiser step."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from glimpseg.data.crops import Batch
from glimpseg.errors import TrainingError
from glimpseg.method import Learner, Progress
from glimpseg.model.checkpoint import SavedState
from glimpseg.nets.recompute import recompute
from glimpseg.recipe import Optim
from glimpseg.runtime.distributed import rank_and_world
from glimpseg.runtime.precision import precision_context, resolve_precision, small_convolutions_in_fp32
from glimpseg.training.compiling import compile_networks
from glimpseg.training.ema import averaged_copy

log = logging.getLogger(__name__)


class Objective(nn.Module):
    """The learner's losses as a forward pass, as DDP and torch.compile need them."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the learner's named, weighted loss terms."""
        return self.learner.losses(batch, progress)


def build_optimizer(learner: Learner, optim: Optim) -> torch.optim.Optimizer:
    """Return the recipe's optimiser for the learner's parameter groups.

    A group may have a weight decay of its own, which no schedule changes, and a `scale`, which multiplies the learning
    rate.
    """
    groups = [{"scheduled": "weight_decay" not in group, **group} for group in learner.parameter_groups()]
    optimizer: torch.optim.Optimizer
    if optim.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            groups,
            lr=optim.learning_rate,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
            weight_decay=optim.weight_decay,
        )
    elif optim.optimizer in ("adam", "amsgrad"):
        never_falls = optim.optimizer == "amsgrad"
        optimizer = torch.optim.Adam(
            groups, lr=optim.learning_rate, weight_decay=optim.weight_decay, amsgrad=never_falls, fused=True
        )
    else:
        optimizer = torch.optim.AdamW(groups, lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True)
    for group in optimizer.param_groups:
        group.setdefault("scale", 1.0)
    return optimizer


@dataclass(kw_only=True)
class TrainingState:
    """Learner, optimiser and averaged weights of a training."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None
    """Copy with the averaged weights; None without averaging."""
    objective: nn.Module
    """The learner's losses, under several ranks wrapped for DDP."""
    device: torch.device
    precision: str
    """Precision of the forward pass: `fp32` or `bf16`."""

    @classmethod
    def begin(cls, learner: Learner, optim: Optim, device: torch.device) -> TrainingState:
        """Return the state before the first step, for a learner that is on the device already."""
        optimizer = build_optimizer(learner, optim)
        averaged = averaged_copy(learner, optim.ema) if optim.ema else None
        precision = resolve_precision(optim.precision, device)
        if optim.recompute:  # after the average, which is never run
            if not learner.stages:
                log.warning("optim.recompute has no effect: %s has no `stages`.", type(learner).__name__)
            recompute(learner.stages, partial(small_convolutions_in_fp32, precision, device))
        objective: nn.Module = Objective(learner)
        if rank_and_world()[1] > 1:
            objective = DistributedDataParallel(objective)
        return cls(
            learner=learner,
            optimizer=optimizer,
            averaged=averaged,
            objective=objective,
            device=device,
            precision=precision,
        )

    def loss_terms(self, objective: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the terms of an objective, computed in the precision of the training."""
        with precision_context(self.precision, self.device):
            return objective(batch, progress)

    def compile(self, batch: Batch, progress: Progress) -> None:
        """Compile the learner's networks if a compiled forward and backward pass over this batch works, else warn.

        After the warning, training goes on without compiling. bf16 on a CPU is never compiled.

        Args:
            batch: Batch on the device.
            progress: Place in the training, for the losses.
        """

        def trial(learner: Learner) -> None:
            sum(self.loss_terms(Objective(learner), batch, progress).values(), torch.zeros(())).backward()

        compile_networks(self.learner, trial, self.device, self.precision)

    def step(self, optim: Optim, progress: Progress) -> dict[str, float]:
        """Clip the gradients, make one optimiser step, update the average.

        The norm of each parameter group is clipped to `max_norm` by itself.

        Returns: `gradient_norm`, that of all gradients before clipping, and `learning_rate`, before any group's
            `scale`.

        Raises: TrainingError if the norm is not finite.
        """
        rate, decay = optim.rate(progress.step), optim.decay(progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
            if group["scheduled"]:
                group["weight_decay"] = decay
        most = math.inf if optim.max_norm is None else optim.max_norm
        # Each group is clipped by itself: a discriminator's gradient does not shrink the step of the network it judges.
        norms = [float(nn.utils.clip_grad_norm_(group["params"], most)) for group in self.optimizer.param_groups]
        norm = math.hypot(*norms)
        if not math.isfinite(norm):
            raise TrainingError(
                f"The gradient's norm is {norm} at step {progress.step}, though every loss term is finite. The last "
                "checkpoint is untouched. Lower optim.learning_rate, or set optim.precision=fp32."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.learner.after_step(progress)
        if self.averaged is not None:
            self.averaged.update_parameters(self.learner)
        return {"gradient_norm": norm, "learning_rate": rate}

    def model_weights(self) -> dict[str, Tensor]:
        """Return the weights for a model folder: averaged ones where the recipe averages, else the latest."""
        learner: Any = self.learner if self.averaged is None else self.averaged.module
        return learner.kept

    def save(self, step: int) -> SavedState:
        """Return the state for a checkpoint. `step` is the number of steps done."""
        tensors = {f"learner/{name}": value for name, value in self.learner.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"ema/{name}": value for name, value in self.averaged.state_dict().items()}
        packed = self.optimizer.state_dict()
        for number, slots in packed["state"].items():
            tensors |= {f"optimizer/{number}/{name}": value for name, value in slots.items()}
        return SavedState(step, tensors, {"groups": packed["param_groups"], "precision": self.precision})

    def restore(self, saved: SavedState) -> None:
        """Take over the state of a checkpoint."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in saved.tensors.items() if k.startswith(prefix)}

        self.learner.load_state_dict(part("learner/"))
        if self.averaged is not None:
            self.averaged.load_state_dict(part("ema/"))
        slots: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, value in part("optimizer/").items():
            number, slot = name.split("/")
            slots[int(number)][slot] = value
        self.optimizer.load_state_dict({"state": dict(slots), "param_groups": saved.scalars["groups"]})
