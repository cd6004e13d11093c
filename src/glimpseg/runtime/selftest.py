"""Self-test of 3-D convolutions: some versions of torch and cuDNN compute them wrongly."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from glimpseg.errors import TrainingError
from glimpseg.runtime.precision import precision_context, resolve_precision

log = logging.getLogger(__name__)

BOUNDS = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 1e-2}
"""Largest allowed error of each precision, relative to the largest value. Correct kernels stay below a third of it."""
WIDTHS, KERNEL = (16, 32), 3
"""Input and output channels, and the kernel size: those of every network here."""
SHAPES: tuple[tuple[tuple[int, int, int, int], int], ...] = (
    ((2, 13, 15, 17), 1),
    ((1, 9, 11, 13), 2),
    # Results with one and two planes along the first axis: in bf16 the gradient of the weights is wrong on CPUs (see
    # `precision`).
    ((1, 1, 2, 3), 1),
    ((2, 2, 3, 3), 1),
    ((2, 4, 4, 6), 2),
)
"""Batch size and image shape (some sides odd), and stride of the convolution."""
AMPERE = 8
"""Compute capability from which NVIDIA GPUs have TF32 and bf16."""


@dataclass(frozen=True, kw_only=True)
class KnownFault:
    """Versions that compute 3-D convolutions on NVIDIA GPUs wrongly, or very slowly."""

    torch: str = ""
    """Prefix of the torch version; empty for all versions."""
    cudnn: tuple[int, int]
    """First bad version, and first good version after it, as in `torch.backends.cudnn.version()`."""
    fault: str
    remedy: str
    source: str


KNOWN_FAULTS = (
    KnownFault(
        torch="2.9.0",
        cudnn=(0, 10**6),
        fault="3-D convolutions in bf16 take four times as long and up to 17 times the memory",
        remedy="Install torch 2.10 or later",
        source="pytorch/pytorch#166122, #166643",
    ),
    KnownFault(
        torch="2.9.",
        cudnn=(0, 91500),
        fault="3-D convolutions in bf16 take four times as long and up to 17 times the memory",
        remedy="Install torch 2.10 or later, or cuDNN 9.15 or later beside it (pip install -U nvidia-cudnn-cu12)",
        source="pytorch/pytorch#166122, #166643",
    ),
    KnownFault(
        cudnn=(90800, 91100),
        fault="3-D convolutions in bf16 can be wrong without a word",
        remedy="Install a torch with cuDNN 9.15.1 or later, or set optim.precision=fp32",
        source="pytorch/pytorch#163539",
    ),
    KnownFault(
        cudnn=(91002, 91501),
        fault="3-D convolutions in TF32, which is what fp32 is by default there, can be wrong",
        remedy="Install a torch with cuDNN 9.15.1 or later, or set NVIDIA_TF32_OVERRIDE=0",
        source="pytorch/pytorch#167024",
    ),
)


def known_faults(version: str, cudnn: int | None) -> list[KnownFault]:
    """Return the known faults of a torch version and its cuDNN version, each fault once.

    Args:
        version: Version of torch.
        cudnn: Version of cuDNN as in `torch.backends.cudnn.version()`; None without cuDNN, which has no known faults.
    """
    if cudnn is None:
        return []
    found = [
        fault for fault in KNOWN_FAULTS if version.startswith(fault.torch) and fault.cudnn[0] <= cudnn < fault.cudnn[1]
    ]
    return list({fault.fault: fault for fault in reversed(found)}.values())[::-1]


def version_warnings() -> list[str]:
    """Return a warning for each known fault of the installed versions: what is wrong, and what to do.

    Without a CUDA GPU there are none.
    """
    version, cudnn = torch.__version__, torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return [
        f"torch {version} with cuDNN {cudnn}: {known.fault} ({known.source}). {known.remedy}."
        for known in known_faults(version, cudnn)
    ]


@dataclass(frozen=True, kw_only=True)
class ConvolutionCheck:
    """Result of the convolution test on one device in one precision."""

    device: str
    precision: str
    error: float
    """Largest error of all results and gradients, relative to the largest value; infinite if there was no result."""
    bound: float
    where: str
    """Convolution and quantity with the largest error."""

    @property
    def passed(self) -> bool:
        """True if the largest error is below the bound; False for NaN."""
        return self.error < self.bound

    def record(self) -> dict[str, str | float | bool | None]:
        """Return the result as JSON; null for an infinite error, which JSON cannot hold."""
        return {**asdict(self), "error": self.error if math.isfinite(self.error) else None, "passed": self.passed}


def available_devices() -> list[torch.device]:
    """Return all devices of this machine, the CPU first."""
    found = [torch.device("cpu")]
    found += [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    found += [torch.device("mps")] if torch.backends.mps.is_available() else []
    return found


def available_precisions(device: torch.device) -> list[str]:
    """Return the precisions that training and inference may use on a device."""
    found = ["fp32"]
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= AMPERE:
        found.append("tf32")
    if resolve_precision("auto", device) == "bf16":
        found.append("bf16")
    return found


def check_convolutions(device: torch.device, precision: str) -> ConvolutionCheck:
    """Compare convolutions on a device with fp64 on the CPU, forward and backward; takes 0.1 s.

    A device that fails to compute one has an infinite error.

    Args:
        device: Device to test.
        precision: `fp32`, `tf32` or `bf16`.
    """
    worst, where = 0.0, "nowhere"
    for shape, stride in SHAPES:
        named = f"an image of {'x'.join(map(str, shape[1:]))}, stride {stride}"
        image, weight, upstream = _make_inputs(shape, stride)
        exact = [value.double() for value in (image, weight, upstream)]
        expected = _convolve(exact, stride, torch.device("cpu"), "fp64")
        try:
            computed = _convolve((image, weight, upstream), stride, device, precision)
        except RuntimeError as error:
            worst, where = math.inf, f"{named}: {str(error).splitlines()[0]}"
            break
        for what, one, other in zip(
            ("result", "image's gradient", "weights' gradient"), computed, expected, strict=True
        ):
            deviation = float((one - other).abs().max() / other.abs().max())
            if not deviation <= worst:  # also true for NaN
                worst, where = deviation if math.isfinite(deviation) else math.inf, f"the {what}, {named}"
    return ConvolutionCheck(device=str(device), precision=precision, error=worst, bound=BOUNDS[precision], where=where)


def failure_message(checks: Sequence[ConvolutionCheck]) -> str | None:
    """Return an error message for the failed checks: what is wrong, and what to do. None if all passed."""
    failed = [result for result in checks if not result.passed]
    if not failed:
        return None
    worst = max(failed, key=lambda result: result.error)
    return (
        f"3-D convolutions are computed wrongly on {worst.device} in {worst.precision}: a relative error of "
        f"{worst.error:.1e} where at most {worst.bound:.0e} is right ({worst.where}). Trust no result of this device. "
        "Install another version of torch, set optim.precision=fp32 if fp32 is right, or use --device cpu."
    )


def require_correct_convolutions(device: torch.device, precision: str) -> None:
    """Test a device other than the CPU before training on it in this precision.

    On CUDA, known faults of the versions are logged as warnings, and `fp32` is tested as TF32, which torch uses for it.

    Raises:
        TrainingError: The device computes convolutions wrongly.
    """
    if device.type == "cpu":
        return
    for caution in version_warnings() if device.type == "cuda" else ():
        log.warning("%s", caution)
    # With fp32, torch lets cuDNN compute convolutions in TF32.
    used = "tf32" if device.type == "cuda" and precision == "fp32" else precision
    message = failure_message([check_convolutions(device, used)])
    if message is not None:
        raise TrainingError(message)


def _make_inputs(shape: tuple[int, int, int, int], stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image, weights and an upstream gradient for the test.

    All values are exact in bf16, so only the arithmetic differs. The global random generator is not used.
    """
    draws = torch.Generator().manual_seed(sum(shape))
    batch, *sides = shape
    after = [(side - 1) // stride + 1 for side in sides]
    sizes = ((batch, WIDTHS[0], *sides), (*WIDTHS[::-1], *[KERNEL] * 3), (batch, WIDTHS[1], *after))
    image, weight, upstream = (torch.randn(size, generator=draws).bfloat16().float() for size in sizes)
    return image, weight, upstream


def _convolve(inputs: Sequence[Tensor], stride: int, device: torch.device, precision: str) -> list[Tensor]:
    """Return the result of the convolution and its gradients for image and weights, in fp64 on the CPU."""
    image, weight = (value.to(device).requires_grad_() for value in inputs[:2])
    # Positional arguments, as `torch.nn.Conv3d` passes them: `precision` looks at no others.
    arguments = (image, weight, None, stride, KERNEL // 2)
    with torch.enable_grad(), _tf32(precision, device):
        with precision_context(precision, device):
            result = torch.conv3d(*arguments)
        gradients = torch.autograd.grad(result, (image, weight), inputs[2].to(device, result.dtype))
    return [value.detach().cpu().double() for value in (result, *gradients)]


def _tf32(precision: str, device: torch.device) -> AbstractContextManager:
    if device.type != "cuda" or precision == "bf16":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=precision == "tf32")
