"""Phantoms made while training, in place of a folder of studies."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from glimpseg import phantom
from glimpseg.data.cache import Case, in_memory
from glimpseg.data.preprocess import Prepared, Preprocess, prepare
from glimpseg.phantom.dataset import as_study

MakePrior = Callable[[Prepared], UInt8[np.ndarray, "m x y z"]]


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Stream:
    """Phantoms made while training, in place of a folder of studies."""

    first_seed: int = 1_000_000
    """Seed of the first phantom; the others follow. Keep clear of the seeds you test on."""
    crops: int = 8
    """Crops taken from a phantom before the next one is made."""
    post_operative: float = 0.0
    """Share of phantoms after surgery."""
    healthy: float = 0.0
    """Share of phantoms without a tumour."""
    variety: phantom.Variety = phantom.STANDARD
    """What is drawn beyond the standard population."""

    def settings(self, spacing_mm: float) -> phantom.Settings:
        """What the phantoms are drawn from."""
        return phantom.Settings.at_spacing(
            spacing_mm, post_operative=self.post_operative, healthy=self.healthy, variety=self.variety
        )


class PhantomStream:
    """An endless stream of phantoms, drawn on `device` and prepared like any study; `prior` makes what is supposed of
    their labels."""

    def __init__(
        self,
        stream: Stream,
        settings: Preprocess,
        prior: MakePrior | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.stream = stream
        self._case = lru_cache(maxsize=4)(
            lambda number: _phantom_case(stream, number, settings, prior=prior, device=device)
        )

    def case(self, n: int, seed: int) -> Case:
        """Phantom `n // crops`; the run's seed does not change the phantoms."""
        return self._case(n // self.stream.crops)


def _phantom_case(
    stream: Stream, number: int, settings: Preprocess, *, prior: MakePrior | None, device: torch.device | str
) -> Case:
    made = phantom.generate(stream.first_seed + number, stream.settings(settings.spacing_mm), device)
    prepared = prepare(as_study(made), settings)
    case = in_memory(prepared)
    case.prior = prior(prepared) if prior else None
    return case
