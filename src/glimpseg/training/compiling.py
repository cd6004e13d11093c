"""Networks compiled where that pays; where it fails, training goes on without."""

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
FORMS = 64
"""Forms of one piece of code that are compiled at most: modules of several widths share theirs."""


def is_wanted(setting: bool | Literal["auto"], device: torch.device) -> bool:
    """`auto` compiles for CUDA under Linux, where triton is installed: there, fused layers save memory traffic."""
    if setting == "auto":
        return device.type == "cuda" and sys.platform == "linux" and find_spec("triton") is not None
    return setting


def compile_networks(learner: Learner, trial: Callable[[Learner], None], device: torch.device, precision: str) -> bool:
    """Compiles what the learner says is worth it, in place; whether that was done.

    It is tried on a copy first, forward and backward. If that fails in any rank, nothing is compiled, and the log says
    why. The weights keep their names.
    """
    if precision == "bf16" and device.type == "cpu":
        # The compiler does not see which convolutions have to stay in fp32 there (`precision`).
        log.warning("On a CPU networks are compiled in fp32 alone. Training goes on without compiling.")
        return False
    copy, failure = deepcopy(learner), ""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)
    try:
        _compile(copy.networks)
        trial(copy)
    except Exception as error:
        cause = getattr(error, "inner_exception", error)  # what the compiler itself has met
        failure = f"{type(cause).__name__}: {str(cause).strip()}".splitlines()[0]
    del copy
    if any_rank(bool(failure), device):
        torch._dynamo.reset()
        log.warning(
            "The network could not be compiled (%s). Training goes on without; optim.compile=false says so at once.",
            failure or "in another rank",
        )
        return False
    _compile(learner.networks)
    log.info("The network is compiled.")
    return True


def _compile(networks: tuple[nn.Module, ...]) -> None:
    for network in networks:
        network.compile(backend=BACKEND, dynamic=False)  # crops have one size
