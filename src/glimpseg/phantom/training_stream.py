"""Phantoms that are generated during training, instead of a dataset on disk."""

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
    """Settings of a phantom stream in a recipe: phantoms generated during training, instead of a dataset on disk."""

    first_seed: int = 1_000_000
    """Seed of the first phantom; the others follow. Do not use seeds that the model is tested on."""
    crops: int = 8
    """Number of crops taken from one phantom before the next is generated."""
    post_operative: float = 0.0
    """Probability that the tumour has been operated on."""
    healthy: float = 0.0
    """Probability that there is no tumour."""
    variety: phantom.Variety = phantom.STANDARD
    """Variation beyond the standard population."""
    traits: phantom.Traits | None = None
    """What `phantom-2` adds; null for `phantom-1`."""
    low_grade: float = phantom.Settings.low_grade
    """Probability of a low-grade tumour."""
    noise: tuple[float, float] = phantom.Settings.noise
    """Range of the standard deviation of the noise, as in `Settings`."""
    anatomies: str | None = None
    """Folder of individuals' label maps; null for the average brain."""
    shapes: str | None = None
    """Folder of real tumours' label maps; null for grown tumours."""

    @property
    def name(self) -> str:
        """Name of the generator: `phantom-1`, or `phantom-2` with traits."""
        return self.settings(4.0).name

    def settings(self, spacing_mm: float) -> phantom.Settings:
        """Return the settings that the phantoms are drawn from, with the field of view of BraTS.

        Args:
            spacing_mm: Edge length of the voxels, 0.5 to 4 mm.

        Raises:
            ValueError: The spacing, or a field, is out of range.
        """
        return phantom.Settings.at_spacing(
            spacing_mm,
            post_operative=self.post_operative,
            healthy=self.healthy,
            variety=self.variety,
            traits=self.traits,
            low_grade=self.low_grade,
            noise=self.noise,
            anatomies=self.anatomies,
            shapes=self.shapes,
        )


class PhantomStream:
    """Endless source of prepared phantoms for training.

    Args:
        stream: Seeds and population.
        settings: Preprocessing, as for any study.
        prior: Function that makes the prior (pseudo-label) maps of a prepared study; None for no maps.
        device: Torch device that renders the phantoms.
    """

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
        """Return the prepared phantom with the seed `first_seed + n // crops`. The last four are kept in memory.

        Args:
            n: Number of the crop, from 0 on.
            seed: Seed of the run; unused, because it does not change the phantoms.
        """
        return self._case(n // self.stream.crops)


def _phantom_case(
    stream: Stream, number: int, settings: Preprocess, *, prior: MakePrior | None, device: torch.device | str
) -> Case:
    made = phantom.generate(stream.first_seed + number, stream.settings(settings.spacing_mm), device)
    prepared = prepare(as_study(made), settings)
    case = in_memory(prepared)
    case.prior = prior(prepared) if prior else None
    return case
