"""A tree of studies segmented: read ahead, written behind, every study once, and none that stops the others."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock

from glimpseg.batch.job import Wanted, Work
from glimpseg.batch.progress import FAILURES, WHOLE, Outcome, Part, Tally, write_failures
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.errors import OutputError, UsageError
from glimpseg.model.loading import Model
from glimpseg.runtime.atomic import atomic_file, folder_lock, refuse_if_used, write_json
from glimpseg.runtime.preemption import StopRequest, deferred_sigterm
from glimpseg.segmentation.inputs import Item
from glimpseg.segmentation.predict import Read
from glimpseg.segmentation.result import RECORD, Segmentation
from glimpseg.version import NOT_A_DEVICE

log = logging.getLogger(__name__)

PLAN = "batch.json"
"""What was asked for; also the mark of a folder that may be replaced."""
STATISTICS = "statistics.csv"
UNREACHED = "no part came to it; run again with --continue"
"""The reason of a study that is neither there nor known to have failed."""
LONGEST_WAIT_S = 60
"""For a part that writes the key at the same moment."""
NUMBERS = ("volume_ml", "lesions", "estimated_dice", "volume_low_ml", "volume_high_ml", "agreement")
"""Of a study's statistics.json, in the table of all; what was not asked for or is not defined stays blank."""


def segment_tree(
    items: Sequence[Item],
    model: Model,
    output: str | Path,
    wanted: Wanted,
    *,
    part: Part = WHOLE,
    go_on: bool = False,
    overwrite: bool = False,
) -> Outcome:
    """Segments every item into a folder of its own below `output`.

    While the network works, a thread reads the next study and another writes the last: at most three are in memory.
    A study that cannot be used stops no other; `failures.json` says why. `statistics.csv` holds the volumes of all
    studies that are there by then, of other parts, too.

    Raises: UsageError for an output folder of another batch, or in use; OutputError when the disk refuses; Preempted
        after SIGTERM, whole studies written (`go_on` continues).
    """
    output = Path(output)
    work = begin(items, model, output, wanted, part=part, go_on=go_on, overwrite=overwrite)
    with folder_lock(output / f".part-{part.number}-of-{part.of}"), deferred_sigterm() as stopped:
        tally, waiting = Tally.of(work, part.share(items, work.names), part)
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            _work(work, tally, waiting, reader, writer, stopped)
        write_statistics(output)
    log.info("%s", NOT_A_DEVICE)
    tally.refuse_unfinished(bool(stopped))
    return tally.outcome()


def begin(
    items: Collection[Item],
    model: Model,
    output: Path,
    wanted: Wanted,
    *,
    part: Part = WHOLE,
    go_on: bool = False,
    overwrite: bool = False,
) -> Work:
    """Makes a batch's folder, or checks that it may go on there; parts may do so at the same time.

    Raises: UsageError for the output folder of another batch.
    """
    names = _names(items, wanted.deidentify)
    _open(output, wanted.plan(model), part, go_on, overwrite)
    return Work(model, output, wanted, names, _key(output, names) if wanted.deidentify else None)


def _work(
    work: Work,
    tally: Tally,
    items: Sequence[Item],
    reader: ThreadPoolExecutor,
    writer: ThreadPoolExecutor,
    stopped: StopRequest,
) -> None:
    """Reads one ahead, writes one behind."""
    coming: Future[tuple[Read, ExitStack]] | None = reader.submit(work.read, items[0]) if items else None
    writing: tuple[Item, Future[None]] | None = None
    for number, item in enumerate(items):
        assert coming is not None
        now = coming
        going_on = number + 1 < len(items) and not stopped
        try:
            done, held = now.result()
            coming = reader.submit(work.read, items[number + 1]) if going_on else None
        except Exception as error:
            tally.fail(work.names[item.id], work.reason(item, error))
            coming = reader.submit(work.read, items[number + 1]) if going_on else None
            if coming is None:
                break
            continue
        try:
            found = work.segment(done)
            del done
        except Exception as error:
            held.close()
            tally.fail(work.names[item.id], work.reason(item, error))
        else:
            _settle(work, tally, writing)
            writing = item, writer.submit(_write, work, tally, item, found, held)
            del found
        if coming is None:
            break
        if stopped:
            _discard(coming)
            break
    _settle(work, tally, writing)


def _write(work: Work, tally: Tally, item: Item, found: Segmentation, held: ExitStack) -> None:
    tally.take(work.write(item, found, held))


def _settle(work: Work, tally: Tally, writing: tuple[Item, Future[None]] | None) -> None:
    """Waits for a study to be written. Raises: OutputError, which would meet the others, too."""
    if writing is None:
        return
    item, future = writing
    try:
        future.result()
    except OutputError:
        raise
    except Exception as error:
        tally.fail(work.names[item.id], work.reason(item, error))


def _discard(coming: Future[tuple[Read, ExitStack]]) -> None:
    """What was read for nothing is let go."""
    if coming.exception() is None:
        coming.result()[1].close()


def _open(output: Path, plan: dict[str, Any], part: Part, go_on: bool, overwrite: bool) -> None:
    """Makes the output folder, or checks that it is this batch's."""
    path = output / PLAN
    if overwrite and not go_on and part.of == 1:
        refuse_if_used(output, overwrite=True, mark=PLAN)
        shutil.rmtree(output, ignore_errors=True)
    # Another part that begins at this moment has written the plan before anything else, or is about to.
    used = output.is_file() or (output.is_dir() and any(not _is_plan_to_be(found) for found in output.iterdir()))
    if path.is_file():
        if json.loads(path.read_text("utf-8")) != plan:
            raise UsageError(
                f"{output} was begun with another model, version, backend or other options ({path.name} has them). "
                "Repeat those, or name another folder with -o."
            )
        if (output / part.file(FAILURES)).exists() and not go_on:
            raise UsageError(f"{output} holds this batch already. Add --continue to go on with it.")
        return
    if used:
        refuse_if_used(output)
    write_json(path, plan)


def _is_plan_to_be(path: Path) -> bool:
    return path.name.startswith(f".{PLAN}.tmp-")


def _names(items: Collection[Item], deidentify: bool) -> dict[str, str]:
    """The output folder of each item. Numbers say nothing of the names: they follow from digests."""
    if not deidentify:
        return {item.id: item.id for item in items}
    order = sorted(items, key=lambda item: hashlib.sha256(item.id.encode("utf-8", "surrogateescape")).digest())
    return {item.id: f"study-{number:05d}" for number, item in enumerate(order, 1)}


def _key(output: Path, names: Mapping[str, str]) -> Pseudonyms:
    """What leads back from the results: kept beside the output folder, readable by its owner alone, so that it does not
    leave with them. A batch that goes on uses the key it was begun with."""
    path = output.with_name(f"{output.name}.key.json")
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=LONGEST_WAIT_S):  # parts may begin at the same time
        old = json.loads(path.read_text("utf-8"))["key"] if path.is_file() else None
        pseudonyms = Pseudonyms() if old is None else Pseudonyms(bytes.fromhex(old))
        with atomic_file(path, mode=0o600) as temporary:
            tree = {"key": pseudonyms.key.hex(), "studies": {name: study for study, name in sorted(names.items())}}
            temporary.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
    return pseudonyms


def combine(work: Work, items: Collection[Item]) -> Outcome:
    """Brings together what parts have left, once they have ended: `statistics.csv` and one `failures.json`, in which a
    study that no part came to stands, too."""
    output, reasons = work.output, dict[str, str]()
    for path in sorted(output.glob(f"{Path(FAILURES).stem}-*-of-*.json")):
        reasons |= {entry["study"]: entry["reason"] for entry in json.loads(path.read_text("utf-8"))["failed"]}
    names = sorted(work.names[item.id] for item in items)
    kept = tuple(name for name in names if (output / name / RECORD).is_file())
    failed = {name: reasons.get(name, UNREACHED) for name in names if name not in set(kept)}
    write_failures(output / FAILURES, failed)
    write_statistics(output)
    return Outcome((), kept, failed)


def write_statistics(output: Path) -> None:
    """All studies' volumes in one tidy table, from their folders."""
    rows = list(_statistics(output))
    with atomic_file(output / STATISTICS) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("study", "sequences", "region", *NUMBERS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _statistics(output: Path) -> Iterator[dict[str, Any]]:
    for record in sorted(output.glob(f"*/{RECORD}")):
        used = "+".join(json.loads(record.read_text("utf-8"))["sequences"]["used"])
        found = json.loads((record.parent / "statistics.json").read_text("utf-8"))
        for region, values in found.items():
            numbers = {name: values.get(name) for name in NUMBERS}
            yield {"study": record.parent.name, "sequences": used, "region": region, **numbers}
