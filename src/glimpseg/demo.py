"""The whole way in one command: a phantom segmented by the model of the package, and the same with one trained here."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from glimpseg import methods, phantom, report
from glimpseg.data import nifti
from glimpseg.data.layouts import find_studies
from glimpseg.data.preprocess import reference_on
from glimpseg.errors import UsageError
from glimpseg.evaluation.evaluate import evaluate
from glimpseg.modality import ALL, Modality
from glimpseg.model.loading import Model
from glimpseg.model.shipped import BOX
from glimpseg.phantom.dataset import write_phantoms
from glimpseg.picture import preview
from glimpseg.results.folder import LABELS
from glimpseg.runtime.atomic import atomic_file, refuse_if_used
from glimpseg.segmentation.inputs import Item, Visit, items, opened, volume_of
from glimpseg.segmentation.predict import load, read, segment_read, segment_study
from glimpseg.segmentation.result import volumes_in_words
from glimpseg.study import Study
from glimpseg.training.loop import train
from glimpseg.version import NOT_A_DEVICE
from glimpseg.volume import Volume

RECIPE = "unet/phantom"
TRAINING_SPACING_MM = 2.0
TRAINING_SEEDS = range(32)
TEST_SEEDS = range(900_000, 900_008)
SEED = 900_100
"""Of the phantom that is segmented: no stream reaches down to it, the shipped model's begins at ten million."""
SPACING_MM = 1.0
"""Of that phantom: what hospitals' three-dimensional sequences have, and BraTS."""
PARTS = ("phantom", "phantoms", "run", "evaluation", "study", "segmentation")
"""What the demo makes in its folder, and all that --overwrite removes."""
SHOWN = Modality.T1C | Modality.FLAIR
"""The pair that a short protocol keeps."""


def show(
    folder: str | Path,
    *,
    model: str | Path = BOX,
    study: str | Path | None = None,
    overwrite: bool = False,
    spacing_mm: float = SPACING_MM,
) -> Iterator[str]:
    """Segments a phantom from all four sequences and from two, against its known truth, and the one study in the folder
    `study`, if any; yields lines for the reader as each part is done. Everything lies in `folder` afterwards.

    Raises: UsageError if `folder` holds files (without `overwrite`), or if there is more than one study; ModelError
        without a model; InputError for a study that cannot be used.
    """
    folder, begun = Path(folder), time.perf_counter()
    loaded = load(model)
    mine = None if study is None else _only_one(study)
    _cleared(folder, overwrite=overwrite)
    yield f"The model is {loaded.name}. {NOT_A_DEVICE}"
    write_phantoms(folder / "phantom", [SEED], phantom.Settings.at_spacing(spacing_mm), "brats2023")
    (made,) = find_studies(folder / "phantom")
    yield f"A phantom was drawn at {spacing_mm:g} mm, from a seed that no training reaches; {_since(begun)}."
    yield from _against_truth(made, loaded, folder)
    yield f"It was segmented twice; {_since(begun)}."
    if mine is not None:
        with opened(mine) as visit:
            yield from _segmented(visit, loaded, folder / "study")
    yield f"Done, {_since(begun)}."


def run(folder: str | Path, *, overwrite: bool = False, steps: int | None = None) -> Iterator[str]:
    """Trains the recipe `unet/phantom` and scores it on all subsets; yields lines for the reader as each part is done.
    Everything lies in `folder` afterwards.

    Raises: UsageError if `folder` holds files (without `overwrite`).
    """
    folder = Path(folder)
    _cleared(folder, overwrite=overwrite)
    begun = time.perf_counter()

    settings = phantom.Settings.at_spacing(TRAINING_SPACING_MM)
    write_phantoms(folder / "phantoms" / "train", TRAINING_SEEDS, settings, "brats2023")
    write_phantoms(folder / "phantoms" / "test", TEST_SEEDS, settings, "brats2023")
    yield f"{len(TRAINING_SEEDS)} + {len(TEST_SEEDS)} phantoms made, {_since(begun)}"

    recipe = methods.find_recipe(RECIPE, {} if steps is None else {"optim.steps": steps})
    train(recipe, folder / "run", data=folder / "phantoms" / "train", device=torch.device("cpu"))
    yield f"{RECIPE} trained for {recipe.optim.steps} steps, {_since(begun)}"

    model = load(folder / "run", "cpu")
    studies = find_studies(folder / "phantoms" / "test")
    evaluation = evaluate(model, studies, folder / "evaluation")
    page = report.write_html(folder / "evaluation")
    yield f"15 subsets of {len(studies)} held-out phantoms scored, {_since(begun)}."
    yield report.text_table(evaluation)

    place = segment_study(studies[0].restricted_to(SHOWN), model).save(folder / "segmentation")
    yield f"{studies[0].id} segmented from {SHOWN.title} alone: {place / 'preview.png'}"
    yield f"Done, {_since(begun)}. Open {page.resolve()}"


def _cleared(folder: Path, *, overwrite: bool) -> None:
    refuse_if_used(folder, overwrite=overwrite)
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)


def _against_truth(made: Study, model: Model, folder: Path) -> Iterator[str]:
    """A phantom from two sequences and from all, by the rules of every evaluation: scores, the page, pictures."""
    evaluation = evaluate(model, [made], folder / "evaluation", subsets=(SHOWN, ALL), metrics=["dice", "hd95"])
    page = report.write_html(folder / "evaluation")
    yield f"Against the phantom's known truth:\n{report.text_table(evaluation)}"
    for subset in (SHOWN, ALL):
        labels = nifti.read_labels(folder / "evaluation" / LABELS / made.id / f"{subset.key}.nii.gz", made.convention)
        yield f"{subset.title}: {_picture(made, subset, labels, folder / f'preview-{subset.key}.png')}"
    yield f"The report: {page.resolve()}"
    if model.expectations is not None:
        yield from model.expectations.sentences(SHOWN)


def _picture(made: Study, subset: Modality, labels: Volume, path: Path) -> Path:
    reference = reference_on(made, labels.grid)
    images = {m: volume_of(image, m.title) for m, image in made.restricted_to(subset).images.items()}
    with atomic_file(path) as temporary:
        preview(images, labels, reference, f"{subset.title}: what was found, and the truth").savefig(temporary, dpi=110)
    return path


def _only_one(source: str | Path) -> Item:
    found = items(source)
    if len(found) > 1:
        raise UsageError(
            f"The demo segments one study, and {source} holds {len(found)}. Name the folder of one, or use "
            "`glimpseg segment -i` for all."
        )
    return found[0]


def _segmented(visit: Visit, model: Model, place: Path) -> Iterator[str]:
    found = segment_read(read(visit, model), model, uncertainty="quick")
    found.save(place)
    volumes = volumes_in_words(found.volumes_ml)
    yield f"Your study was segmented from {found.used.title}: {volumes}; {place / 'preview.png'}."
    yield from found.trust


def _since(begun: float) -> str:
    return f"{time.perf_counter() - begun:.0f} s so far"
