"""A tree of studies segmented: read ahead, written behind, every study once, and none that stops the others."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimpseg import checkpoint
from glimpseg.atomic import atomic_file, only_one, refuse_if_used, write_text
from glimpseg.checkpoint import Model
from glimpseg.data.dicom.sources import Pseudonyms
from glimpseg.data.layouts import write_derivative
from glimpseg.errors import InputError, OutputError, Preempted, UsageError
from glimpseg.expectation import EXPECTATIONS
from glimpseg.intake import Item, opened
from glimpseg.modality import Modality
from glimpseg.predict import Raw, Read, read, segment_read
from glimpseg.preemption import sigterm
from glimpseg.segmentation import NOT_A_DEVICE, RECORD, Segmentation
from glimpseg.uncertainty import Level
from glimpseg.version import __version__

log = logging.getLogger(__name__)

PLAN = "batch.json"
"""What was asked for; also the mark of a folder that may be replaced."""
STATISTICS = "statistics.csv"
NUMBERS = ("volume_ml", "lesions", "estimated_dice", "volume_low_ml", "volume_high_ml", "agreement")
"""Of a study's statistics.json, in the table of all; what was not asked for or is not defined stays blank."""
FAILURES = "failures.json"
BIDS = "bids"
"""The output type that is a data set of all studies together, under `derivatives/`."""
JOURNAL = "batch.jsonl"
"""A line for each study that was segmented, written after its folder stands."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of several jobs that share a tree: it takes every `of`-th study, the first at `number`."""

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise UsageError(f"--part is number/of with the number below of, 0/4 to 3/4, not {self.number}/{self.of}.")

    @classmethod
    def parse(cls, text: str) -> Part:
        """From `0/4`. Raises: UsageError."""
        number, slash, of = text.partition("/")
        if not slash or not number.isdigit() or not of.isdigit():
            raise UsageError(f"--part is number/of, 0/4 to 3/4, not '{text}'.")
        return cls(number=int(number), of=int(of))

    def file(self, name: str) -> str:
        """The name under which this part keeps a file that others have, too."""
        stem, suffix = os.path.splitext(name)
        return name if self.of == 1 else f"{stem}-{self.number}-of-{self.of}{suffix}"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How each study is segmented and what is written of it."""

    labels: str = "brats2024"
    types: tuple[str, ...] = ("nifti",)
    grid: Modality | None = None
    probabilities: bool = False
    deidentify: bool = False
    """Output folders are numbered and DICOM files name no patient; what leads back stands beside the output folder."""
    raw: Raw = "auto"
    uncertainty: Level = "quick"

    def plan(self, model: Model) -> dict[str, Any]:
        """What makes two batches the same; --continue compares it."""
        return {
            "glimpseg": __version__,
            "model": model.provenance["sha256"][checkpoint.WEIGHTS],
            **({"choices": model.chosen} if model.chosen else {}),
            "labels": self.labels,
            "types": sorted(self.types),
            "grid": None if self.grid is None else self.grid.key,
            "probabilities": self.probabilities,
            "deidentify": self.deidentify,
            "raw": self.raw,
            "uncertainty": self.uncertainty,
            "expectations": model.provenance["sha256"].get(EXPECTATIONS),
        }


@dataclass(frozen=True)
class Outcome:
    """What became of a batch, or of a part of it."""

    done: tuple[str, ...]
    """Studies that were segmented now."""
    kept: tuple[str, ...]
    """Those that were there already."""
    failed: Mapping[str, str]
    """Why the others were not."""


def segment_tree(
    items: Sequence[Item],
    model: Model,
    output: str | Path,
    wanted: Wanted,
    *,
    part: Part = Part(),
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
    names = _names(items, wanted.deidentify)
    mine = sorted(items, key=lambda item: names[item.id])[part.number :: part.of]
    _open(output, wanted.plan(model), part, go_on, overwrite)
    pseudonyms = _key(output, names) if wanted.deidentify else None
    with only_one(output / f".part-{part.number}-of-{part.of}"), sigterm() as stopped:
        _clear(output, (names[item.id] for item in mine))
        kept = [item for item in mine if (output / names[item.id] / RECORD).is_file()]
        log.info("%d studies%s.", len(mine), f", {len(kept)} of them done already" if kept else "")
        waiting = [item for item in mine if item not in kept]
        run = _Run(model, output, wanted, names, part, pseudonyms)
        run.write_failures()
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            _work(run, waiting, reader, writer, stopped)
        write_statistics(output)
    log.info("%s", NOT_A_DEVICE)
    if stopped and len(run.done) + len(run.failed) < len(waiting):
        raise Preempted(
            f"Stopped by SIGTERM with {len(kept) + len(run.done)} of {len(mine)} studies segmented. Go on with "
            "--continue."
        )
    return Outcome(tuple(run.done), tuple(names[item.id] for item in kept), dict(run.failed))


class _Run:
    """What happens to one study after another, and what became of them."""

    def __init__(
        self,
        model: Model,
        output: Path,
        wanted: Wanted,
        names: Mapping[str, str],
        part: Part,
        pseudonyms: Pseudonyms | None,
    ) -> None:
        self.model, self.output, self.wanted = model, output, wanted
        self.names, self.part, self.pseudonyms = names, part, pseudonyms
        self.done: list[str] = []
        self.failed: dict[str, str] = {}
        self.explained: frozenset[Modality] = frozenset()
        """Subsets of which it was said what to expect."""

    def read(self, item: Item) -> tuple[Read, ExitStack]:
        """A study's voxels, and what has to stay open until it is written."""
        with ExitStack() as stack:
            visit = stack.enter_context(opened(item))
            return read(visit, self.model, self.wanted.grid, self.wanted.raw), stack.pop_all()
        raise AssertionError

    def write(self, item: Item, found: Segmentation, held: ExitStack) -> None:
        """A study's folder, then its line in the journal."""
        name = self.names[item.id]
        with held:
            found.save(
                self.output / name,
                labels=self.wanted.labels,
                types=[kind for kind in self.wanted.types if kind != BIDS],
                pseudonyms=self.pseudonyms,
            )
            if BIDS in self.wanted.types:
                digest = self.model.provenance["sha256"][checkpoint.WEIGHTS]
                write_derivative(self.output, name, found.labels, model=self.model.name, version=digest[:12])
        line = {
            "study": name,
            "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "seconds": round(sum(found.seconds.values()), 2),
        }
        with (self.output / self.part.file(JOURNAL)).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
        self.done.append(name)
        volumes = ", ".join(f"{region.name} {volume:.1f} ml" for region, volume in found.volumes_ml.items())
        log.info("%s: used %s. %s.", name, found.used.title, volumes)
        if found.used not in self.explained:
            self.explained |= {found.used}
            for sentence in found.outlook:
                log.info("%s", sentence)

    def fail(self, item: Item, error: Exception) -> None:
        """Keeps the reason, on the disk at once."""
        name = self.names[item.id]
        known = isinstance(error, InputError | UsageError)
        reason = str(error) if known else f"unexpected error ({type(error).__name__}: {error})"
        self.failed[name] = _without_names(reason, item, name) if self.wanted.deidentify else reason
        log.warning("%s was not segmented: %s", name, self.failed[name])
        self.write_failures()

    def write_failures(self) -> None:
        """failures.json, of this part."""
        tree = {"failed": [{"study": study, "reason": reason} for study, reason in self.failed.items()]}
        write_text(self.output / self.part.file(FAILURES), json.dumps(tree, indent=1) + "\n")


def _without_names(reason: str, item: Item, name: str) -> str:
    """A message with neither the study's name nor the folders that it lies in."""
    words = reason.replace(item.id, name).split(" ")
    return " ".join(Path(word).name or word if word.startswith(os.sep) else word for word in words)


def _work(
    run: _Run, items: Sequence[Item], reader: ThreadPoolExecutor, writer: ThreadPoolExecutor, stopped: list[int]
) -> None:
    """Reads one ahead, writes one behind."""
    coming: Future[tuple[Read, ExitStack]] | None = reader.submit(run.read, items[0]) if items else None
    writing: tuple[Item, Future[None]] | None = None
    for number, item in enumerate(items):
        assert coming is not None
        now = coming
        going_on = number + 1 < len(items) and not stopped
        try:
            done, held = now.result()
            coming = reader.submit(run.read, items[number + 1]) if going_on else None
        except Exception as error:
            run.fail(item, error)
            coming = reader.submit(run.read, items[number + 1]) if going_on else None
            if coming is None:
                break
            continue
        try:
            found = segment_read(
                done, run.model, probabilities=run.wanted.probabilities, uncertainty=run.wanted.uncertainty
            )
            del done
        except Exception as error:
            held.close()
            run.fail(item, error)
        else:
            _settle(run, writing)
            writing = item, writer.submit(run.write, item, found, held)
            del found
        if coming is None:
            break
        if stopped:
            _discard(coming)
            break
    _settle(run, writing)


def _settle(run: _Run, writing: tuple[Item, Future[None]] | None) -> None:
    """Waits for a study to be written. Raises: OutputError, which would meet the others, too."""
    if writing is None:
        return
    item, future = writing
    try:
        future.result()
    except OutputError:
        raise
    except Exception as error:
        run.fail(item, error)


def _discard(coming: Future[tuple[Read, ExitStack]]) -> None:
    """What was read for nothing is let go."""
    if coming.exception() is None:
        coming.result()[1].close()


def _open(output: Path, plan: dict[str, Any], part: Part, go_on: bool, overwrite: bool) -> None:
    """Makes the output folder, or checks that it is this batch's."""
    path, begun = output / PLAN, output / part.file(FAILURES)
    if overwrite and not go_on and part.of == 1:
        refuse_if_used(output, overwrite=True, mark=PLAN)
        shutil.rmtree(output, ignore_errors=True)
    if path.is_file():
        if json.loads(path.read_text("utf-8")) != plan:
            raise UsageError(
                f"{output} was begun with another model, version or other options ({path.name} has them). Repeat "
                "those, or name another folder with -o."
            )
        if begun.exists() and not go_on:
            raise UsageError(f"{output} holds this batch already. Add --continue to go on with it.")
        return
    refuse_if_used(output)
    write_text(path, json.dumps(plan, indent=1) + "\n")


def _clear(output: Path, names: Iterable[str]) -> None:
    """Temporary folders of these studies, which a kill has left."""
    for name in names:
        for left in output.glob(f".{_escaped(name)}.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


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
    old = json.loads(path.read_text("utf-8"))["key"] if path.is_file() else None
    pseudonyms = Pseudonyms() if old is None else Pseudonyms(bytes.fromhex(old))
    with atomic_file(path, mode=0o600) as temporary:
        tree = {"key": pseudonyms.key.hex(), "studies": {name: study for study, name in sorted(names.items())}}
        temporary.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
    return pseudonyms


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
