"""Recipe: the typed settings of a training run.

A recipe is read from a method's file or from YAML, and written in full beside every checkpoint. Recipe and data
together decide the weights. A field that does not exist, or a value that it cannot have, raises pydantic's
ValidationError (a ValueError).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from glimpseg.data.loader import Sampling
from glimpseg.data.preprocess import Preprocess
from glimpseg.phantom.training_stream import Stream
from glimpseg.priors.settings import Prior
from glimpseg.region import Label

_STRICT = ConfigDict(extra="forbid")


@validated(frozen=True, kw_only=True, config=_STRICT)
class Data:
    """Training data and their preprocessing."""

    preprocess: Preprocess = Preprocess()
    sampling: Sampling = Sampling()
    stream: Stream | None = None
    """Phantoms made during the training, used when no folder of studies is named."""
    prior: Prior = Prior()
    """Prior (pseudo-label) maps, for methods that learn from them."""
    labelled: float = Field(default=1.0, gt=0, le=1)
    """Share of the studies that is learned from. The recipe's seed decides which. Every study of a smaller share is in
    a larger one, too."""


@validated(frozen=True, kw_only=True, config=_STRICT)
class Optim:
    """Optimisation of the losses."""

    steps: int = 250_000
    """Optimiser steps. nnU-Net: 1000 epochs of 250."""
    optimizer: Literal["adamw", "sgd", "adam", "amsgrad"] = "adamw"
    """adamw: weight decay apart from the gradient. sgd: with `momentum`. adam: `weight_decay` added to the gradient, as
    MST-KDNet. amsgrad: the same with a second moment that never falls, as RFNet."""
    momentum: float = 0.99
    """Momentum of sgd. nnU-Net: 0.99; Vox-MMSD: 0.9."""
    nesterov: bool = True
    """Nesterov momentum for sgd. nnU-Net: yes; Vox-MMSD: no."""
    learning_rate: float = 3e-4
    """Highest learning rate. A cosine has it at the end of the warmup; a polynomial has fallen a little by then."""
    weight_decay: float = 3e-5
    """Weight decay, at the first step if `weight_decay_to` is set. nnU-Net: 3e-5."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly from 0; see `rate` and `cosine`."""
    power: float = 0.9
    """Exponent of the polynomial decay to 0. RFNet, nnU-Net: 0.9."""
    cosine_to: float | None = None
    """Learning rate at the end of half a cosine, which replaces the polynomial; null for the polynomial. Vox-MMSD:
    1e-4."""
    weight_decay_to: float | None = None
    """Weight decay at the end of half a cosine; null for a constant weight decay. Vox-MMSD: 1e-4."""
    epoch: int = 1
    """Steps between changes of the learning rate and the weight decay, apart from the warmup. RFNet: 150."""
    max_norm: float | None = 12.0
    """Largest norm of the gradient of each parameter group, null for no clipping. nnU-Net: 12; RFNet: none."""
    accumulate: int = 1
    """Backward passes of one step; the crops of `sampling.batch` are divided among them."""
    ema: float = 0.999
    """Decay of the exponential moving average of the weights, which becomes the model; 0 for the last weights."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """Precision of autocast. auto: bf16 where the processor computes it natively. A model trained in fp32 is used in
    fp32."""
    compile: bool | Literal["auto"] = False
    """Compile the network (`torch.compile`): takes minutes at the start, then runs fused layers. auto: for CUDA under
    Linux with triton, as nnU-Net. The results are equal up to rounding, except for the draws of dropout. The time it
    saves on a GPU has not been measured."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of storing them: less memory, more time, the same
    gradients."""
    save_every: int = 250
    """Steps between checkpoints. There is one after the last step, too."""
    log_every: int = 10
    """Steps between lines of `metrics.jsonl`. There is one after the last step, too."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "epoch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, not {getattr(self, name)}.")
        if self.cosine_to is not None and self.warmup and not self.epoch < self.warmup < self.steps:
            raise ValueError(
                f"warmup should lie between epoch ({self.epoch}) and steps ({self.steps}) before a cosine, not "
                f"{self.warmup}; 0 for none."
            )
        if self.max_norm is not None and self.max_norm <= 0:
            raise ValueError(f"max_norm should be above 0, or null for no clipping, not {self.max_norm}.")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0.

        With a cosine it is that of `cosine`. Otherwise it is `learning_rate` times min(1, (step + 1) / (warmup + 1))
        times (1 - b / steps) ^ power, where b is the first step of the step's block of `epoch` steps.
        """
        rate, since = self.learning_rate, block_start(step, self.epoch)
        if self.cosine_to is not None:
            return cosine(since, self.steps, rate, self.cosine_to, warmup=self.warmup)
        return rate * min(1.0, (step + 1) / (self.warmup + 1)) * (1 - since / self.steps) ** self.power

    def decay(self, step: int) -> float:
        """Return the weight decay of a step, counted from 0. It changes at the first step of each block of `epoch`."""
        if self.weight_decay_to is None:
            return self.weight_decay
        return cosine(block_start(step, self.epoch), self.steps, self.weight_decay, self.weight_decay_to)


BUDGET = Optim(steps=250_000, learning_rate=3e-4, warmup=1000, precision="bf16", save_every=1000, log_every=50)
"""Optimisation of the recipes `brats`, the same for all methods, with nnU-Net's number of steps."""


@validated(frozen=True, kw_only=True, config=_STRICT)
class Backbone:
    """Network that a pretraining trains."""

    method: str
    """Name of a method that segments. Its `Segmenter.pretrainable` names the parts that are trained."""
    config: Any = Field(default_factory=dict)
    """`Config` of that method."""


@validated(frozen=True, kw_only=True, config=_STRICT)
class Init:
    """Initial weights."""

    weights: str | None = None
    """Model folder, run folder, or `box` for the model of the package; null for random weights."""
    transfer: Literal["encoder", "encoder+decoder", "whole"] = "encoder"
    """Parts of the network that the weights are taken for. Vox-MMSD's code: the encoder. `whole` trains the same
    network further, heads included."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that `transfer` names, one by one: `encoder`, `decoder` or `whole`."""
        return tuple(self.transfer.split("+"))


@validated(frozen=True, kw_only=True, config=_STRICT)
class Recipe:
    """Settings of a training run."""

    method: str
    """Name of a method (`glimpseg.methods.names`)."""
    config: Any
    """`Config` of that method."""
    labels: tuple[Literal["NCR", "ED", "ET", "RC"], ...] = ("NCR", "ED", "ET")
    """Labels to segment; RC only for data after surgery."""
    data: Data = Data()
    optim: Optim = Optim()
    backbone: Backbone | None = None
    """Network of a pretraining; null for everything else."""
    init: Init = Init()
    seed: int = 0
    """Seed of all random numbers of the training, and of the choice of a labelled share."""

    def __post_init__(self) -> None:
        if self.data.sampling.batch % self.optim.accumulate:
            raise ValueError(
                f"data.sampling.batch ({self.data.sampling.batch}) should be a multiple of optim.accumulate "
                f"({self.optim.accumulate}). Change one of them."
            )

    @property
    def label_values(self) -> tuple[Label, ...]:
        """The labels as values of a label map, in the same order."""
        return tuple(Label[name] for name in self.labels)


def block_start(step: int, every: int) -> int:
    """Return the first step of the block of `every` steps that contains the step; blocks begin at 0."""
    return step - step % every


def cosine(step: int, steps: int, first: float, last: float, warmup: int = 0) -> float:
    """Return the value at a step of half a cosine from `first` to `last`.

    The first `warmup` steps rise linearly from 0 to `first`, both ends included (DINO). The value is `first` at step
    `warmup`, and `last` at step `steps`.
    """
    if step < warmup:
        return first * step / max(warmup - 1, 1)
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
