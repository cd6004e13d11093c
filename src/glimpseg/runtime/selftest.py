"""Whether this machine's 3-D convolutions can be trusted: some versions of torch and cuDNN compute them wrongly."""

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
"""Largest error of each precision, relative to the largest value. Correct kernels stay below a third of it."""
WIDTHS, KERNEL = (16, 32), 3
"""Channels in and out, and the kernel's side: as in every network here."""
SHAPES: tuple[tuple[tuple[int, int, int, int], int], ...] = (
    ((2, 13, 15, 17), 1),
    ((1, 9, 11, 13), 2),
    # One and two planes along the first axis: in bf16 the gradient of the weights is wrong on CPUs (`precision`).
    ((1, 1, 2, 3), 1),
    ((2, 2, 3, 3), 1),
    ((2, 4, 4, 6), 2),
)
"""Batch and voxels of an image, odd sides among them, and the stride of the convolution."""
AMPERE = 8
"""Compute capability from which NVIDIA's processors have TF32 and bf16."""


@dataclass(frozen=True, kw_only=True)
class KnownFault:
    """Versions that compute 3-D convolutions on NVIDIA's processors wrongly, or very slowly."""

    torch: str = ""
    """How the version begins; empty for all."""
    cudnn: tuple[int, int]
    """The first bad version, and the first good one after it, as `torch.backends.cudnn.version()` counts."""
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
    """Those of a torch and its cuDNN; none without cuDNN. Of two that say the same, the first."""
    if cudnn is None:
        return []
    found = [
        fault for fault in KNOWN_FAULTS if version.startswith(fault.torch) and fault.cudnn[0] <= cudnn < fault.cudnn[1]
    ]
    return list({fault.fault: fault for fault in reversed(found)}.values())[::-1]


def version_warnings() -> list[str]:
    """What is known of the versions that run here: what is wrong, and what to do."""
    version, cudnn = torch.__version__, torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return [
        f"torch {version} with cuDNN {cudnn}: {known.fault} ({known.source}). {known.remedy}."
        for known in known_faults(version, cudnn)
    ]


@dataclass(frozen=True, kw_only=True)
class ConvolutionCheck:
    """What came of the convolutions on one device in one precision."""

    device: str
    precision: str
    error: float
    """The largest of all results and gradients, relative to the largest value; infinite if nothing came."""
    bound: float
    where: str
    """The largest error's place."""

    @property
    def passed(self) -> bool:
        """Whether every error is below the bound; one that is not a number is not."""
        return self.error < self.bound

    def record(self) -> dict[str, str | float | bool | None]:
        """For JSON, which has no infinity: null where nothing came."""
        return {**asdict(self), "error": self.error if math.isfinite(self.error) else None, "passed": self.passed}


def available_devices() -> list[torch.device]:
    """The CPU, and what else there is."""
    found = [torch.device("cpu")]
    found += [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    found += [torch.device("mps")] if torch.backends.mps.is_available() else []
    return found


def available_precisions(device: torch.device) -> list[str]:
    """Those that training and inference may choose there."""
    found = ["fp32"]
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= AMPERE:
        found.append("tf32")
    if resolve_precision("auto", device) == "bf16":
        found.append("bf16")
    return found


def check_convolutions(device: torch.device, precision: str) -> ConvolutionCheck:
    """Convolutions forward and backward, as training runs them, against fp64 on the CPU: a tenth of a second."""
    worst, where = 0.0, "nowhere"
    for shape, stride in SHAPES:
        named = f"an image of {'x'.join(map(str, shape[1:]))}, stride {stride}"
        image, weight, upstream = _inputs(shape, stride)
        exact = [value.double() for value in (image, weight, upstream)]
        right = _convolve(exact, stride, torch.device("cpu"), "fp64")
        try:
            found = _convolve((image, weight, upstream), stride, device, precision)
        except RuntimeError as error:
            worst, where = math.inf, f"{named}: {str(error).splitlines()[0]}"
            break
        for what, one, other in zip(("result", "image's gradient", "weights' gradient"), found, right, strict=True):
            apart = float((one - other).abs().max() / other.abs().max())
            if not apart <= worst:  # also what is not a number
                worst, where = apart if math.isfinite(apart) else math.inf, f"the {what}, {named}"
    return ConvolutionCheck(device=str(device), precision=precision, error=worst, bound=BOUNDS[precision], where=where)


def failure_message(checks: Sequence[ConvolutionCheck]) -> str | None:
    """What the checks that did not pass mean, and what to do; nothing if all passed."""
    failed = [found for found in checks if not found.passed]
    if not failed:
        return None
    worst = max(failed, key=lambda found: found.error)
    return (
        f"3-D convolutions are computed wrongly on {worst.device} in {worst.precision}: a relative error of "
        f"{worst.error:.1e} where at most {worst.bound:.0e} is right ({worst.where}). Trust no result of this device. "
        "Install another version of torch, set optim.precision=fp32 if fp32 is right, or use --device cpu."
    )


def require_correct_convolutions(device: torch.device, precision: str) -> None:
    """Before training on a graphics processor. Raises: TrainingError if it computes convolutions wrongly."""
    if device.type == "cpu":
        return
    for caution in version_warnings() if device.type == "cuda" else ():
        log.warning("%s", caution)
    # Where fp32 is asked for, torch lets cuDNN compute convolutions in TF32.
    used = "tf32" if device.type == "cuda" and precision == "fp32" else precision
    message = failure_message([check_convolutions(device, used)])
    if message is not None:
        raise TrainingError(message)


def _inputs(shape: tuple[int, int, int, int], stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image, weights and the gradient that comes back, all of numbers that bf16 has, so that only the arithmetic
    differs. The global generator is left alone."""
    draws = torch.Generator().manual_seed(sum(shape))
    batch, *sides = shape
    after = [(side - 1) // stride + 1 for side in sides]
    sizes = ((batch, WIDTHS[0], *sides), (*WIDTHS[::-1], *[KERNEL] * 3), (batch, WIDTHS[1], *after))
    image, weight, upstream = (torch.randn(size, generator=draws).bfloat16().float() for size in sizes)
    return image, weight, upstream


def _convolve(inputs: Sequence[Tensor], stride: int, device: torch.device, precision: str) -> list[Tensor]:
    """The result and both gradients, in fp64 on the CPU."""
    image, weight = (value.to(device).requires_grad_() for value in inputs[:2])
    # Positional, as `torch.nn.Conv3d` passes them: `precision` looks at no others.
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
