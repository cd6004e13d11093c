"""Options of one training: the data it learns from, and how it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of one training: its data, and how it runs. Everything else that decides the weights is in the recipe."""

    device: torch.device
    """Device to train on."""
    data: str | Path | None = None
    """Folder of studies. None: the recipe's stream of phantoms."""
    labels: str | None = None
    """Label convention of the references, as for `region.convention_named`. None: detected from the data."""
    split: str | None = None
    """Published list of studies, such as `brats2020/train`; only its studies are used. None: all studies."""
    cache: str | Path | None = None
    """Folder for preprocessed studies. None: `cache` in the run folder."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder; begin if there is no run."""
    threads: int = 1
    """Threads that cut crops ahead of the training."""
    tensorboard: bool = False
    """Also write TensorBoard files."""
    quiet: bool = False
    """Show no progress bar."""
