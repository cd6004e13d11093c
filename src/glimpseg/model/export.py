"""Export of a model's network to a file for other programs, with a description of its inputs and output."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from glimpseg.errors import OutputError, UsageError
from glimpseg.method import WINDOW_OVERLAP, Segmenter
from glimpseg.modality import ALL, Modality, to_flags
from glimpseg.model.backend import (
    INPUTS,
    TOLERANCE,
    Program,
    changed_labels,
    exported,
    onnx_program,
    openvino_program,
    require,
    to_onnx,
    to_openvino,
)
from glimpseg.model.folder import WEIGHTS
from glimpseg.model.loading import Model
from glimpseg.runtime.atomic import atomic_file, atomic_folder
from glimpseg.version import NOT_A_DEVICE, __version__

SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "openvino": "", "pt2": ".pt2"}
"""Formats and the suffixes of their files; OpenVINO's two files lie in a folder."""
NETWORK = "network.xml"
"""File in OpenVINO's folder; `network.bin` beside it holds the weights."""
KEY = "glimpseg"
"""Key of the description, in JSON, in the file's own metadata."""
SUBSETS_TRIED = (ALL, Modality.T1C | Modality.FLAIR)
SEEDS = (1, 2)


@dataclass(frozen=True)
class Agreement:
    """Agreement of a written file with torch on random windows."""

    largest: float
    """Largest difference of two probabilities."""
    changed: float
    """Share of the voxels with another label, in the worst window."""


def export(
    model: Model, path: str | Path, to: str, *, verify: bool = False, overwrite: bool = False
) -> Agreement | None:
    """Write the network to a file, in fp32, for windows of the size of its training crops.

    Its inputs are `image` (float32, 1 x modality x X x Y x Z) and `available` (bool, 1 x modality), its output is
    `probabilities`. The result of `describe` is in the file's metadata.

    Args:
        model: The model.
        path: File to write; for `openvino` a folder.
        to: `onnx`, `openvino` or `pt2` (`torch.export`).
        verify: Run the written file in its own runtime on two random windows and two subsets, and compare with torch.
        overwrite: Replace an older export.

    Returns: The agreement with torch; None without `verify`.

    Raises: UsageError for an unknown format, a wrong suffix, a missing package or a place in use; OutputError if the
        disk refuses, or if more labels than `TOLERANCE` differ; then nothing is left.
    """
    path = Path(path)
    _refuse(path, to, overwrite)
    network, shape = model.network, tuple(model.recipe.data.sampling.patch)
    program = exported(network, shape)
    description = describe(model, _channels(program))
    with _place(path, to, overwrite) as place:
        _WRITERS[to](program, json.dumps(description), place)
        if not verify:
            return None
        found = agreement(network, shape, _READERS[to](place))
        if found.changed > TOLERANCE:
            raise OutputError(
                f"The {to} file gives {found.changed:.1e} of the voxels another label than torch (allowed are "
                f"{TOLERANCE:g}), and was not kept. Export to another format, or use the model with glimpseg itself."
            )
    return found


def describe(model: Model, channels: int) -> dict[str, Any]:
    """Return all that a program needs to run the network without glimpseg, as plain values for JSON.

    Args:
        model: The model.
        channels: Number of channels of the network's output.
    """
    network = model.network
    return {
        "notice": NOT_A_DEVICE,
        "glimpseg": __version__,
        "model": {
            "name": model.name,
            "method": model.recipe.method,
            "sha256": model.provenance["sha256"][WEIGHTS],
            **({"choices": model.chosen} if model.chosen else {}),
        },
        "sequences": [modality.key for modality in Modality],
        "inputs": {
            INPUTS[0]: "prepared images in the order of sequences; an absent one may hold anything",
            INPUTS[1]: "true for each sequence that is there; at least one",
        },
        "preprocess": asdict(model.recipe.data.preprocess),
        "axes": "RAS",
        "window": list(model.recipe.data.sampling.patch),
        "overlap": WINDOW_OVERLAP,
        "weighting": "gaussian",
        "precision": "fp32",
        "labels": {label.name: int(label) for label in network.labels},
        "regions": {region.name: [label.name for label in region.value] for region in network.regions},
        "channels_of_regions": channels_of_regions(network, channels),
        "output": inspect.getdoc(type(network).forward),
        "region_probabilities": inspect.getdoc(type(network).region_probabilities),
        "decode": inspect.getdoc(type(network).decode),
    }


def channels_of_regions(network: Segmenter, channels: int) -> dict[str, list[int]]:
    """Return, for each region by name, the numbers of the output channels that its probability is made of."""
    found: dict[str, list[int]] = {region.name: [] for region in network.regions}
    for channel in range(channels):
        alone = torch.zeros((1, channels, 1, 1, 1))
        alone[:, channel] = 1
        for region, probability in network.region_probabilities(alone).items():
            if probability.any():
                found[region.name].append(channel)
    return found


def agreement(network: Segmenter, shape: tuple[int, ...], program: Program) -> Agreement:
    """Compare a written file's output with torch's on random windows, in which absent images are NaN.

    Args:
        network: The network.
        shape: Voxels of a window along each axis.
        program: The written file, run in its own runtime.
    """
    largest = changed = 0.0
    for seed in SEEDS:
        noise = torch.randn(1, len(Modality), *shape, generator=torch.Generator().manual_seed(seed))
        for subset in SUBSETS_TRIED:
            there = to_flags(subset)[None]
            image = torch.where(there[:, :, None, None, None], noise, torch.nan)
            with torch.inference_mode():
                expected = network(image, there)
                found = torch.from_numpy(np.array(program(image.numpy(), there.numpy())))
            largest = max(largest, float((found - expected).abs().max()))
            changed = max(changed, changed_labels(network, found, expected))
    return Agreement(largest, changed)


def _refuse(path: Path, to: str, overwrite: bool) -> None:
    if to not in SUFFIXES:
        raise UsageError(f"'{to}' is no format to export to. Choose of {', '.join(SUFFIXES)}.")
    if to != "pt2":
        require(to)
    if not SUFFIXES[to]:
        return  # a folder, which is refused as any other
    if path.suffix != SUFFIXES[to]:
        raise UsageError(f"A file of {to} ends in {SUFFIXES[to]}, and this is {path.name}. Name another with -o.")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists. Add --overwrite, or name another file with -o.")


def _place(path: Path, to: str, overwrite: bool) -> AbstractContextManager[Path]:
    return atomic_file(path) if SUFFIXES[to] else atomic_folder(path, overwrite=overwrite, mark=NETWORK)


def _channels(program: ExportedProgram) -> int:
    (output,) = program.graph.find_nodes(op="output")
    return int(output.args[0][0].meta["val"].shape[1])


def _write_onnx(program: ExportedProgram, description: str, place: Path) -> None:
    converted = to_onnx(program)
    converted.model.metadata_props[KEY] = description
    converted.save(place, external_data=False)


def _write_openvino(program: ExportedProgram, description: str, place: Path) -> None:
    import openvino

    model = to_openvino(program)
    model.set_rt_info(description, [KEY])
    openvino.save_model(model, place / NETWORK, compress_to_fp16=False)


def _write_pt2(program: ExportedProgram, description: str, place: Path) -> None:
    # Into memory first: torch ends the process (abort) where it writes to a disk that becomes full.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={KEY: description})
    place.write_bytes(content.getbuffer())


def _read_pt2(place: Path) -> Program:
    run = torch.export.load(place).module()
    return lambda image, available: run(torch.from_numpy(image), torch.from_numpy(available)).numpy()


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "pt2": _write_pt2}
_READERS: Mapping[str, Any] = {
    "onnx": lambda place: onnx_program(str(place)),
    "openvino": lambda place: openvino_program(str(place / NETWORK), "fp32"),
    "pt2": _read_pt2,
}
