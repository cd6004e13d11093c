"""What training and inference compute in: bf16 by autocast where it is native and right, else fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

COARSE = 2
"""Planes along the first axis of a convolution's result from which bf16 is trusted on a CPU, less one."""


def resolve_precision(wanted: str, device: torch.device) -> str:
    """bf16 or fp32; `auto` takes bf16 where the processor computes it natively."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


@contextmanager
def precision_context(precision: str, device: torch.device) -> Iterator[None]:
    """The context to run a network in, forward."""
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        small_convolutions_in_fp32(precision, device),
    ):
        yield


def small_convolutions_in_fp32(precision: str, device: torch.device) -> AbstractContextManager:
    """What of `computing` autocast does not know."""
    return _CoarseInFp32() if precision == "bf16" and device.type == "cpu" else nullcontext()


_CONV: Any = torch.conv3d


class _CoarseInFp32(TorchFunctionMode):
    """Computes convolutions in fp32 whose result has but one or two planes.

    The gradient of their weights is wrong in bf16 on a CPU (oneDNN 3.x reads memory that nobody wrote; torch 2.13),
    and they cost next to nothing.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _CONV and not kwargs and _planes(*args) <= COARSE:
            with torch.autocast("cpu", enabled=False):
                return func(*[value.float() if isinstance(value, Tensor) else value for value in args])
        return func(*args, **kwargs)


def _planes(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> int:
    """Of the result of `torch.conv3d` with these arguments, along the first axis."""
    stride, dilation = (value if isinstance(value, int) else value[0] for value in (stride, dilation))
    reach = dilation * (weight.shape[2] - 1)
    if isinstance(padding, str):
        around = reach if padding == "same" else 0
    else:
        around = 2 * (padding if isinstance(padding, int) else padding[0])
    return int((image.shape[2] + around - reach - 1) // stride + 1)
