"""A tree of studies on a Ray cluster: workers that hold the model, each study with one of them."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from glimpseg.batch.job import Work, Written
from glimpseg.batch.job_spec import Order
from glimpseg.batch.progress import WHOLE, Outcome, Tally
from glimpseg.batch.tree import begin, write_statistics
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.errors import OutputError, UsageError
from glimpseg.runtime.atomic import folder_lock
from glimpseg.runtime.preemption import StopRequest, deferred_sigterm
from glimpseg.segmentation.inputs import Item
from glimpseg.version import NOT_A_DEVICE

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""A study whose worker is killed so often is given up: it may be the one that needs too much memory."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many workers there are, and what each has."""

    count: int = 2
    cpus: int = 1
    gpus: float = 0
    """A part of one, 0.5, lets two share it. With 0 a worker sees no GPU."""
    address: str | None = None
    """Of a running cluster, `auto` for the one that this machine belongs to. Without it, and without `RAY_ADDRESS`, Ray
    is started on this machine alone."""


def segment_on_ray(order: Order, workers: Workers, *, go_on: bool = False, overwrite: bool = False) -> Outcome:
    """Segments every study once. Only this process tells of them; the workers write their folders, as `segment_tree`
    does.

    A killed worker is started again, and its study with it, up to `ATTEMPTS` times; a study whose folder stands by then
    is not done again.

    Raises: UsageError without Ray, for workers that cannot begin, or for the output folder of another batch; InputError
        without a study; ModelError; OutputError when the disk refuses; Preempted after SIGTERM, whole studies written.
    """
    ray = _ray()
    items = order.items()
    work = begin(items, order.plain(), order.output, order.wanted, go_on=go_on, overwrite=overwrite)
    with folder_lock(order.output / ".part-0-of-1"), _cluster(ray, workers), deferred_sigterm() as stopped:
        tally, waiting = Tally.of(work, WHOLE.share(items, work.names))
        with _hired(ray, workers, order, work) as hired:
            _share_out(ray, hired, waiting, work.names, tally, stopped)
        write_statistics(order.output)
    log.info("%s", NOT_A_DEVICE)
    tally.refuse_unfinished(bool(stopped))
    return tally.outcome()


class Worker:
    """A process that holds the model and segments what it is given."""

    def __init__(self, order: Order, names: Mapping[str, str], pseudonyms: Pseudonyms | None) -> None:
        self.work = Work(order.load(), order.output, order.wanted, names, pseudonyms)

    def ready(self) -> None:
        """Answers once the model is there."""

    def segment(self, item: Item) -> Written | OutputError | str:
        """What there is to tell of a study, or why there is nothing."""
        try:
            return self.work.whole(item)
        except OutputError as error:
            return error
        except Exception as error:
            return self.work.reason(item, error)


def _share_out(
    ray: Any, hired: Sequence[Any], items: Sequence[Item], names: Mapping[str, str], tally: Tally, stopped: StopRequest
) -> None:
    """Gives each worker that has nothing to do the next study, until there is none."""
    left = deque(items)
    busy: dict[Any, tuple[Any, Item | None]] = {worker.ready.remote(): (worker, None) for worker in hired}
    while busy and (left or any(item for _, item in busy.values())):
        answered, _ = ray.wait(list(busy), timeout=1)  # a signal is noticed in between
        for answer in answered:
            worker, item = busy.pop(answer)
            _take(ray, answer, item, names, tally)
            if left and not stopped:
                following = left.popleft()
                busy[worker.segment.remote(following)] = worker, following
        if stopped:
            left.clear()


def _take(ray: Any, answer: Any, item: Item | None, names: Mapping[str, str], tally: Tally) -> None:
    try:
        found = ray.get(answer)
    except ray.exceptions.RayError as error:
        if item is None:
            lines = str(error).strip().splitlines()
            raise UsageError(f"A worker could not begin: {lines[-1]}") from error
        tally.fail(names[item.id], f"its worker was killed {ATTEMPTS} times; its memory may not have been enough")
        return
    if isinstance(found, OutputError):
        raise found
    if item is not None and isinstance(found, str):
        tally.fail(names[item.id], found)
    elif item is not None:
        tally.take(found)


@contextmanager
def _hired(ray: Any, workers: Workers, order: Order, work: Work) -> Iterator[list[Any]]:
    """The workers; gone at the end, whatever happens."""
    kind = ray.remote(Worker).options(
        num_cpus=workers.cpus, num_gpus=workers.gpus, max_restarts=-1, max_task_retries=ATTEMPTS - 1
    )
    known = ray.put(dict(work.names))
    hired = [kind.remote(order, known, work.pseudonyms) for _ in range(workers.count)]
    try:
        yield hired
    finally:
        for worker in hired:
            ray.kill(worker)


@contextmanager
def _cluster(ray: Any, workers: Workers) -> Iterator[None]:
    """A connection to the cluster, or a Ray of our own for as long as it is needed."""
    if ray.is_initialized():
        yield
        return
    address = workers.address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody unless the user wants it
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


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed. Run: pip install 'glimpseg[ray]'") from error
    return ray
