"""Distributed training (DDP): helpers for several processes under `torchrun`. In a single process they do nothing."""

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
    """Return the rank of this process and the number of processes; 0 and 1 in a single process.

    Outside a process group, they are read from the environment that `torchrun` sets.
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group that `torchrun` started, and leave it at the end of the block.

    In a single process, and in a process that has joined a group already, nothing is done.

    A rank that finishes, or that SIGTERM stops together with all others, waits for the other ranks. A rank that fails
    leaves at once. The others then lose the connection and end, too; waiting for them would take for ever.

    Raises:
        TrainingError: Another rank has gone.
    """
    if rank_and_world()[1] == 1 or distributed.is_initialized():
        yield
        return
    # Functions of this module have the current group as a default argument. If DDP imported it later, it would keep our
    # group for ever.
    importlib.import_module("torch.distributed.nn.functional")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        _wait_and_release()
    except Preempted as error:
        traceback.clear_frames(error.__traceback__)  # the frames hold the DDP module
        _wait_and_release()
        raise
    except RuntimeError as error:
        if not _is_communication_error(error):
            raise
        raise TrainingError(
            f"Rank {rank_and_world()[0]} lost the connection to another rank ({str(error).splitlines()[0]}). The rank "
            "that ended first is named below by torchrun, with its exit code or signal; signal 9 comes from outside, "
            "most often from a system that is out of memory. The last checkpoint is whole: go on with --resume."
        ) from error
    finally:
        distributed.destroy_process_group()


def _is_communication_error(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "/gloo/" in str(error)


def _wait_and_release() -> None:
    """Wait for all ranks, then release what holds the process group, so that its threads end when it is destroyed.

    An all-reduce of a backward pass holds a Python object. If one was still unreleased while Python shut down, its
    thread could no longer get Python's lock and aborted the process (SIGABRT, "terminate called without an active
    exception"). This happened in a sixth of short runs on a busy machine.
    """
    distributed.barrier()
    gc.collect()  # a DDP module is part of reference cycles


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Run the block on rank 0 first, then on the other ranks."""
    rank, world = rank_and_world()
    if world > 1 and rank:
        distributed.barrier()
    yield
    if world > 1 and not rank:
        distributed.barrier()


def mean_over_ranks(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Return the mean of each value over all ranks.

    Args:
        values: Values by name; the same names, in the same order, on every rank.
        device: Device for the communication.
    """
    _, world = rank_and_world()
    if world == 1:
        return dict(values)
    totals = torch.tensor(list(values.values()), device=device)
    distributed.all_reduce(totals)
    return dict(zip(values, (totals / world).tolist(), strict=True))


def gather_from_ranks(values: Tensor) -> Tensor:
    """Concatenate the values of all ranks along the first axis.

    The gradient reaches this rank's own values, multiplied by the number of ranks. DDP divides gradients by this
    number. A loss that every rank computes from all values therefore has the same gradient as in a single process.

    Args:
        values: Values of this rank; the same shape on every rank.
    """
    rank, world = rank_and_world()
    if world == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world)]
    distributed.all_gather(parts, values.detach().contiguous())
    parts[rank] = values.detach() + world * (values - values.detach())
    return torch.cat(parts)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return True if `flag` is True on any rank.

    All ranks then stop after the same step; otherwise one would wait for ever.
    """
    if rank_and_world()[1] == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return bool(flags.item())
