"""Outline of a network: its parts and the shapes of its weights, without the memory for them.

A recipe decides the size of a network, and may be damaged. The outline is made first, and compared or refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook

from glimpseg import methods
from glimpseg.errors import UsageError
from glimpseg.method import Learner
from glimpseg.recipe import Recipe

MOST_MODULES = 10_000
"""Most modules of a network. The largest of the package has 1,257."""
MOST_WEIGHTS = 20_000_000_000
"""Most values of a network's weights: 80 GB in fp32."""


class _TooLarge(Exception):
    """More than `MOST_MODULES` modules."""


def outline(recipe: Recipe) -> Learner:
    """Return the learner of a recipe on the meta device, on which weights have shapes and no values.

    Raises: as `methods.build`; UsageError for a network that is too large or cannot be built.
    """
    try:
        with torch.device("meta"), _limited_modules():
            learner = methods.build(recipe)
    except _TooLarge as error:
        raise UsageError(_refusal(recipe, f"a network of more than {MOST_MODULES:,} parts")) from error
    except UsageError:
        raise
    except (
        RuntimeError,
        ArithmeticError,
        ValueError,
        TypeError,
        MemoryError,
    ) as error:  # impossible numbers of channels
        raise UsageError(_refusal(recipe, f"a network that cannot be built ({_first_line(error)})")) from error
    weights = sum(parameter.numel() for parameter in learner.parameters())
    if weights > MOST_WEIGHTS:
        raise UsageError(_refusal(recipe, f"a network of {weights:,} weights, more than {MOST_WEIGHTS:,}"))
    return learner


@contextmanager
def _limited_modules() -> Iterator[None]:
    """Raise `_TooLarge` in the block when this thread has put more than `MOST_MODULES` modules into others."""
    thread, count = threading.get_ident(), 0

    def counted(module: Any, name: str, part: Any) -> None:
        del module, name, part
        nonlocal count
        count += threading.get_ident() == thread
        if count > MOST_MODULES:
            raise _TooLarge

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def _refusal(recipe: Recipe, what: str) -> str:
    return f"The config of this {recipe.method} asks for {what}. Correct the recipe, or copy it again."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
