"""Demos: segment a phantom with the model of the package, or train a model on phantoms and evaluate it."""

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
from glimpseg.evaluation.options import EvaluationOptions
from glimpseg.modality import ALL, Modality
from glimpseg.model.loading import Model
from glimpseg.model.shipped import BOX
from glimpseg.phantom.dataset import write_phantoms
from glimpseg.picture import preview
from glimpseg.results.folder import LABELS
from glimpseg.runtime.atomic import atomic_file, refuse_if_used
from glimpseg.segmentation.inputs import StudyEntry, StudyInput, opened_entry, study_entries, volume_of
from glimpseg.segmentation.options import InferenceOptions
from glimpseg.segmentation.passes import segment_prepared
from glimpseg.segmentation.predict import load, segment_study
from glimpseg.segmentation.preparation import prepare_input
from glimpseg.segmentation.result import volumes_in_words
from glimpseg.study import Study
from glimpseg.training.loop import train
from glimpseg.training.options import TrainOptions
from glimpseg.version import NOT_A_DEVICE
from glimpseg.volume import Volume

RECIPE = "unet/phantom"
TRAINING_SPACING_MM = 2.0
TRAINING_SEEDS = range(32)
TEST_SEEDS = range(900_000, 900_008)
SEED = 900_100
"""Seed of the phantom that is segmented. No training stream uses it: the shipped model's begins at ten million."""
SPACING_MM = 1.0
"""Voxel side of that phantom: as in three-dimensional sequences of hospitals, and in BraTS."""
OUTPUTS = ("phantom", "phantoms", "run", "evaluation", "study", "segmentation")
"""Folders that the demo makes. --overwrite removes these only."""
SHOWN = Modality.T1C | Modality.FLAIR
"""Sequences of a short protocol, which both demos segment from."""


def show(
    folder: str | Path,
    *,
    model: str | Path = BOX,
    study: str | Path | None = None,
    overwrite: bool = False,
    spacing_mm: float = SPACING_MM,
) -> Iterator[str]:
    """Segment a phantom from two and from all four sequences, and compare with its reference. Yield lines of text.

    The work is done, and errors are raised, while the lines are taken. The model runs on the best device there is.

    Args:
        folder: Output folder.
        model: Model folder; `box` is the model of the package.
        study: Folder or archive of one further study to segment.
        overwrite: Replace the output of an earlier demo. Other files in the folder are kept.
        spacing_mm: Voxel side of the phantom.

    Raises: UsageError if `folder` holds files (without `overwrite`), or if `study` holds more than one study;
        ModelError without a model; InputError for a study that cannot be used; OutputError when the disk refuses.
    """
    folder, begun = Path(folder), time.perf_counter()
    loaded = load(model)
    mine = None if study is None else _single_entry(study)
    _clear(folder, overwrite=overwrite)
    yield f"The model is {loaded.name}. {NOT_A_DEVICE}"
    write_phantoms(folder / "phantom", [SEED], phantom.Settings.at_spacing(spacing_mm), "brats2023")
    (made,) = find_studies(folder / "phantom")
    yield f"Phantom made with {spacing_mm:g} mm voxels, from a seed that is not used in training ({_since(begun)})."
    yield from _evaluate_phantom(made, loaded, folder)
    yield f"Phantom segmented from 2 subsets of its sequences ({_since(begun)})."
    if mine is not None:
        with opened_entry(mine) as study_input:
            yield from _segment_input(study_input, loaded, folder / "study")
    yield f"Done ({_since(begun)})."


def run(folder: str | Path, *, overwrite: bool = False, steps: int | None = None) -> Iterator[str]:
    """Train the recipe `unet/phantom`, score it on all subsets, and segment one study. Yield lines of text.

    The work is done on the CPU, and errors are raised, while the lines are taken. All output lies in `folder`.

    Args:
        folder: Output folder.
        overwrite: Replace the output of an earlier demo. Other files in the folder are kept.
        steps: Training steps; None for those of the recipe.

    Raises: UsageError if `folder` holds files (without `overwrite`); OutputError when the disk refuses; TrainingError
        or Preempted as `train`.
    """
    folder = Path(folder)
    _clear(folder, overwrite=overwrite)
    begun = time.perf_counter()

    settings = phantom.Settings.at_spacing(TRAINING_SPACING_MM)
    write_phantoms(folder / "phantoms" / "train", TRAINING_SEEDS, settings, "brats2023")
    write_phantoms(folder / "phantoms" / "test", TEST_SEEDS, settings, "brats2023")
    yield f"{len(TRAINING_SEEDS)} + {len(TEST_SEEDS)} phantoms made ({_since(begun)})"

    recipe = methods.find_recipe(RECIPE, {} if steps is None else {"optim.steps": steps})
    train(recipe, folder / "run", TrainOptions(data=folder / "phantoms" / "train", device=torch.device("cpu")))
    yield f"{RECIPE} trained for {recipe.optim.steps} steps ({_since(begun)})"

    model = load(folder / "run", "cpu")
    studies = find_studies(folder / "phantoms" / "test")
    evaluation = evaluate(model, studies, folder / "evaluation")
    page = report.write_html(folder / "evaluation")
    yield f"15 subsets of {len(studies)} held-out phantoms scored ({_since(begun)})."
    yield report.text_table(evaluation)

    place = segment_study(studies[0].restricted_to(SHOWN), model).save(folder / "segmentation")
    yield f"{studies[0].id} segmented from {SHOWN.title} alone: {place / 'preview.png'}"
    yield f"Done ({_since(begun)}). Open {page.resolve()}"


def _clear(folder: Path, *, overwrite: bool) -> None:
    refuse_if_used(folder, overwrite=overwrite)
    for name in OUTPUTS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _evaluate_phantom(made: Study, model: Model, folder: Path) -> Iterator[str]:
    """Evaluate the model on a phantom, from two and from all sequences: scores, report and pictures."""
    options = EvaluationOptions(subsets=(SHOWN, ALL), metrics=["dice", "hd95"])
    evaluation = evaluate(model, [made], folder / "evaluation", options)
    page = report.write_html(folder / "evaluation")
    yield f"Scores against the reference of the phantom:\n{report.text_table(evaluation)}"
    for subset in (SHOWN, ALL):
        labels = nifti.read_labels(folder / "evaluation" / LABELS / made.id / f"{subset.key}.nii.gz")
        yield f"{subset.title}: {_write_picture(made, subset, labels, folder / f'preview-{subset.key}.png')}"
    yield f"The report: {page.resolve()}"
    if model.expectations is not None:
        yield from model.expectations.sentences(SHOWN)


def _write_picture(made: Study, subset: Modality, labels: Volume, path: Path) -> Path:
    reference = reference_on(made, labels.grid)
    images = {m: volume_of(image, m.title) for m, image in made.restricted_to(subset).images.items()}
    with atomic_file(path) as temporary:
        preview(images, labels, reference, f"{subset.title}: result and reference").savefig(temporary, dpi=110)
    return path


def _single_entry(source: str | Path) -> StudyEntry:
    found = study_entries(source)
    if len(found) > 1:
        raise UsageError(
            f"The demo segments one study, and {source} holds {len(found)}. Name the folder of one, or use "
            "`glimpseg segment -i` for all."
        )
    return found[0]


def _segment_input(study_input: StudyInput, model: Model, place: Path) -> Iterator[str]:
    options = InferenceOptions()
    found = segment_prepared(prepare_input(study_input, model, options), model, options)
    found.save(place)
    volumes = volumes_in_words(found.volumes_ml)
    yield f"Your study segmented from {found.used.title}: {volumes}. {place / 'preview.png'}"
    yield from found.trust


def _since(begun: float) -> str:
    return f"{time.perf_counter() - begun:.0f} s"
