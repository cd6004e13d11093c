"""What becomes of a batch's studies, and how a batch is shared out."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glimpseg.batch.job import Work, Written, clear
from glimpseg.errors import Preempted, UsageError
from glimpseg.modality import Modality
from glimpseg.runtime.atomic import write_json
from glimpseg.segmentation.inputs import Item
from glimpseg.segmentation.result import RECORD

log = logging.getLogger(__name__)

FAILURES = "failures.json"
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

    def share(self, items: Collection[Item], names: Mapping[str, str]) -> list[Item]:
        """The items that are this part's."""
        return sorted(items, key=lambda item: names[item.id])[self.number :: self.of]


WHOLE = Part()
"""The only part of a tree that is not shared."""


@dataclass(frozen=True)
class Outcome:
    """What became of a batch, or of a part of it."""

    done: tuple[str, ...]
    """Studies that were segmented now."""
    kept: tuple[str, ...]
    """Those that were there already."""
    failed: Mapping[str, str]
    """Why the others were not."""


class Tally:
    """What became of a batch's studies, or of a part's: on the disk as soon as it is known."""

    def __init__(self, output: Path, part: Part, kept: Sequence[str], waiting: int) -> None:
        self.output, self.part = output, part
        self.kept, self.waiting = tuple(kept), waiting
        self.done: list[str] = []
        self.failed: dict[str, str] = {}
        self.explained: frozenset[Modality] = frozenset()
        """Subsets of which it was said what to expect."""

    @classmethod
    def of(cls, work: Work, items: Sequence[Item], part: Part = WHOLE) -> tuple[Tally, list[Item]]:
        """An empty one, and the items that have still to be segmented; what a kill has left of them is cleared."""
        clear(work.output, (work.names[item.id] for item in items))
        kept = [item for item in items if (work.output / work.names[item.id] / RECORD).is_file()]
        waiting = [item for item in items if item not in kept]
        log.info("%d studies%s.", len(items), f", {len(kept)} of them done already" if kept else "")
        tally = cls(work.output, part, [work.names[item.id] for item in kept], len(waiting))
        tally.write_failures()
        return tally, waiting

    def take(self, written: Written) -> None:
        """A study's line in the journal, and what a person is told."""
        line = {
            "study": written.study,
            "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "seconds": round(written.seconds, 2),
        }
        with (self.output / self.part.file(JOURNAL)).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
        self.done.append(written.study)
        log.info("%s: used %s. %s.", written.study, written.used.title, written.volumes)
        if written.used not in self.explained:
            self.explained |= {written.used}
            for sentence in written.outlook:
                log.info("%s", sentence)

    def fail(self, name: str, reason: str) -> None:
        """Keeps the reason, on the disk at once."""
        self.failed[name] = reason
        log.warning("%s was not segmented: %s", name, reason)
        self.write_failures()

    def write_failures(self) -> None:
        """failures.json, of this part."""
        write_failures(self.output / self.part.file(FAILURES), self.failed)

    def refuse_unfinished(self, stopped: bool) -> None:
        """Raises Preempted where SIGTERM came and studies are left."""
        if stopped and len(self.done) + len(self.failed) < self.waiting:
            raise Preempted(
                f"Stopped by SIGTERM with {len(self.kept) + len(self.done)} of {len(self.kept) + self.waiting} studies "
                "segmented. Go on with --continue."
            )

    def outcome(self) -> Outcome:
        """All of it."""
        return Outcome(tuple(self.done), self.kept, dict(self.failed))


def write_failures(path: Path, failed: Mapping[str, str]) -> None:
    """The studies that could not be segmented, and why."""
    tree = {"failed": [{"study": study, "reason": reason} for study, reason in failed.items()]}
    write_json(path, tree)
