"""Output folder of a batch: settings, output names, key to the numbers, table of all volumes."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from glimpseg.batch.progress import FAILURES, Shard
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.runtime.atomic import atomic_file
from glimpseg.runtime.resumable import Resumable, discard_replaced
from glimpseg.segmentation import record
from glimpseg.segmentation.inputs import StudyEntry
from glimpseg.segmentation.result import RECORD

PLAN = "batch.json"
"""File with the settings of the batch. A folder that holds it may be replaced."""
FOLDER = Resumable(noun="batch", file=PLAN, replaceable=True)
STATISTICS = "statistics.csv"
LONGEST_WAIT_S = 60
"""Longest wait for another shard that writes the key at the same moment."""
NUMBERS = ("volume_ml", "lesions", "estimated_dice", "volume_low_ml", "volume_high_ml", "agreement")
"""Columns from each study's statistics.json. A number that was not asked for or is undefined stays blank."""


def open_folder(output: Path, plan: dict[str, Any], shard: Shard, *, resume: bool, overwrite: bool) -> None:
    """Make the output folder of a batch, or check that it belongs to this batch.

    Several shards may open the folder at the same time. A shard that has not begun joins without `resume`.
    `overwrite` counts only for a batch of one shard: another shard may be at work.

    Raises: UsageError for the output folder of another batch, or of this one without `resume`.
    """
    begun = (output / shard.file(FAILURES)).exists()
    FOLDER.open(output, plan, resume=resume, overwrite=overwrite and shard.of == 1, joins=not begun)
    discard_replaced(output)


def output_names(entries: Collection[StudyEntry], *, deidentify: bool) -> dict[str, str]:
    """Return the name of the output folder of each entry, by its id.

    De-identified names are numbers. Their order follows from digests of the ids, so it says nothing of the ids.
    """
    if not deidentify:
        return {entry.id: entry.id for entry in entries}
    order = sorted(entries, key=lambda entry: hashlib.sha256(entry.id.encode("utf-8", "surrogateescape")).digest())
    return {entry.id: f"study-{number:05d}" for number, entry in enumerate(order, 1)}


def pseudonyms_of(output: Path, names: Mapping[str, str]) -> Pseudonyms:
    """Return the pseudonyms of a batch, and write the key file that leads from the results back to the studies.

    The key file is written beside the output folder, so that it does not leave with the results. Only its owner can
    read it. A batch that resumes uses the key that it began with.
    """
    path = output.with_name(f"{output.name}.key.json")
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=LONGEST_WAIT_S):  # shards may begin at the same time
        old = json.loads(path.read_text("utf-8"))["key"] if path.is_file() else None
        pseudonyms = Pseudonyms() if old is None else Pseudonyms(bytes.fromhex(old))
        with atomic_file(path, mode=0o600) as temporary:
            tree = {"key": pseudonyms.key.hex(), "studies": {name: study for study, name in sorted(names.items())}}
            temporary.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
    return pseudonyms


def write_statistics(output: Path) -> None:
    """Write `statistics.csv`: one row for each study that is there and each region."""
    rows = list(_statistics(output))
    with atomic_file(output / STATISTICS) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("study", "sequences", "region", *NUMBERS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _statistics(output: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(output.glob(f"*/{RECORD}")):
        used = "+".join(json.loads(path.read_text("utf-8"))["sequences"]["used"])
        regions = json.loads((path.parent / record.STATISTICS).read_text("utf-8"))
        for region, values in regions.items():
            numbers = {name: values.get(name) for name in NUMBERS}
            yield {"study": path.parent.name, "sequences": used, "region": region, **numbers}
