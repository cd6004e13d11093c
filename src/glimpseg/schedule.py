"""How a number changes over a training."""

from __future__ import annotations

import math


def begun(step: int, every: int) -> int:
    """The step at which the present block of `every` steps began."""
    return step - step % every


def cosine(step: int, steps: int, first: float, last: float, warmup: int = 0) -> float:
    """From `first` to `last` along half a cosine; before it `warmup` steps on a line from 0 to `first`, both ends
    included (DINO)."""
    if step < warmup:
        return first * step / max(warmup - 1, 1)
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
