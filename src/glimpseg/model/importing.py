"""Import of weights that other code wrote (the verb `models`), without running any of that code."""

from __future__ import annotations

import logging
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glimpseg import methods
from glimpseg.errors import ModelError, UsageError
from glimpseg.model.digests import sha256_of
from glimpseg.model.folder import PROVENANCE, refuse_not_finite, save_model
from glimpseg.runtime.atomic import refuse_if_used
from glimpseg.runtime.sandbox import SPARE_BYTES, SandboxError, confine, run_sandboxed
from glimpseg.runtime.temporary import temporary_folder

log = logging.getLogger(__name__)

READING_SECONDS = 600
"""Seconds after which the reading process is stopped."""


def import_model(
    method: str, sources: str | Path | Sequence[str | Path], output: str | Path, *, overwrite: bool = False
) -> Path:
    """Write a model folder from the checkpoint of a paper's authors, and return the folder.

    A pickle is read weights-only, in a process of its own with limited memory and time; a safetensors file directly.

    Args:
        method: Name of the method.
        sources: Checkpoint, or the several checkpoints of one training that a model of some methods needs. Each is a
            state dict, or a dictionary that holds one.
        output: The model folder to write.
        overwrite: Replace a model in `output`.

    Raises: UsageError for a method without authors' weights, another number of checkpoints than the method needs, or a
        used folder; ModelError for an unknown method, a missing file, or a file of other content; OutputError when the
        disk refuses.
    """
    paths = [Path(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]
    output = Path(output)
    module = methods.authors_module(method)
    if module is None:
        able = [name for name in methods.names() if methods.authors_module(name)]
        raise UsageError(f"No weights of others fit the method '{method}'. Those of {', '.join(able)} can be imported.")
    count = getattr(module, "CHECKPOINTS", 1)
    if len(paths) != count:
        raise UsageError(f"A model of {method} is made of {count} checkpoints of one training, not of {len(paths)}.")
    for path in paths:
        if not path.is_file():
            raise ModelError(f"{path} is not a file. Give the checkpoint that the authors' training wrote.")
    refuse_if_used(output, overwrite=overwrite, mark=PROVENANCE)
    digests = [sha256_of(path) for path in paths]
    if count == 1:
        weights = read_weights(paths[0])
    else:  # numbered, so that names do not clash
        weights = {f"{n}.{key}": v for n, path in enumerate(paths, 1) for key, v in read_weights(path).items()}
    network = module.from_authors(weights)
    record = {"imported": {"file": ", ".join(path.name for path in paths), "sha256": ", ".join(digests)}}
    save_model(output, network.kept, module.authors_recipe(network), record)
    return output


def read_weights(source: Path) -> dict[str, Tensor]:
    """Return the tensors of the state dict in a file that other code wrote.

    Raises: ModelError if it cannot be read, or holds NaN or infinite values.
    """
    weights = _tensors_of(source)
    refuse_not_finite(weights, source)
    return weights


def _tensors_of(source: Path) -> dict[str, Tensor]:
    if source.suffix.lower() == ".safetensors":
        try:
            return load_file(source)
        except SafetensorError as error:
            raise ModelError(f"{source} is not a whole safetensors file ({error}). Copy it again.") from error
    with temporary_folder() as folder:
        target = folder / "weights.safetensors"
        try:
            run_sandboxed(__name__, [source, target], seconds=READING_SECONDS)
        except SandboxError as error:
            raise ModelError(
                f"{source} cannot be read as weights ({error}). Nothing in it was run. Give a checkpoint that holds "
                "tensors and plain values only."
            ) from error
        return load_file(target)


def state_dict(tree: Any) -> dict[str, Tensor]:
    """Return the state dict in the content of a checkpoint.

    It is looked for at the top, under the usual names (`state_dict`, `model` ...), or as several under other names.
    Several are merged, with their names as prefixes. Raises: ValueError if there is none.
    """
    for name in ("state_dict", "model_state_dict", "model", "network_weights"):
        if isinstance(tree, Mapping) and isinstance(tree.get(name), Mapping):
            tree = tree[name]
            break
    if not _is_state_dict(tree) and isinstance(tree, Mapping):
        several = {name: part for name, part in tree.items() if _is_state_dict(part)}
        tree = {f"{name}.{key}": value for name, part in several.items() for key, value in part.items()}
    if not _is_state_dict(tree):
        raise ValueError("it holds no state dict")
    return {str(name): value.detach().clone().contiguous() for name, value in tree.items()}


def _is_state_dict(tree: Any) -> bool:
    return isinstance(tree, Mapping) and bool(tree) and all(isinstance(value, Tensor) for value in tree.values())


def _read(source: Path, target: Path) -> None:
    """Read a checkpoint and write its tensors to `target`; runs in the reading process.

    If the checkpoint cannot be read, the process exits with the reason on stderr.
    """
    import torch

    confine(SPARE_BYTES + 3 * source.stat().st_size)
    try:
        with torch.serialization.safe_globals(_numbers()):
            tree = torch.load(source, map_location="cpu", weights_only=True)
        save_file(state_dict(tree), target)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        sys.exit(f"it asks for {found[1]}" if found else "it is no checkpoint of torch, or not a whole one")
    except (RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        sys.exit(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _numbers() -> list[Any]:
    """Return the globals that a pickled number of numpy names. The authors' schedulers store a learning rate so."""
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)
    return [*((scalar, name) for name in names), np.dtype, *(type(np.dtype(kind)) for kind in kinds)]


if __name__ == "__main__":
    _read(Path(sys.argv[1]), Path(sys.argv[2]))
