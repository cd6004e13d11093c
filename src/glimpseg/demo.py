"""The whole way in one command: phantoms, training, 15 subsets, a report, one study from two sequences."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from glimpseg import methods, report
from glimpseg.atomic import refuse_if_used
from glimpseg.data import phantom
from glimpseg.data.layouts import find_studies
from glimpseg.data.phantom_archive import write_phantoms
from glimpseg.evaluate import evaluate
from glimpseg.modality import Modality
from glimpseg.predict import load, segment_study
from glimpseg.train import train

log = logging.getLogger(__name__)

RECIPE = "unet/phantom"
SPACING_MM = 2.0
TRAINING_SEEDS = range(32)
TEST_SEEDS = range(900_000, 900_008)
PARTS = ("phantoms", "run", "evaluation", "segmentation")
"""What the demo makes in its folder, and all that --overwrite removes."""
SHOWN = Modality.T1C | Modality.FLAIR
"""The pair that a short protocol keeps."""


def run(folder: str | Path, *, overwrite: bool = False, steps: int | None = None) -> Iterator[str]:
    """Yields lines for the reader as each part is done; everything lies in `folder` afterwards.

    Raises: UsageError if `folder` holds files (without `overwrite`).
    """
    folder = Path(folder)
    refuse_if_used(folder, overwrite=overwrite)
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    begun = time.perf_counter()

    settings = phantom.Settings.at_spacing(SPACING_MM)
    write_phantoms(folder / "phantoms" / "train", TRAINING_SEEDS, settings, "brats2023")
    write_phantoms(folder / "phantoms" / "test", TEST_SEEDS, settings, "brats2023")
    yield f"{len(TRAINING_SEEDS)} + {len(TEST_SEEDS)} phantoms made, {_since(begun)}"

    recipe = methods.find_recipe(RECIPE, {} if steps is None else {"optim.steps": steps})
    train(recipe, folder / "run", data=folder / "phantoms" / "train", device=torch.device("cpu"))
    yield f"{RECIPE} trained for {recipe.optim.steps} steps, {_since(begun)}"

    model = load(folder / "run", "cpu")
    studies = find_studies(folder / "phantoms" / "test")
    evaluation = evaluate(model, studies, folder / "evaluation")
    page = report.write_report(folder / "evaluation")
    yield f"15 subsets of {len(studies)} held-out phantoms scored, {_since(begun)}."
    yield report.text_table(evaluation)

    place = segment_study(studies[0].restricted_to(SHOWN), model).save(folder / "segmentation")
    yield f"{studies[0].id} segmented from {SHOWN.title} alone: {place / 'preview.png'}"
    yield f"Done, {_since(begun)}. Open {page.resolve()}"


def _since(begun: float) -> str:
    return f"{time.perf_counter() - begun:.0f} s so far"
