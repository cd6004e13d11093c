"""Weights in half the bytes (fp16), for models that are shipped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save as as_bytes
from torch import Tensor

from glimpseg.errors import ModelError
from glimpseg.model.copying import save_copy
from glimpseg.model.folder import WEIGHTS, StoredModel, storable
from glimpseg.version import __version__


def save_halved(
    source: StoredModel,
    folder: str | Path,
    texts: Mapping[str, str] = MappingProxyType({}),
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a copy of a model with fp16 weights, whole or not at all; a model in `folder` is replaced.

    Its provenance names the digest of the fp32 weights (`halved_from`).

    Args:
        source: The model to copy.
        folder: The folder to write.
        texts: Further files for people, such as a model card, which get no digest.
        files: Content of files that replace those of the source.

    Raises: ModelError as `halved`; UsageError if `folder` holds files but no model; OutputError when the disk refuses.
    """
    weights = as_bytes(halved(source.weights))
    note = {"halved_from": source.provenance["sha256"][WEIGHTS], "halved_by": __version__}
    save_copy(source, folder, {**files, WEIGHTS: weights}, note, texts=texts, overwrite=True)


def trained_digest(provenance: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a model's weights as trained: of a halved copy, that of the fp32 weights."""
    return str(provenance.get("halved_from", provenance["sha256"][WEIGHTS]))


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return fp32 tensors as fp16 and all others (counts) unchanged. Loading converts them to fp32 again.

    Raises: ModelError naming the first tensor that fp16 cannot hold.
    """
    half = {}
    for name, value in storable(weights).items():
        half[name] = value.half() if value.dtype == torch.float32 else value
        if value.is_floating_point() and not torch.isfinite(half[name]).all():
            raise ModelError(
                f"The weights {name} reach {float(value.abs().max()):g}, and fp16 holds up to "
                f"{torch.finfo(torch.float16).max:g}. Keep this model in fp32, or train it with more weight decay."
            )
    return half
