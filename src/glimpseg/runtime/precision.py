"""Numerical precision of training and inference: bf16 by autocast where it is native and correct, else fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEW_PLANES = 2
"""Largest number of planes along the first axis of a convolution's result for which bf16 is not used on a CPU."""


def resolve_precision(requested: str, device: torch.device) -> str:
    """Return the precision `requested`, or for `auto` `bf16` if the device supports it natively, else `fp32`.

    On other devices than CUDA and CPU, `auto` is `fp32`.
    """
    if requested != "auto":
        return requested
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


@contextmanager
def precision_context(precision: str, device: torch.device) -> Iterator[None]:
    """Run networks in this precision inside the block (forward pass).

    Args:
        precision: `bf16` or `fp32`.
        device: Device that the network runs on.
    """
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        small_convolutions_in_fp32(precision, device),
    ):
        yield


def small_convolutions_in_fp32(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the part of `precision_context` that autocast does not cover: small convolutions in fp32 on a CPU."""
    return _SmallConvolutionsInFp32() if precision == "bf16" and device.type == "cpu" else nullcontext()


_CONV: Any = torch.conv3d


class _SmallConvolutionsInFp32(TorchFunctionMode):
    """Compute convolutions whose result has one or two planes in fp32.

    In bf16 on a CPU, the gradient of their weights is wrong (oneDNN 3.x reads uninitialised memory; torch 2.13). In
    fp32 they cost next to nothing.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _CONV and not kwargs and _planes(*args) <= FEW_PLANES:
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
    """Return the number of planes along the first axis of the result of `torch.conv3d` with these arguments."""
    stride, dilation = (value if isinstance(value, int) else value[0] for value in (stride, dilation))
    reach = dilation * (weight.shape[2] - 1)
    if isinstance(padding, str):
        around = reach if padding == "same" else 0
    else:
        around = 2 * (padding if isinstance(padding, int) else padding[0])
    return int((image.shape[2] + around - reach - 1) // stride + 1)
