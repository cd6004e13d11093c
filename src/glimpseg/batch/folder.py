"""Output folder of a batch: settings, output names, key to the numbers, table of all volumes."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from glimpseg.batch.progress import FAILURES, Shard
from glimpseg.batch.written import StudyFolder, read_key, read_study_folder, read_tree_notices
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.data.notices import TABLE, TREE, write_table
from glimpseg.runtime.atomic import atomic_file, file_lock, remove_file, write_json
from glimpseg.runtime.resumable import Resumable, discard_replaced
from glimpseg.segmentation.inputs import UNUSED, StudyEntry, TreeContents
from glimpseg.segmentation.result import RECORD

log = logging.getLogger(__name__)

PLAN = "batch.json"
"""File with the settings of the batch. A folder that holds it may be replaced."""
FOLDER = Resumable(noun="batch", file=PLAN, replaceable=True, locks=(".shard-*/.lock",))
"""Batch folder as an output that can be resumed."""
STATISTICS = "statistics.csv"
LONGEST_WAIT_S = 60
"""Longest wait, in seconds, for another shard that writes the key file at the same moment."""
NUMBERS = ("volume_ml", "lesions", "estimated_dice", "volume_low_ml", "volume_high_ml", "agreement")
"""Columns of `statistics.csv` that come from each study's `statistics.json`. A number that was not asked for or is
undefined stays blank."""


def open_folder(output: Path, plan: dict[str, Any], shard: Shard, *, resume: bool, overwrite: bool) -> None:
    """Make the output folder of a batch and write `batch.json`, or check that the folder belongs to this batch.

    A shard that has not begun joins a batch without `resume`.

    Args:
        output: Output folder of the batch.
        plan: Fingerprint of the batch (`BatchOptions.fingerprint`), the content of `batch.json`.
        shard: Shard that opens the folder. Several shards may open it at the same time.
        resume: Go on with this batch if the folder holds it; begin it if not. Takes precedence over `overwrite`.
        overwrite: Remove a folder that holds a batch first. Ignored for one of several shards: another may be at work.

    Raises:
        UsageError: The folder holds another batch, files of something else, or this batch without `resume`.
        InputError: `batch.json` is damaged.
        OutputError: When the disk refuses.
    """
    begun = (output / shard.file(FAILURES)).exists()
    FOLDER.open(output, plan, resume=resume, overwrite=overwrite and shard.of == 1, joins=not begun)
    discard_replaced(output)


def confirm_folder(output: Path, plan: dict[str, Any]) -> None:
    """Check once more that the folder belongs to this batch. The caller holds the lock of its shard.

    Between `open_folder` and the lock, another process may have replaced the folder (`overwrite`).

    Raises: UsageError if the folder holds another batch by now; OutputError when the disk refuses.
    """
    FOLDER.open(output, plan, resume=True)


def output_names(entries: Collection[StudyEntry], *, deidentify: bool) -> dict[str, str]:
    """Return the name of each entry's output folder, by the entry's id.

    Without `deidentify` the name is the id itself. With it the names are `study-00001`, `study-00002` and so on, in the
    order of the SHA-256 digests of the ids: a number says nothing about its id.
    """
    if not deidentify:
        return {entry.id: entry.id for entry in entries}
    order = sorted(entries, key=lambda entry: hashlib.sha256(entry.id.encode("utf-8", "surrogateescape")).digest())
    return {entry.id: f"study-{number:05d}" for number, entry in enumerate(order, 1)}


def pseudonyms_of(output: Path, names: Mapping[str, str]) -> Pseudonyms:
    """Return the pseudonyms of a batch, and write the key file that leads from the results back to the studies.

    The key file is `<output>.key.json`, beside the output folder, so that it does not leave with the results. Only its
    owner can read it. If the file is there already, its key is used again.

    Args:
        output: Output folder of the batch.
        names: Name of each study's output folder, by the study's id.

    Raises:
        InputError: The key file is damaged; it is left as it is.
        OutputError: When the disk refuses.
        UsageError: Another process holds the lock of the key file for `LONGEST_WAIT_S`.
    """
    path = output.with_name(f"{output.name}.key.json")
    # Shards may begin at the same time.
    with file_lock(path.with_name(f".{path.name}.lock"), longest_wait_s=LONGEST_WAIT_S):
        pseudonyms = Pseudonyms(read_key(path)) if path.is_file() else Pseudonyms()
        with atomic_file(path, mode=0o600) as temporary:
            tree = {"key": pseudonyms.key.hex(), "studies": {name: study for study, name in sorted(names.items())}}
            temporary.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
    return pseudonyms


def write_statistics(output: Path) -> None:
    """Write `statistics.csv`: one row for each region of each study folder below `output` that holds `run.json`.

    Rows are in the order of the folders' names. They include the studies of all shards and of earlier runs.

    Raises: OutputError; InputError if a file of a study is damaged.
    """
    rows = [row for study in _studies(output) for row in _statistics(study)]
    with atomic_file(output / STATISTICS) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("study", "sequences", "region", *NUMBERS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_unused(output: Path, contents: TreeContents) -> None:
    """Write `unused.json`: every image of the tree that no study uses, and the warnings and notes about the tree.

    It is written only if there are any. Raises: OutputError when the disk refuses.
    """
    if any(contents.notices.rows()):
        write_json(output / UNUSED, {"unused": list(contents.unused), **contents.notices.as_tree()})
    else:
        remove_file(output / UNUSED)  # of a tree that was tidied since


def write_notes(output: Path) -> None:
    """Write `notes.csv`: the warnings and notes of each study folder below `output`, and those about the tree.

    Log the number of studies that have warnings. Raises: OutputError; InputError if a file of the batch is damaged.
    """
    studies = [(study.name, study.notices) for study in _studies(output)]
    write_table(output / TABLE, [(TREE, read_tree_notices(output / UNUSED)), *studies])
    doubtful = sum(bool(notices.warnings) for _, notices in studies)
    if doubtful:
        log.info("%d of %d studies have warnings; %s lists them.", doubtful, len(studies), TABLE)


def _studies(output: Path) -> Iterator[StudyFolder]:
    for path in sorted(output.glob(f"*/{RECORD}")):
        yield read_study_folder(path.parent)


def _statistics(study: StudyFolder) -> Iterator[dict[str, Any]]:
    for region, values in study.regions.items():
        numbers = {name: values.get(name) for name in NUMBERS}
        yield {"study": study.name, "sequences": study.used.key, "region": region, **numbers}
