"""Inference backend: torch, or a copy of the network in another runtime that is compared with torch before use.

A copy is made for one shape of window. The available modalities are an input of it: one copy serves all subsets.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glimpseg.errors import UsageError
from glimpseg.method import Segmenter
from glimpseg.modality import Modality
from glimpseg.runtime.precision import precision_context

log = logging.getLogger(__name__)

NEEDS = MappingProxyType(
    {"torch": ("torch",), "openvino": ("openvino",), "onnx": ("onnxruntime", "onnx", "onnxscript")}
)
"""Packages of each backend; the first one is the runtime."""
PREFERRED = ("openvino", "onnx", "torch")
"""Order in which `auto` looks for an installed backend on a CPU."""
COARSE_MM = 1.5
"""Voxel spacing in mm above which `auto` makes no copy: a brain is one or two windows then, and a copy costs more time
than it saves."""
INPUTS, OUTPUT = ("image", "available"), "probabilities"
"""Names of the inputs of a copy (`INPUTS`), and of its output (`OUTPUT`)."""
TOLERANCE = 1e-4
"""Largest share of a window's voxels whose label may differ from torch in fp32."""
COMPARED = 3
"""Windows of one shape that are compared with torch, at most. The comparison ends with one that shows a label."""
KEPT = 4
"""Number of window shapes whose copies stay in memory."""

Program: TypeAlias = Callable[[Float[np.ndarray, "1 m x y z"], Bool[np.ndarray, "1 m"]], Float[np.ndarray, "1 k x y z"]]
"""Network for windows of one shape: takes image and availability, returns probabilities."""


def resolved_backend(wanted: str, device: torch.device, spacing_mm: float, whole_up_to: float = 1.0) -> str:
    """Return the name of the backend to use.

    `auto` means torch on a GPU, for voxels above `COARSE_MM`, and for a network that segments a brain in one piece,
    because each brain would need a copy of its own. Otherwise it means the first of `PREFERRED` that is installed.

    Args:
        wanted: `auto` or the name of a backend.
        device: Device of the model.
        spacing_mm: Voxel spacing of the model in mm.
        whole_up_to: `Segmenter.whole_up_to`.

    Raises: UsageError for an unknown backend, one that is not installed, or one that does not compute on `device`.
    """
    if wanted == "auto":
        if device.type != "cpu" or spacing_mm > COARSE_MM or whole_up_to > 1:
            return "torch"
        return next(name for name in PREFERRED if not missing(name))
    if wanted not in NEEDS:
        raise UsageError(f"'{wanted}' is no backend. Choose of auto, {', '.join(NEEDS)}.")
    if wanted != "torch" and device.type != "cpu":
        raise UsageError(
            f"The backend {wanted} computes on the processor, and the device is {device}. Add --device cpu, or take "
            "--backend torch."
        )
    require(wanted)
    return wanted


def missing(name: str) -> list[str]:
    """Return the packages of the backend `name` that are not installed."""
    return [package for package in NEEDS[name] if find_spec(package) is None]


def require(name: str) -> None:
    """Raise UsageError if packages of the backend `name` are not installed."""
    absent = missing(name)
    if absent:
        raise UsageError(f"{name} needs {' and '.join(absent)}, not installed here: pip install 'glimpseg[{name}]'.")


class Backend:
    """Runtime that computes `network(windows, available)` for inference.

    The copy for a window shape is compared with torch in fp32 on its first windows, until one shows a label. If more
    labels differ than `TOLERANCE` allows, a bf16 copy is made again in fp32. If that copy differs too, or no copy can
    be made, torch computes from then on, and a warning is logged.

    Args:
        network: The network.
        name: `torch`, `openvino` or `onnx`.
        precision: Precision of torch, `fp32` or `bf16`.
        device: Device of the network.
    """

    def __init__(self, network: Segmenter, name: str, precision: str, device: torch.device) -> None:
        self._network, self._device = network, device
        self._of_torch = precision
        self.name = name
        """Name of the runtime in use."""
        self.precision = "fp32" if name == "onnx" else precision
        """Precision in use, bf16 or fp32. onnxruntime has no bf16 convolution on CPUs."""
        self.note: str | None = None
        """Reason why runtime or precision is not the one asked for; None if it is."""
        self._programs: dict[tuple[int, ...], _Copy] = {}

    @property
    def record(self) -> dict[str, str]:
        """Name, version and precision of the runtime, and `note` if there is one.

        These are fields of `run.json` and `evaluation.json`.
        """
        told = {"name": self.name, "version": version(NEEDS[self.name][0]), "precision": self.precision}
        return {**told, "note": self.note} if self.note else told

    def computing(self) -> AbstractContextManager[None]:
        """Return a context manager. The backend has to be called inside it."""
        return precision_context(self.precision, self._device) if self.name == "torch" else nullcontext()

    def __call__(
        self, windows: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b k x y z"]:
        """Return the network's probabilities for windows, in fp32. Absent channels of the windows are ignored."""
        while self.name != "torch":
            try:
                shown = zip(windows.split(1), available.split(1), strict=True)
                return torch.cat([self._one(window, there) for window, there in shown])
            except Exception as error:  # whatever another runtime raises, torch can do it
                self._retreat(error)
        with precision_context(self._of_torch, self._device) if self.note else nullcontext():
            return self._network.fuse(self._network.encode(windows, available), available)

    def _one(self, window: Float[Tensor, "1 m x y z"], available: Bool[Tensor, "1 m"]) -> Float[Tensor, "1 k x y z"]:
        shape = tuple(window.shape[2:])
        if shape not in self._programs:
            while len(self._programs) >= KEPT:
                self._programs.pop(next(iter(self._programs)))
            self._programs[shape] = _Copy(MAKERS[self.name](self._network, shape, self.precision), COMPARED)
        copy = self._programs[shape]
        found = torch.from_numpy(copy.program(_plain(window), _plain(available)))
        if copy.unsettled:
            expected = self._network.fuse(self._network.encode(window, available), available)
            changed = changed_labels(self._network, found, expected)
            if not changed <= TOLERANCE:
                raise _DiffersError(f"in {self.precision} it gives {changed:.1e} of a window's voxels another label")
            settled = bool(self._network.decode(expected).any())
            copy.unsettled = 0 if settled else copy.unsettled - 1
        return found

    def _retreat(self, error: Exception) -> None:
        """Go from bf16 to fp32, or from another runtime to torch, after a failure; log a warning."""
        was, reason = self.name, _first_line(error)
        self._programs.clear()
        if isinstance(error, _DiffersError) and self.precision == "bf16":
            self.precision = "fp32"
            self.note = f"{was} computes in fp32, not bf16: {reason}."
        else:
            self.name, self.precision = "torch", self._of_torch
            self.note = f"torch computes, not {was}: {reason}."
        log.warning("%s", self.note)


@dataclass
class _Copy:
    """Copy of a network in another runtime, for windows of one shape."""

    program: Program
    unsettled: int
    """Windows that are still to be compared with torch, at most."""


class _DiffersError(Exception):
    """Error for a copy that gives other labels than the network."""


def changed_labels(
    network: Segmenter, found: Float[Tensor, "b k x y z"], expected: Float[Tensor, "b k x y z"]
) -> float:
    """Return the share of voxels with another label than expected; 1 if `found` has another shape or is not finite."""
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return 1.0
    return float((network.decode(found) != network.decode(expected)).float().mean())


def exported(network: Segmenter, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """Return the network's forward pass in fp32, as a program for one window of `shape` and any availability."""
    with torch.inference_mode(False), torch.no_grad():
        weights = next(network.parameters())
        image = torch.zeros(1, len(Modality), *shape, device=weights.device)
        available = torch.ones(image.shape[:2], dtype=torch.bool, device=weights.device)
        return torch.export.export(network, (image, available), strict=False)


def to_openvino(program: torch.export.ExportedProgram) -> Any:
    """Return an exported network as an `openvino.Model`.

    The frontend is called directly, because `openvino.convert_model` reports its use over the internet unless the user
    has forbidden it.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    with _silence():
        decoder = TorchFXPythonDecoder.from_exported_program(program)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    shapes = [list(example.shape) for example in program.example_inputs[0]]
    model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    for port, name in zip((*model.inputs, *model.outputs), (*INPUTS, OUTPUT), strict=True):
        port.get_tensor().set_names({name})
    return model


def to_onnx(program: torch.export.ExportedProgram) -> Any:
    """Return an exported network as a `torch.onnx.ONNXProgram`."""
    with _silence():
        return torch.onnx.export(program, dynamo=True, verbose=False, input_names=INPUTS, output_names=[OUTPUT])


def openvino_program(model: Any, precision: str) -> Program:
    """Return an `openvino.Model` (or the path of its `.xml`), compiled for the CPU in `fp32` or `bf16`, as a function.

    The precision is set because OpenVINO's default is a low one.
    """
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda image, available: request.infer([image, available])[0]


def onnx_program(model: bytes | str) -> Program:
    """Return an ONNX model, given as bytes or as the path of its file, as a function that runs on the CPU in fp32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda image, available: session.run(None, dict(zip(INPUTS, (image, available), strict=True)))[0]


def _made_by_openvino(network: Segmenter, shape: Sequence[int], precision: str) -> Program:
    return openvino_program(to_openvino(exported(network, shape)), precision)


def _made_by_onnx(network: Segmenter, shape: Sequence[int], precision: str) -> Program:
    return onnx_program(to_onnx(exported(network, shape)).model_proto.SerializeToString())


MAKERS: Mapping[str, Callable[[Segmenter, Sequence[int], str], Program]] = MappingProxyType(
    {"openvino": _made_by_openvino, "onnx": _made_by_onnx}
)


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the converters' messages on the root logger and their warnings; they do not concern users."""
    loggers = [logging.getLogger(name) for name in (None, *_TALKATIVE)]
    quiet = logging.NullHandler()  # or the first word on the root logger would set it up for all
    loggers[0].addHandler(quiet)
    for logger in loggers:
        logger.addFilter(_nothing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_nothing)
        loggers[0].removeHandler(quiet)


_TALKATIVE = ("torch.onnx._internal.exporter._registration",)
"""Loggers that report that torchvision is missing, which nothing here needs."""


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _plain(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.cpu().numpy())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
