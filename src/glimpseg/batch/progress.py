"""Batch progress: which studies are done, skipped or failed. Shards of a batch."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glimpseg.batch.job import StudyJob, WrittenStudy
from glimpseg.errors import Preempted, UsageError
from glimpseg.modality import Modality
from glimpseg.runtime.atomic import remove_unfinished, write_json
from glimpseg.runtime.json_lines import append_json_line, read_json_lines
from glimpseg.segmentation.inputs import StudyEntry
from glimpseg.segmentation.result import RECORD

log = logging.getLogger(__name__)

FAILURES = "failures.json"
"""File with the failed studies of the last run and the reasons; written at its beginning, and again after each
failure."""
STUDY_LOG = "batch.jsonl"
"""File with one line for each study that was segmented, added after the study's folder is written."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of `of` jobs that share a tree. It takes every `of`-th study, beginning with study `number`, counted from 0.

    Raises: UsageError unless `number` is from 0 to `of` - 1.
    """

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise UsageError(f"--shard is number/of with the number below of, 0/4 to 3/4, not {self.number}/{self.of}.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard of a text such as `0/4`. Raises: UsageError for other text, or a number out of range."""
        number, slash, of = text.partition("/")
        if not slash or not number.isdecimal() or not of.isdecimal():
            raise UsageError(f"--shard is number/of, 0/4 to 3/4, not '{text}'.")
        return cls(number=int(number), of=int(of))

    def file(self, name: str) -> str:
        """Return this shard's own name of a file, such as `failures-0-of-4.json`; the same name for a single shard."""
        stem, suffix = os.path.splitext(name)
        return name if self.of == 1 else f"{stem}-{self.number}-of-{self.of}{suffix}"

    def select(self, entries: Collection[StudyEntry], names: Mapping[str, str]) -> list[StudyEntry]:
        """Return the entries of this shard, sorted by their output names.

        Args:
            entries: All entries of the tree.
            names: Output name of each entry, by its id.
        """
        return sorted(entries, key=lambda entry: names[entry.id])[self.number :: self.of]


WHOLE = Shard()
"""The only shard of a tree that is not shared."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Names of the studies of a batch, or of a shard, by how they ended."""

    done: tuple[str, ...]
    """Studies that were segmented in this run."""
    kept: tuple[str, ...]
    """Studies that were there already."""
    failed: Mapping[str, str]
    """Reason of each study that could not be segmented, by its name."""


class BatchProgress:
    """Studies of a batch, or of a shard, that are done, skipped or failed. Each change is written to disk at once.

    Args:
        output: Output folder of the batch.
        shard: Shard that is segmented.
        kept: Output names of the studies that were there already.
        waiting: Number of the other studies.
    """

    def __init__(self, output: Path, shard: Shard, kept: Sequence[str], waiting: int) -> None:
        self.output, self.shard = output, shard
        self.kept, self.waiting = tuple(kept), waiting
        self.done: list[str] = []
        self.failed: dict[str, str] = {}
        self.explained: frozenset[Modality] = frozenset()
        """Subsets whose expected performance was logged."""

    @classmethod
    def begin(
        cls, job: StudyJob, entries: Sequence[StudyEntry], shard: Shard = WHOLE
    ) -> tuple[BatchProgress, list[StudyEntry]]:
        """Return the progress at the beginning of a run, and the entries that are still to be segmented.

        An entry is done if its output folder holds `run.json`. Temporary folders that a killed process has left are
        removed. The failures file of the shard is emptied. An entry that is done and that no log of the batch names
        gets its line now: the process was killed, or the disk was full, between its folder and its line.

        Args:
            job: The job that segments the entries.
            entries: The entries of the shard.
            shard: The shard.

        Raises: InputError if a file of a study that is done is damaged.
        """
        # Of several shards, the others may be writing.
        remove_unfinished(job.output, None if shard.of == 1 else {job.names[entry.id] for entry in entries})
        kept = [entry for entry in entries if (job.output / job.names[entry.id] / RECORD).is_file()]
        done = {entry.id for entry in kept}
        waiting = [entry for entry in entries if entry.id not in done]
        written = [job.read_back(job.names[entry.id]) for entry in kept]  # all tables need them: before work begins
        log.info("%d studies%s.", len(entries), f", {len(kept)} of them already done" if kept else "")
        progress = cls(job.output, shard, [study.study for study in written], len(waiting))
        progress.write_failures()
        progress._complete_log(written)
        return progress, waiting

    def add(self, written: WrittenStudy) -> None:
        """Record a written study: a line in the shard's `batch.jsonl`, and log lines.

        The expected performance of a subset of sequences is logged once.
        """
        self._log(written, time.localtime())
        self.done.append(written.study)
        log.info("%s: used %s. %s.", written.study, written.used.title, written.volumes)
        if written.used not in self.explained:
            self.explained |= {written.used}
            for sentence in written.outlook:
                log.info("%s", sentence)

    def _log(self, written: WrittenStudy, at: time.struct_time) -> None:
        line = {
            "study": written.study,
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", at),
            "seconds": round(written.seconds, 2),
            "warnings": len(written.notices.warnings),
            "notes": len(written.notices.notes),
        }
        append_json_line(self.output / self.shard.file(STUDY_LOG), line)

    def _complete_log(self, kept: Sequence[WrittenStudy]) -> None:
        stem, suffix = os.path.splitext(STUDY_LOG)
        logs = [path for path in self.output.glob(f"{stem}*{suffix}") if path.is_file()]
        logged = [line.get("study") for path in logs for line in read_json_lines(path)]
        for written in kept:
            if written.study not in logged:
                written_at = (self.output / written.study / RECORD).stat().st_mtime
                self._log(written, time.localtime(written_at))

    def fail(self, name: str, reason: str) -> None:
        """Record a failed study: in the shard's failures file at once, and as an error in the log."""
        self.failed[name] = reason
        log.error("%s was not segmented: %s", name, reason)
        self.write_failures()

    def write_failures(self) -> None:
        """Write the failed studies of this shard: `failures.json`, or `failures-0-of-4.json` for one of four shards."""
        write_failures(self.output / self.shard.file(FAILURES), self.failed)

    def refuse_unfinished(self, *, stopped: bool) -> None:
        """Raise Preempted if SIGTERM came (`stopped`) and some studies are neither done nor failed."""
        if stopped and len(self.done) + len(self.failed) < self.waiting:
            raise Preempted(
                f"Stopped by SIGTERM with {len(self.kept) + len(self.done)} of {len(self.kept) + self.waiting} studies "
                "segmented. Go on with --resume."
            )

    def outcome(self) -> Outcome:
        """Return the studies of this run by how they ended so far."""
        return Outcome(done=tuple(self.done), kept=self.kept, failed=dict(self.failed))


def write_failures(path: Path, failed: Mapping[str, str]) -> None:
    """Write the names of failed studies, and the reasons, to a JSON file. Raises: OutputError when the disk refuses."""
    tree = {"failed": [{"study": study, "reason": reason} for study, reason in failed.items()]}
    write_json(path, tree)
