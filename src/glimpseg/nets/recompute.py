"""Activation checkpointing: activations are computed again in the backward pass instead of being kept.

It takes more time and less memory; gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def outermost(module: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    """Yield the modules inside `module` that are of these types and lie in no other of them, in order."""
    for child in module.children():
        if isinstance(child, kinds):
            yield child
        else:
            yield from outermost(child, kinds)


def recompute(stages: Iterable[nn.Module], context: Callable[[], AbstractContextManager] = nullcontext) -> None:
    """Make each stage keep only its input, and compute its activations again when gradients need them.

    Works in place; names of weights stay. Random layers draw the same numbers again. Buffers, such as the statistics of
    a batch norm, are updated once.

    Args:
        stages: modules to checkpoint.
        context: returns the context manager of the second computation: what surrounds the forward pass besides
            autocast, which is restored anyway. Not used in compiled code.
    """
    for stage in stages:
        stage.forward = _Recomputed(stage, context)  # type: ignore[method-assign]


class _Recomputed:
    """Forward pass of a stage that keeps only its input."""

    def __init__(self, stage: nn.Module, context: Callable[[], AbstractContextManager]) -> None:
        self.stage, self.forward, self.context = stage, stage.forward, context

    def __call__(self, *inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*inputs)
        if torch.compiler.is_compiling():  # a compiled pass updates buffers only once
            return checkpoint(self.forward, *inputs, use_reentrant=False)
        return checkpoint(self.forward, *inputs, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), self._recompute_context()

    @contextmanager
    def _recompute_context(self) -> Iterator[None]:
        counted = [(buffer, buffer.clone()) for buffer in self.stage.buffers()]
        try:
            with self.context():
                yield
        finally:
            with torch.no_grad():
                for buffer, before in counted:
                    buffer.copy_(before)
