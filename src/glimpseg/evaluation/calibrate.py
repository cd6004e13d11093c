"""Calibration of a model: measured Dice, temperatures and gains of each subset, written with a copy of the model.

The counts of each study (its Dice, and voxels by bins of the logit) are kept in a file until the end. A calibration
that was stopped goes on with them, and a thousand studies take no more memory than one. Half of the studies fit the
temperatures, the other half measures calibration at them; the Dice is of all studies.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from glimpseg.data.notices import TABLE, TREE, Notices, StudyNotices, note, table_of
from glimpseg.errors import InputError
from glimpseg.evaluation.conclusion import expectations_from
from glimpseg.evaluation.counts import count_study, counts_digest, read_counts, write_counts
from glimpseg.model.copying import save_copy
from glimpseg.model.expectations import EXPECTATIONS, Expectations
from glimpseg.model.folder import PROVENANCE
from glimpseg.model.loading import Model
from glimpseg.runtime.atomic import atomic_file, folder_lock, refuse_if_used
from glimpseg.study import Study, without_folders
from glimpseg.version import __version__

log = logging.getLogger(__name__)

WHERE = f"{TABLE} has all of them"


def calibrate(
    model: Model,
    studies: Sequence[Study],
    folder: str | Path,
    *,
    population: str,
    overwrite: bool = False,
    found: StudyNotices | None = None,
) -> Expectations:
    """Measure a model on every subset of every study that has a reference; write a copy of it with the result.

    Studies without a reference are left out. Studies that cannot be used are left out, with a warning. The others are
    ordered by the SHA-256 of their names; the first half fits the temperatures. Until all is done, the counts of each
    study lie beside `folder`, in `<folder>.parts`: a calibration that was stopped goes on with them, if model, study
    and version are the same.

    Args:
        model: A loaded model.
        studies: Studies that the model was not trained on.
        folder: Output folder. It gets a copy of the model, `expectations.json`, and `notes.csv` if there are warnings
            or notes about the studies, whole or not at all.
        population: Description of the studies, in words that end a sentence: `phantoms of held-out settings`.
        overwrite: Replace a model in `folder`.
        found: Warnings and notes of the search for the studies. They are written to `notes.csv`, too.

    Returns:
        The expectations that were written.

    Raises:
        InputError: No study has a reference, or none can be used.
        UsageError: `folder` holds files (without `overwrite`, or of something else), or another process calibrates into
            it.
        OutputError: When the disk refuses.
    """
    folder = Path(folder)
    refuse_if_used(folder, overwrite=overwrite, mark=PROVENANCE)
    tree = found or StudyNotices(where=WHERE)
    with tree.telling():
        for study in studies:
            if study.reference is None:
                note(f"{study.id} has no reference and is left out.")
    labelled = sorted((study for study in studies if study.reference is not None), key=_random_order)
    if not labelled:
        raise InputError("No study has a reference, and without one nothing can be measured. Give labelled studies.")
    parts = folder.with_name(f"{folder.name}.parts")
    with folder_lock(parts):
        files = _count_all(model, labelled, parts, tree)
        if not files:
            raise InputError("None of the studies could be used; the warnings above say why. Repair them.")
        expectations = expectations_from(model, files, population)
        table = table_of([(TREE, tree), *_notices_in(files)])
        write_calibrated(model, expectations, folder, overwrite=overwrite, texts={TABLE: table} if table else {})
        shutil.rmtree(parts, ignore_errors=True)  # under the lock: another process may wait for it
    return expectations


def _notices_in(files: Sequence[Path]) -> Iterator[tuple[str, Notices]]:
    """Yield the name and the notices of each study, from the files of its counts."""
    for file in files:
        counts = read_counts(file)
        yield counts.lines[0].study, counts.notices


def write_calibrated(
    model: Model,
    expectations: Expectations,
    folder: str | Path,
    *,
    overwrite: bool = False,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a copy of a model's folder with these expectations and without training state, whole or not at all.

    Markdown files are copied, too, and `texts` are added by their names. The provenance gets the field `calibrated_by`.

    Raises: UsageError if `folder` holds files (without `overwrite`, or of something else); OutputError when the disk
        refuses.
    """
    text = json.dumps(expectations.as_tree(), indent=1) + "\n"
    cards = {path.name: path.read_text("utf-8") for path in model.path.glob("*.md")}
    origin = {"calibrated_by": __version__}
    save_copy(model, folder, {EXPECTATIONS: text.encode()}, origin, texts={**cards, **texts}, overwrite=overwrite)


def _random_order(study: Study) -> str:
    """Return a sort key that has nothing to do with the study's name: datasets are sorted by site and year."""
    return hashlib.sha256(study.id.encode("utf-8", "surrogateescape")).hexdigest()


def _count_all(model: Model, studies: Sequence[Study], parts: Path, tree: StudyNotices) -> list[Path]:
    """Write the counts of each study to a file in `parts`; return the files in the order of the studies.

    A study that cannot be prepared is left out, with a warning in `tree`. A file that is there already is kept, and
    what was said about its study is told again.
    """
    files, begun = [], time.perf_counter()
    for number, study in enumerate(studies, 1):
        notices = StudyNotices(name=study.id, where=WHERE)
        try:
            with notices.telling():
                file = parts / f"{counts_digest(model, study)}.npz"
                known = file.is_file()
                if not known:
                    counts = count_study(model, study)
                    with atomic_file(file) as path:
                        write_counts(path, counts)
        except InputError as error:
            reason = f"{study.id} is left out: {without_folders(str(error), study)}"
            log.error("%s", reason)
            for kind, text in (*notices.rows(), ("warning", reason)):
                tree.add_known(kind, text)
            continue
        if known:
            notices.take(read_counts(file).notices)
            notices.finish()
        files.append(file)
        log.info(f"{number}/{len(studies)} {study.id} ({time.perf_counter() - begun:.0f} s)")
    return files
