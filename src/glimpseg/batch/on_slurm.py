"""Segmentation of a tree of studies as an array of Slurm jobs, by submitit: one job for each shard.

A job that is preempted, or whose time is over, is put back into the queue.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from glimpseg.batch.job_spec import JobSpec
from glimpseg.batch.progress import Outcome, Shard
from glimpseg.batch.tree import begin, combine, segment_tree
from glimpseg.errors import Preempted, UsageError

log = logging.getLogger(__name__)

LONGEST_JOB_MIN = 240
"""Time limit of a job in minutes, unless `timeout_min` sets another. submitit's own default is five minutes."""


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """Number of jobs that share a tree, and the resources of each."""

    shards: int = 8
    """Number of jobs, at most; never more than studies."""
    cluster: Literal["slurm", "local"] = "slurm"
    """`local`: processes on this machine, in place of Slurm in tests."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of submitit's AutoExecutor: `timeout_min`, `mem_gb`, `gpus_per_node`, `slurm_partition` ..."""


def segment_on_slurm(spec: JobSpec, jobs: Jobs, *, resume: bool = False, overwrite: bool = False) -> Outcome:
    """Submit the jobs, wait for them, and combine their results.

    Logs and submitit's files lie beside the output folder, in `<output>.jobs`. Interrupting this call does not stop the
    jobs. A job that ends early does not stop the others. `failures.json` lists each study that was not segmented;
    `resume` tries these again.

    Args:
        spec: Input, output, model and options.
        jobs: Number of jobs and their resources.
        resume: Go on with a batch that was begun before.
        overwrite: Replace the folder of a batch.

    Returns: The outcome of all shards together; every study that is there counts as `kept`.

    Raises:
        UsageError: Without submitit or Slurm, for an option that submitit does not know, or for an output folder of
            another batch or in use.
        InputError: The tree holds no study, or cannot be read.
        ModelError: There is no usable model.
        OutputError: When the disk refuses.
    """
    executor = _executor(spec, jobs)
    contents = spec.contents()
    # The plan and the key are written here, once, and not by whichever job comes first.
    job = begin(contents, spec.load_for_reading(), spec.output, spec.batch_options, resume=resume, overwrite=overwrite)
    studies = len(contents.entries)
    count = min(jobs.shards, studies)
    submitted = executor.map_array(ShardTask(spec), [Shard(number=number, of=count) for number in range(count)])
    log.info("%d studies in %d jobs: %s", studies, count, ", ".join(one.job_id for one in submitted))
    for one in submitted:
        error = one.exception()
        if error is not None:
            log.warning("Job %s ended early: %s", one.job_id, str(error).strip().splitlines()[-1])
    return combine(job, contents)


class ShardTask:
    """Task of one job: segment a shard of the tree. It is pickled and called on another machine."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec

    def __call__(self, shard: Shard) -> Outcome:
        """Segment the studies of the shard whose folders are not there yet.

        After SIGTERM, the job goes back into the queue. Slurm starts it again later, with a new call of this function.

        Raises: as `segment_tree`, `JobSpec.contents` and `JobSpec.load`.
        """
        _log_to_stderr()
        spec = self.spec
        try:
            return segment_tree(spec.contents(), spec.load(), spec.output, spec.batch_options, shard=shard, resume=True)
        except Preempted:
            from submitit import JobEnvironment

            # SIGTERM has come, and the written studies are complete. To submitit this signal means preemption: it calls
            # `checkpoint`, puts the job back into the queue, and ends the process.
            signal.raise_signal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"))
            raise

    def checkpoint(self, shard: Shard) -> Any:
        """Return the task that the job runs after it was put back into the queue: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, shard)


def _executor(spec: JobSpec, jobs: Jobs) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UsageError("Slurm is reached through submitit. Run: pip install 'glimpseg[slurm]'") from error
    # A job that Slurm itself ends goes back into the queue, too.
    requeue = {"slurm_additional_parameters": {"requeue": True}} if jobs.cluster == "slurm" else {}
    options = {"name": "glimpseg", "timeout_min": LONGEST_JOB_MIN, **requeue, **jobs.options}
    try:
        folder = spec.output.with_name(f"{spec.output.name}.jobs")
        executor = submitit.AutoExecutor(folder=folder, cluster=jobs.cluster)
        executor.update_parameters(**options)
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"submitit refuses: {error}") from error
    return executor


def _log_to_stderr() -> None:
    """Send the log of the package to the log of the job, as `glimpseg segment` sends it to a terminal."""
    root = logging.getLogger("glimpseg")
    root.setLevel(logging.INFO)
    root.addHandler(logging.StreamHandler())
