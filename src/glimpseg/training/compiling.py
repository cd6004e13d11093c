"""Compiled networks (`torch.compile`) for training; if compiling fails, training goes on without it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from glimpseg.method import Learner
from glimpseg.runtime.distributed import any_rank

log = logging.getLogger(__name__)

BACKEND = "inductor"
RECOMPILE_LIMIT = 64
"""Compiled variants of one function, at most. Modules of several widths share their code, and so this limit."""


def should_compile(setting: bool | Literal["auto"], device: torch.device) -> bool:
    """True if `optim.compile` asks for compiling. `auto` means CUDA under Linux with triton installed."""
    if setting == "auto":
        return device.type == "cuda" and sys.platform == "linux" and find_spec("triton") is not None
    return setting


def compile_networks(learner: Learner, trial: Callable[[Learner], None], device: torch.device, precision: str) -> bool:
    """Compile the learner's `networks` in place, if a trial on a compiled copy works. The weights keep their names.

    Args:
        learner: The learner.
        trial: Makes a forward and a backward pass of a learner. If it fails in any rank, nothing is compiled, and a
            warning names the cause.
        device: Device of the training.
        precision: `fp32` or `bf16`. bf16 on a CPU is not compiled; a warning says so.

    Returns: True if the networks are compiled.
    """
    if precision == "bf16" and device.type == "cpu":
        # The compiler does not see which convolutions have to stay in fp32 there (`precision`).
        log.warning("On a CPU networks are compiled in fp32 alone. Training goes on without compiling.")
        return False
    copy, failure = deepcopy(learner), ""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    try:
        _compile(copy.networks)
        trial(copy)
    except Exception as error:
        cause = getattr(error, "inner_exception", error)  # the compiler's own error
        failure = f"{type(cause).__name__}: {str(cause).strip()}".splitlines()[0]
    del copy
    if any_rank(bool(failure), device):
        torch._dynamo.reset()
        log.warning(
            "The network could not be compiled (%s). Training goes on without. Set optim.compile=false to skip the "
            "attempt.",
            failure or "in another rank",
        )
        return False
    _compile(learner.networks)
    log.info("The network is compiled.")
    return True


def _compile(networks: tuple[nn.Module, ...]) -> None:
    for network in networks:
        network.compile(backend=BACKEND, dynamic=False)  # crops have one size
