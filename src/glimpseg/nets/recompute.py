"""Activations that are computed again in the backward pass instead of being kept: more time, less memory, the same
gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def outermost(module: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    """The modules of these types that lie in no other of them, in order."""
    for child in module.children():
        if isinstance(child, kinds):
            yield child
        else:
            yield from outermost(child, kinds)


def recompute(stages: Iterable[nn.Module], context: Callable[[], AbstractContextManager] = nullcontext) -> None:
    """Of each stage, its input alone is kept; what it makes of it is computed again when gradients need it.

    In place; the weights keep their names. Random parts draw the same numbers again, and what norms count of the
    batches they have seen is counted once. `context` is what the forward pass runs in besides autocast.
    """
    for stage in stages:
        stage.forward = _Again(stage, context)  # type: ignore[method-assign]


class _Again:
    """A stage's forward pass that keeps its input alone."""

    def __init__(self, stage: nn.Module, context: Callable[[], AbstractContextManager]) -> None:
        self.stage, self.forward, self.context = stage, stage.forward, context

    def __call__(self, *inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*inputs)
        if torch.compiler.is_compiling():  # a compiled pass counts batches once by itself
            return checkpoint(self.forward, *inputs, use_reentrant=False)
        return checkpoint(self.forward, *inputs, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), self._second()

    @contextmanager
    def _second(self) -> Iterator[None]:
        counted = [(buffer, buffer.clone()) for buffer in self.stage.buffers()]
        try:
            with self.context():
                yield
        finally:
            with torch.no_grad():
                for buffer, before in counted:
                    buffer.copy_(before)
