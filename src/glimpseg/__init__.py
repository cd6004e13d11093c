"""glimpseg: brain-tumour segmentation from whatever MRI sequences exist."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glimpseg.modality import SUBSETS, Modality
from glimpseg.version import __version__

if TYPE_CHECKING:
    from glimpseg.segmentation.predict import Segmentation, load, segment

__all__ = ["SUBSETS", "Modality", "Segmentation", "__version__", "load", "segment"]


def __getattr__(name: str) -> Any:
    # torch is imported when something is segmented, not when the package is named.
    if name in __all__:
        return getattr(importlib.import_module("glimpseg.segmentation.predict"), name)
    raise AttributeError(f"module 'glimpseg' has no attribute '{name}'")
