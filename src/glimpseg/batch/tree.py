"""Segmentation of a tree of studies on this machine: every study once, reading ahead and writing behind."""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from glimpseg.batch.folder import (
    confirm_folder,
    open_folder,
    output_names,
    pseudonyms_of,
    write_notes,
    write_statistics,
    write_unused,
)
from glimpseg.batch.job import BatchOptions, StudyJob
from glimpseg.batch.progress import FAILURES, WHOLE, BatchProgress, Outcome, Shard, write_failures
from glimpseg.batch.review import write_review
from glimpseg.batch.written import read_failures
from glimpseg.errors import OutputError
from glimpseg.model.loading import Model
from glimpseg.runtime.atomic import folder_lock
from glimpseg.runtime.pipeline import ahead
from glimpseg.runtime.preemption import StopRequest, deferred_sigterm
from glimpseg.segmentation.inputs import StudyEntry, TreeContents
from glimpseg.segmentation.preparation import PreparedInput
from glimpseg.segmentation.result import RECORD, Segmentation
from glimpseg.version import NOT_A_DEVICE

log = logging.getLogger(__name__)

UNREACHED = "no shard reached it; run again with --resume"
"""Reason of a study that is neither there nor known to have failed."""
DEPTH = 2
"""Studies in each of the two pipelines: one that the caller waits for, one behind it."""
DEFAULT_OPTIONS = BatchOptions()


def segment_tree(
    entries: TreeContents | Sequence[StudyEntry],
    model: Model,
    output: str | Path,
    options: BatchOptions = DEFAULT_OPTIONS,
    *,
    shard: Shard = WHOLE,
    resume: bool = False,
    overwrite: bool = False,
) -> Outcome:
    """Segment every study of a tree into a folder of its own below `output`.

    While the network works, a thread reads the next study and another writes the last. At most three studies are in
    memory. A study that fails does not stop the others; `failures.json` says why it failed (`failures-0-of-4.json` for
    the first of four shards). `statistics.csv` holds the volumes of all studies that are there at the end, from all
    shards, and `notes.csv` their warnings and notes. `review.csv` and `review.html` show the most doubtful ones first.

    Args:
        entries: All studies of the tree; with what else was found in it, that is written to `unused.json`.
        model: The model.
        output: Output folder of the batch.
        options: How each study is segmented, and which files are written.
        shard: Share of the tree that this call segments.
        resume: Go on with a batch that was begun before. Failed studies are tried again.
        overwrite: Replace the folder of a batch; ignored for one of several shards.

    Returns: The studies of this shard: segmented now, there before, and failed.

    Raises:
        UsageError: For an output folder of another batch, or in use.
        InputError: A file that the batch wrote before is damaged; then nothing is segmented.
        OutputError: When the disk refuses.
        Preempted: SIGTERM came and studies are left. All written studies are complete; `resume` continues.
    """
    output = Path(output)
    job = begin(entries, model, output, options, shard=shard, resume=resume, overwrite=overwrite)
    with folder_lock(output / f".shard-{shard.number}-of-{shard.of}"), deferred_sigterm() as stopped:
        confirm_folder(output, options.fingerprint(model))
        progress, waiting = BatchProgress.begin(job, shard.select(studies_of(entries), job.names), shard)
        _segment_all(job, progress, waiting, stopped)
        write_statistics(output)
        write_review(output)
        write_notes(output)
    log.info("%s", NOT_A_DEVICE)
    progress.refuse_unfinished(stopped=bool(stopped))
    return progress.outcome()


def studies_of(entries: TreeContents | Collection[StudyEntry]) -> Collection[StudyEntry]:
    """Return the studies of a tree that was read, or the given studies."""
    return entries.entries if isinstance(entries, TreeContents) else entries


def begin(
    entries: TreeContents | Collection[StudyEntry],
    model: Model,
    output: Path,
    options: BatchOptions,
    *,
    shard: Shard = WHOLE,
    resume: bool = False,
    overwrite: bool = False,
) -> StudyJob:
    """Make the folder of a batch, or check that the batch may go on there; return the job that segments its studies.

    Several shards may do so at the same time. `resume` and `overwrite` are those of `open_folder`.

    Raises: UsageError for an output folder of another batch, or in use; OutputError when the disk refuses.
    """
    deidentify = options.outputs.deidentify
    names = output_names(studies_of(entries), deidentify=deidentify)
    open_folder(output, options.fingerprint(model), shard, resume=resume, overwrite=overwrite)
    if isinstance(entries, TreeContents):
        write_unused(output, entries)
    return StudyJob(
        model=model,
        output=output,
        options=options,
        names=names,
        pseudonyms=pseudonyms_of(output, names) if deidentify else None,
    )


def combine(job: StudyJob, entries: TreeContents | Collection[StudyEntry]) -> Outcome:
    """Write the tables of all studies and one `failures.json` after all shards have ended; return the outcome.

    A study whose folder is not there, and that no shard's failures file names, is listed as failed, too. In the outcome
    every study that is there counts as `kept`.

    Raises: InputError if a file of the batch is damaged; OutputError when the disk refuses.
    """
    output, reasons = job.output, dict[str, str]()
    for path in sorted(output.glob(f"{Path(FAILURES).stem}-*-of-*.json")):
        reasons |= read_failures(path)
    names = sorted(job.names[entry.id] for entry in studies_of(entries))
    kept = tuple(name for name in names if (output / name / RECORD).is_file())
    failed = {name: reasons.get(name, UNREACHED) for name in names if name not in set(kept)}
    write_failures(output / FAILURES, failed)
    write_statistics(output)
    write_review(output)
    write_notes(output)
    return Outcome(done=(), kept=kept, failed=failed)


@dataclass(frozen=True, eq=False)
class _Read:
    """Study that was read, or the error with which reading it ended."""

    entry: StudyEntry
    prepared: PreparedInput | Exception
    held: ExitStack
    """Files that have to stay open until the results are written."""


@dataclass(frozen=True, eq=False)
class _Segmented:
    """A segmented study that is to be written."""

    entry: StudyEntry
    segmentation: Segmentation
    held: ExitStack


def _segment_all(job: StudyJob, progress: BatchProgress, entries: Sequence[StudyEntry], stopped: StopRequest) -> None:
    """Read, segment and write the entries, until none is left, a stop is requested, or the disk refuses.

    A study that fails is recorded, and the next one follows. After a stop request, studies that are segmented are still
    written. Raises: OutputError when the disk refuses.
    """
    refused: list[OutputError] = []

    def read(entry: StudyEntry) -> _Read:
        try:
            return _Read(entry, *job.prepare(entry))
        except Exception as error:
            return _Read(entry, error, ExitStack())

    def write(study: _Segmented) -> tuple[StudyEntry, Exception | None]:
        if refused:  # the disk refused the study before: this one would meet the same error
            study.held.close()
            return study.entry, None
        try:
            progress.add(job.write(study.entry, study.segmentation, study.held))
        except OutputError as error:
            refused.append(error)
            raise
        except Exception as error:
            return study.entry, error
        return study.entry, None

    with (
        closing(ahead(_until(stopped, entries), read, DEPTH, discard=lambda study: study.held.close())) as reading,
        closing(_segmented(job, progress, reading, stopped)) as segmented,
        closing(ahead(segmented, write, DEPTH)) as writing,
    ):
        for entry, error in writing:
            if error is not None:
                progress.fail(job.names[entry.id], job.reason(entry, error))


def _until(stopped: StopRequest, entries: Sequence[StudyEntry]) -> Iterator[StudyEntry]:
    """Yield the entries until a stop is requested."""
    for entry in entries:
        if stopped:
            return
        yield entry


def _segmented(
    job: StudyJob, progress: BatchProgress, reading: Iterator[_Read], stopped: StopRequest
) -> Generator[_Segmented, None, None]:
    """Yield each study that was segmented, until a stop is requested. A study that fails is recorded and left out."""
    for study in reading:
        entry, held = study.entry, study.held
        try:
            if isinstance(study.prepared, Exception):
                raise study.prepared
            result = _Segmented(entry, job.segment(study.prepared), held)
        except Exception as error:
            held.close()
            progress.fail(job.names[entry.id], job.reason(entry, error))
        else:
            del study  # the writer alone keeps what it needs: at most three studies are in memory
            try:
                yield result
            except GeneratorExit:
                held.close()
                raise
            del result
        if stopped:
            return
