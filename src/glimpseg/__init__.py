"""glimpseg: brain-tumour segmentation from whatever MRI sequences exist."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glimpseg.modality import SUBSETS, Modality
from glimpseg.version import __version__

if TYPE_CHECKING:
    from glimpseg import metrics, phantom
    from glimpseg.evaluation.compare import compare
    from glimpseg.evaluation.evaluate import evaluate
    from glimpseg.evaluation.options import EvaluationOptions
    from glimpseg.model.loading import Model
    from glimpseg.segmentation.options import InferenceOptions
    from glimpseg.segmentation.predict import load, segment
    from glimpseg.segmentation.result import Segmentation

__all__ = [
    "SUBSETS",
    "EvaluationOptions",
    "InferenceOptions",
    "Modality",
    "Model",
    "Segmentation",
    "__version__",
    "compare",
    "evaluate",
    "load",
    "metrics",
    "phantom",
    "segment",
]

_MODULES = {
    "EvaluationOptions": "glimpseg.evaluation.options",
    "InferenceOptions": "glimpseg.segmentation.options",
    "Model": "glimpseg.model.loading",
    "Segmentation": "glimpseg.segmentation.result",
    "compare": "glimpseg.evaluation.compare",
    "evaluate": "glimpseg.evaluation.evaluate",
    "load": "glimpseg.segmentation.predict",
    "segment": "glimpseg.segmentation.predict",
}
_PACKAGES = ("metrics", "phantom")


def __getattr__(name: str) -> Any:
    # Naming the package imports neither torch nor numpy. A module is imported when its name is first used.
    if name in _PACKAGES:
        return importlib.import_module(f"glimpseg.{name}")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'glimpseg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
