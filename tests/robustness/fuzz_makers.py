"""Kinds of damaged files: for each kind a function that makes one from random numbers, and one that reads it.

See `fuzz_files.py`. The functions stand in a module for each family of formats.
"""

from __future__ import annotations

from importlib.util import find_spec

import fuzz_archives
import fuzz_dicom
import fuzz_documents
import fuzz_images
import fuzz_results
import fuzz_tables
import fuzz_weights

MAKERS = {
    "nifti": fuzz_images.nifti,
    "pair": fuzz_images.pair,
    "metaimage": fuzz_images.metaimage,
    "dicom": fuzz_dicom.dicom,
    "archive": fuzz_archives.archive,
    "weights": fuzz_weights.weights,
    "model": fuzz_weights.model,
    "recipe": fuzz_documents.recipe,
    "dataset": fuzz_documents.dataset,
    "manifest": fuzz_tables.manifest,
    "result": fuzz_results.result,
}
"""Makers by kind. A maker writes into an empty folder, and returns the path that is given to the reader."""
READERS = {
    "nifti": fuzz_images.read_image,
    "pair": fuzz_images.read_image,
    "metaimage": fuzz_images.read_image,
    "dicom": fuzz_dicom.read_dicom,
    "archive": fuzz_archives.read_archive,
    "weights": fuzz_weights.read_weights,
    "model": fuzz_weights.read_model,
    "recipe": fuzz_documents.read_recipe,
    "dataset": fuzz_documents.read_dataset,
    "manifest": fuzz_tables.read_table,
    "result": fuzz_results.read_result,
}
"""Readers by kind. A reader uses a file as the verbs do."""


def missing(kind: str) -> str | None:
    """Return the reason why files of a kind cannot be read here; None if they can."""
    absent = [name for name in ("pydicom", "highdicom") if kind == "dicom" and find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None
