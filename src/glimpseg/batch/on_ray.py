"""Segmentation of a tree of studies on a Ray cluster: workers hold the model, and each study goes to one of them."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from glimpseg.batch.folder import confirm_folder, write_notes, write_statistics
from glimpseg.batch.job import StudyJob, WrittenStudy
from glimpseg.batch.job_spec import JobSpec
from glimpseg.batch.progress import WHOLE, BatchProgress, Outcome
from glimpseg.batch.review import write_review
from glimpseg.batch.tree import begin
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.data.notices import StudyNotices
from glimpseg.errors import OutputError, UsageError
from glimpseg.runtime.atomic import folder_lock
from glimpseg.runtime.preemption import StopRequest, deferred_sigterm
from glimpseg.segmentation.inputs import StudyEntry
from glimpseg.segmentation.result import RECORD
from glimpseg.version import NOT_A_DEVICE

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Attempts for one study. A study whose worker was killed so often is given up: it may need too much memory."""
POLL_S = 1
"""Seconds between two looks at the stop request."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Number of workers, and the resources of each."""

    count: int = 2
    """Number of workers."""
    cpus: int = 1
    """Processors of each worker."""
    gpus: float = 0
    """GPUs of each worker. With 0.5 two workers share one. With 0 a worker sees no GPU."""
    address: str | None = None
    """Address of a running cluster; `auto` for the one that this machine belongs to. Without it, and without
    `RAY_ADDRESS`, Ray is started on this machine alone."""


def segment_on_ray(spec: JobSpec, workers: Workers, *, resume: bool = False, overwrite: bool = False) -> Outcome:
    """Segment every study of a tree once. The workers write the folders of the studies; this process records progress.

    A killed worker is started again, and so is its study, up to `ATTEMPTS` times. A study whose folder is complete by
    then is not segmented again. A study that fails does not stop the others; `failures.json` says why it failed.

    Args:
        spec: Input, output, model and options.
        workers: Number of workers and their resources.
        resume: Go on with a batch that was begun before. Failed studies are tried again.
        overwrite: Replace the folder of a batch.

    Raises:
        UsageError: Without Ray, for workers that cannot begin, or for an output folder of another batch or in use.
        InputError: The tree holds no study, or cannot be read.
        ModelError: There is no usable model.
        OutputError: When the disk refuses.
        Preempted: SIGTERM came and studies are left. All written studies are complete; `resume` continues.
    """
    ray = _import_ray()
    contents = spec.contents()
    job = begin(contents, spec.load_for_reading(), spec.output, spec.batch_options, resume=resume, overwrite=overwrite)
    with folder_lock(spec.output / ".shard-0-of-1"), _cluster(ray, workers), deferred_sigterm() as stopped:
        confirm_folder(spec.output, spec.batch_options.fingerprint(job.model))
        progress, waiting = BatchProgress.begin(job, WHOLE.select(contents.entries, job.names))
        with _started(ray, workers, spec, job) as started:
            _Dispatcher(ray, job.names, progress).run(started, waiting, stopped)
        write_statistics(spec.output)
        write_review(spec.output)
        write_notes(spec.output)
    log.info("%s", NOT_A_DEVICE)
    progress.refuse_unfinished(stopped=bool(stopped))
    return progress.outcome()


class Worker:
    """Remote process that holds the model and segments one study after another."""

    def __init__(self, spec: JobSpec, names: Mapping[str, str], pseudonyms: Pseudonyms | None) -> None:
        self.job = StudyJob(
            model=spec.load(), output=spec.output, options=spec.options, names=names, pseudonyms=pseudonyms
        )

    def ready(self) -> None:
        """Do nothing. Ray answers this call after `__init__`: the answer shows that the model is loaded."""

    def segment(self, entry: StudyEntry) -> WrittenStudy | OutputError | str:
        """Return the summary of a segmented study; else the OutputError, or the reason of any other failure as text."""
        try:
            return self.job.run(entry)
        except OutputError as error:
            return error
        except Exception as error:
            return self.job.reason(entry, error)


class _Dispatcher:
    """Gives studies to workers, and records how they end."""

    def __init__(self, ray: Any, names: Mapping[str, str], progress: BatchProgress) -> None:
        self.ray, self.names, self.progress = ray, names, progress

    def run(self, workers: Sequence[Any], entries: Sequence[StudyEntry], stopped: StopRequest) -> None:
        """Give each idle worker the next study, until none is left or a stop is requested. Then wait for the busy ones.

        Raises: UsageError if a worker cannot begin; OutputError if a worker's disk refused.
        """
        left = deque(entries)
        busy: dict[Any, tuple[Any, StudyEntry | None]] = {worker.ready.remote(): (worker, None) for worker in workers}
        while busy and (left or any(entry for _, entry in busy.values())):
            answered, _ = self.ray.wait(list(busy), timeout=POLL_S)  # a signal is noticed in between
            for answer in answered:
                worker, entry = busy.pop(answer)
                self._record(answer, entry)
                if left and not stopped:
                    following = left.popleft()
                    busy[worker.segment.remote(following)] = worker, following
            if stopped:
                left.clear()

    def _record(self, answer: Any, entry: StudyEntry | None) -> None:
        """Record the answer of a worker; `entry` is None for the answer that it is ready.

        Raises: UsageError if the worker could not begin; OutputError if its disk refused.
        """
        try:
            result = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            if entry is None:
                lines = str(error).strip().splitlines()
                raise UsageError(f"A worker could not begin: {lines[-1]}") from error
            reason = f"its worker was killed {ATTEMPTS} times; its memory may not have been enough"
            self.progress.fail(self.names[entry.id], reason)
            return
        if isinstance(result, OutputError):
            raise result
        if entry is not None and isinstance(result, str):
            self.progress.fail(self.names[entry.id], result)
        elif entry is not None:
            told = StudyNotices(name=result.study, where=f"{RECORD} has all of them")
            with told.telling():
                told.take(result.notices)  # the worker's own log stays on its machine
            self.progress.add(result)


@contextmanager
def _started(ray: Any, workers: Workers, spec: JobSpec, job: StudyJob) -> Iterator[list[Any]]:
    """Start the workers, and kill them at the end."""
    kind = ray.remote(Worker).options(
        num_cpus=workers.cpus, num_gpus=workers.gpus, max_restarts=-1, max_task_retries=ATTEMPTS - 1
    )
    names = ray.put(dict(job.names))
    started = [kind.remote(spec, names, job.pseudonyms) for _ in range(workers.count)]
    try:
        yield started
    finally:
        for worker in started:
            ray.kill(worker)


@contextmanager
def _cluster(ray: Any, workers: Workers) -> Iterator[None]:
    """Connect to the cluster that is named, or start Ray on this machine for the time of the block.

    The name is `workers.address`, or else `RAY_ADDRESS`. A connection that the process already has is used instead, and
    stays open.
    """
    if ray.is_initialized():
        yield
        return
    address = workers.address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage report unless the user wants it
        ray.init(
            address="local",
            num_cpus=workers.count * workers.cpus,
            num_gpus=None if workers.gpus else 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",  # reachable from this machine alone
        )
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed. Run: pip install 'glimpseg[ray]'") from error
    return ray
