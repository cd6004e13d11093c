"""Largest tumours of a model's training, by region."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from glimpseg.region import Region

FIELD = "largest_ml"
"""Field of `provenance.json` with the largest volume of each region in the studies of the training, in ml."""
TABLE = "training_volumes.json"
"""Largest volumes in streams of phantoms, by the generator (`tools/derive/training_volumes.py`)."""


def largest_volumes(provenance: Mapping[str, Any]) -> dict[Region, float] | None:
    """Return the largest volume of each region in a model's training, in ml; None if it is not known.

    It comes from the field `largest_ml` that training on studies writes, or for a stream of phantoms from the table of
    the package.
    """
    known = provenance.get(FIELD)
    if known is None:
        known = _streams().get((provenance.get("data") or {}).get("stream", ""), {}).get(FIELD)
    return {Region[name]: float(ml) for name, ml in known.items()} if known else None


@functools.cache
def _streams() -> dict[str, Any]:
    text = (resources.files("glimpseg.model") / TABLE).read_text("utf-8")
    tree: dict[str, Any] = json.loads(text)
    return tree
