"""Several processes that train as one under `torchrun`; alone, all of this does nothing."""

from __future__ import annotations

import gc
import importlib
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from glimpseg.errors import Preempted, TrainingError


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; 0 and 1 alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the other ranks where `torchrun` started several, and leaves them at the end.

    A rank that is done, or stopped by SIGTERM as all are, waits for the others and ends its communication. One that
    fails leaves at once: the others lose the connection and end, too, and waiting for them would take for ever.

    Raises: TrainingError when another rank has gone.
    """
    if rank_and_world()[1] == 1 or distributed.is_initialized():
        yield
        return
    # Its functions have the group of the moment as a default. Imported later, as DDP does, it would keep ours for ever.
    importlib.import_module("torch.distributed.nn.functional")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        _finish()
    except Preempted as error:
        traceback.clear_frames(error.__traceback__)  # they hold the DDP module
        _finish()
        raise
    except RuntimeError as error:
        if not _is_of_communication(error):
            raise
        raise TrainingError(
            f"Rank {rank_and_world()[0]} lost the connection to another rank ({str(error).splitlines()[0]}). The rank "
            "that ended first is named below by torchrun, with its exit code or signal; signal 9 comes from outside, "
            "most often from a system that is out of memory. The last checkpoint is whole: go on with --resume."
        ) from error
    finally:
        distributed.destroy_process_group()


def _is_of_communication(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "/gloo/" in str(error)


def _finish() -> None:
    """Waits for all ranks, then lets go of what holds the process group, so that destroying it ends its threads.

    One of them that still had an all-reduce to release while Python shut down took the process with it (SIGABRT,
    "terminate called without an active exception", in a sixth of short runs on a busy machine): the all-reduce of a
    backward pass holds a Python object, and there is no lock to get any more.
    """
    distributed.barrier()
    gc.collect()  # a DDP module lies in circles


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Rank 0 runs the block; the others wait and run it then."""
    rank, world = rank_and_world()
    if world > 1 and rank:
        distributed.barrier()
    yield
    if world > 1 and not rank:
        distributed.barrier()


def mean_over_ranks(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each value; every rank has to come with the same names."""
    _, world = rank_and_world()
    if world == 1:
        return dict(values)
    totals = torch.tensor(list(values.values()), device=device)
    distributed.all_reduce(totals)
    return dict(zip(values, (totals / world).tolist(), strict=True))


def gather_from_ranks(values: Tensor) -> Tensor:
    """All ranks' values one after the other along the first axis; each rank has to come with the same shape.

    The gradient reaches this rank's own values, times the number of ranks: DDP divides by it, so that a loss that every
    rank computes of all of them has the gradient that one process would have.
    """
    rank, world = rank_and_world()
    if world == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world)]
    distributed.all_gather(parts, values.detach().contiguous())
    parts[rank] = values.detach() + world * (values - values.detach())
    return torch.cat(parts)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether any rank has the flag: all stop after the same step, or one would wait for the others for ever."""
    if rank_and_world()[1] == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return bool(flags.item())
