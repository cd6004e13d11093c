"""Device choice: the name that a user gives, resolved to a torch device."""

from __future__ import annotations

import os

import torch

from glimpseg.errors import UsageError


def resolved_device(name: str) -> torch.device:
    """Return the torch device of a name, after a first allocation on it.

    `auto` takes CUDA, then Apple's MPS, then the CPU. For `cuda`, each rank under `torchrun` takes the GPU of its local
    rank.

    Raises: UsageError for a name that torch does not know, or a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"The device '{name}' cannot be used ({str(error).splitlines()[0]}). Try --device cpu."
        ) from error
    return device
