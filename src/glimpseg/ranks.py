"""Several processes that train as one under `torchrun`; alone, all of this does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; 0 and 1 alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Joins the other ranks where `torchrun` started several, and leaves them at the end."""
    if rank_and_world()[1] == 1 or distributed.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


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


def gathered(values: Tensor) -> Tensor:
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


def on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether any rank has the flag: all stop after the same step, or one would wait for the others for ever."""
    if rank_and_world()[1] == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return bool(flags.item())
