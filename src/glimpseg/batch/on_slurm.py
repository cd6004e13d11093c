"""A tree of studies as an array of Slurm jobs, by submitit: one job for each part, put back into the queue when it is
preempted or its time is over."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from glimpseg.batch.job_spec import Order
from glimpseg.batch.progress import Outcome, Part
from glimpseg.batch.tree import begin, combine, segment_tree
from glimpseg.errors import Preempted, UsageError

log = logging.getLogger(__name__)

LONGEST_JOB_MIN = 240
"""Unless `timeout_min` says otherwise; submitit's own default is five minutes."""


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """How many jobs share a tree, and what each asks for."""

    parts: int = 8
    cluster: Literal["slurm", "local"] = "slurm"
    """`local`: processes on this machine, which stand in for Slurm in tests."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of submitit's AutoExecutor: `timeout_min`, `mem_gb`, `gpus_per_node`, `slurm_partition`, `slurm_account` ..."""


def segment_on_slurm(order: Order, jobs: Jobs, *, go_on: bool = False, overwrite: bool = False) -> Outcome:
    """Submits the jobs, waits for them, and brings together what they left. Logs and submitit's files lie beside the
    output folder, in `<output>.jobs`. Whoever stops waiting does not stop the jobs.

    A job that ends early costs the others nothing; its studies are in `failures.json`, and `go_on` does them.

    Raises: UsageError without submitit or Slurm, for an option that submitit does not know, or for the output folder of
        another batch; InputError without a study; ModelError.
    """
    executor = _executor(order, jobs)
    items = order.items()
    # The plan and the key are written here, once, and not by whichever job comes first.
    work = begin(items, order.plain(), order.output, order.wanted, go_on=go_on, overwrite=overwrite)
    count = min(jobs.parts, len(items))
    submitted = executor.map_array(Share(order), [Part(number=number, of=count) for number in range(count)])
    log.info("%d studies in %d jobs: %s", len(items), count, ", ".join(job.job_id for job in submitted))
    for job in submitted:
        error = job.exception()
        if error is not None:
            log.warning("Job %s ended early: %s", job.job_id, str(error).strip().splitlines()[-1])
    return combine(work, items)


class Share:
    """What a job does: its part of the tree. Pickled, and called on another machine."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def __call__(self, part: Part) -> Outcome:
        """Segments the part's studies that are not there yet; a job that was stopped begins here again."""
        _tell()
        order = self.order
        try:
            return segment_tree(order.items(), order.load(), order.output, order.wanted, part=part, go_on=True)
        except Preempted:
            from submitit import JobEnvironment

            # SIGTERM has come, after which whole studies are there. To submitit this signal means preemption: it calls
            # `checkpoint`, puts the job back into the queue, and ends the process.
            signal.raise_signal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"))
            raise

    def checkpoint(self, part: Part) -> Any:
        """What is to be done once the job runs again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, part)


def _executor(order: Order, jobs: Jobs) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UsageError("Slurm is reached through submitit. Run: pip install 'glimpseg[slurm]'") from error
    # A job that Slurm itself ends goes back into the queue, too.
    requeue = {"slurm_additional_parameters": {"requeue": True}} if jobs.cluster == "slurm" else {}
    options = {"name": "glimpseg", "timeout_min": LONGEST_JOB_MIN, **requeue, **jobs.options}
    try:
        executor = submitit.AutoExecutor(
            folder=order.output.with_name(f"{order.output.name}.jobs"), cluster=jobs.cluster
        )
        executor.update_parameters(**options)
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"submitit refuses: {error}") from error
    return executor


def _tell() -> None:
    """The job's log says what `glimpseg segment` says on a terminal."""
    root = logging.getLogger("glimpseg")
    root.setLevel(logging.INFO)
    root.addHandler(logging.StreamHandler())
