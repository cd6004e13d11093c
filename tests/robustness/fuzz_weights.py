"""Damaged model folders, weights and caches (safetensors, JSON, YAML); see `fuzz_files.py`."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzz_bytes import cut, flip, insert
from fuzz_trees import as_json, as_yaml, damaged_tree

DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "X9", "", "f32")
LENGTHS = (0, 1, 7, 8, 1000, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
SIZES: tuple[Any, ...] = (
    0, -4, 4, 8, 64, 1024, 4096, 10**6, 2**31, 10**15, [1], [1, 1, 1], [0, 0], [-1, 1], [1, 10**6], [10**9, 1],
    [1] * 40,
    [], 0.5, -1.0, "t1",
)  # fmt: skip
"""Values of a network's config that ask for other networks, some far too large."""
WEIGHTS, RECIPE, PROVENANCE, EXPECTATIONS = "weights.safetensors", "recipe.yaml", "provenance.json", "expectations.json"


def weights(rng: np.random.Generator, folder: Path) -> Path:
    """A model folder, a file of weights, or a cached study with its prior, whose safetensors have something wrong."""
    match int(rng.integers(5)):
        case 0 | 1 | 2:
            files = dict(_model())
            files[WEIGHTS] = _damaged(rng, files[WEIGHTS])
            return _written(folder / "model", files, vouched=rng.random() < 0.9)
        case 3:
            path = folder / "authors.safetensors"
            path.write_bytes(_damaged(rng, _model()[WEIGHTS]))
            return path
    case, prior = _cached()
    spoiled = rng.random() < 0.6
    (folder / "case.safetensors").write_bytes(_damaged(rng, case) if spoiled else case)
    (folder / "case.prior.safetensors").write_bytes(prior if spoiled else _damaged(rng, prior))
    return folder / "case.safetensors"


def model(rng: np.random.Generator, folder: Path) -> Path:
    """A model folder one of whose text files has something wrong."""
    files = dict(_model())
    name = str(rng.choice([RECIPE, RECIPE, PROVENANCE, EXPECTATIONS, EXPECTATIONS]))
    if name == RECIPE:
        tree = yaml.safe_load(files[name])
        if rng.random() < 0.3:  # a network of another size
            key = list(tree["config"])[int(rng.integers(len(tree["config"])))]
            tree["config"][key] = SIZES[int(rng.integers(len(SIZES)))]
            files[name] = yaml.safe_dump(tree).encode()
        else:
            files[name] = as_yaml(rng, damaged_tree(rng, tree))
        return _written(folder / "model", files, vouched=rng.random() < 0.95)
    if name == EXPECTATIONS:
        files[name] = as_json(rng, damaged_tree(rng, json.loads(files[name])))
        return _written(folder / "model", files, vouched=rng.random() < 0.95)
    place = _written(folder / "model", files, vouched=True)
    tree = json.loads((place / name).read_text("utf-8"))
    (place / name).write_bytes(as_json(rng, damaged_tree(rng, tree)))
    return place


@cache
def _model() -> dict[str, bytes]:
    """Return the files of a model of a very small network by name."""
    import torch

    from glimpseg import methods
    from glimpseg.model.folder import save_model
    from glimpseg.model.shipped import BOX, WEIGHTS_FOLDER

    small = {"config.width": 4, "config.blocks": [1, 1], "config.heads": 1, "config.channels_per_group": 4}
    recipe = methods.find_recipe("unet/phantom", small)
    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        save_model(Path(place) / "model", methods.build(recipe).state_dict(), recipe, {"steps": 0})
        files = {path.name: path.read_bytes() for path in sorted((Path(place) / "model").iterdir())}
    return {**files, EXPECTATIONS: (WEIGHTS_FOLDER / BOX / EXPECTATIONS).read_bytes()}


@cache
def _cached() -> tuple[bytes, bytes]:
    """Return a cache entry of a study and its prior maps."""
    from glimpseg.data.cache import CachedCase, cache_study
    from glimpseg.data.preprocess import Preprocess
    from glimpseg.data.prior_cache import write_prior
    from glimpseg.modality import Modality
    from glimpseg.study import Study
    from glimpseg.volume import Volume

    shape = (14, 16, 12)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    voxels = np.where((place**2).sum(0) < 0.7, np.random.default_rng(0).uniform(50, 100, shape), 0).astype(np.float32)
    affine = np.array([[3.0, 0, 0, -20], [0, 3.0, 0, -25], [0, 0, 3.0, -15], [0, 0, 0, 1]])
    study = Study("S1", {Modality.T1C: Volume(voxels, affine), Modality.FLAIR: Volume(voxels + 1, affine)})
    with tempfile.TemporaryDirectory() as folder:
        path = cache_study(study, Preprocess(spacing_mm=3.0), folder)
        case = CachedCase(path)
        prior = Path(folder) / "prior"
        write_prior(prior, np.zeros((2, *case.shape), np.uint8), {"study": "S1"})
        return path.read_bytes(), prior.read_bytes()


def _written(folder: Path, files: dict[str, bytes], *, vouched: bool) -> Path:
    """Write a model folder; `vouched`: its provenance has the checksums of these files, not those of the good ones."""
    folder.mkdir()
    record = json.loads(files[PROVENANCE])
    for name, content in files.items():
        (folder / name).write_bytes(content)
        if vouched and name != PROVENANCE:
            record["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / PROVENANCE).write_text(json.dumps(record), "utf-8")
    return folder


def _damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Return a safetensors file with one or two things wrong."""
    for _ in range(int(rng.integers(1, 3))):
        content = (_bytes, _length, _header, _header, _header, _header_text)[int(rng.integers(6))](rng, content)
    return content


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and data; an empty header where it cannot be read."""
    try:
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        return (header if isinstance(header, dict) else {}), content[8 + length :]
    except (ValueError, struct.error, OverflowError, RecursionError):
        return {}, content


def _joined(text: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def _bytes(rng: np.random.Generator, content: bytes) -> bytes:
    found = bytearray(content)
    (flip, cut, insert)[int(rng.integers(3))](rng, found)
    return bytes(found)


def _length(rng: np.random.Generator, content: bytes) -> bytes:
    """Return the file with another length of the header."""
    length = (
        LENGTHS[int(rng.integers(len(LENGTHS)))] if rng.random() < 0.6 else len(content) + int(rng.integers(-20, 20))
    )
    return struct.pack("<Q", max(length, 0)) + content[8:]


def _numbers(values: Any) -> list[int]:
    """Return a list of whole numbers; an empty one for anything else, as an earlier damage may have left it."""
    good = isinstance(values, list) and all(isinstance(value, int) for value in values)
    return list(values) if good else []


def _header(rng: np.random.Generator, content: bytes) -> bytes:
    """Return the file with another type, shape, place or name of a tensor."""
    header, data = _parts(content)
    names = [name for name in header if name != "__metadata__" and isinstance(header[name], dict)]
    if not names:
        return content
    name = names[int(rng.integers(len(names)))]
    tensor = header[name]
    offsets, shape = (_numbers(tensor.get(name)) for name in ("data_offsets", "shape"))
    match int(rng.integers(12)):
        case 0:
            tensor["dtype"] = str(rng.choice(DTYPES))
        case 1:
            tensor["shape"] = [int(rng.choice([-1, 0, 1, 7, 2**31, 2**62])), *shape][: len(shape) + 1]
        case 2:
            tensor["shape"] = shape[::-1] if rng.random() < 0.5 else [int(np.prod(shape, dtype=object))]
        case 3 if offsets:
            offsets[int(rng.integers(len(offsets)))] += int(rng.choice([-4, 4, 400, -400, 2**40]))
            tensor["data_offsets"] = offsets
        case 4:
            tensor["data_offsets"] = header[names[int(rng.integers(len(names)))]].get("data_offsets")  # two share bytes
        case 5:
            del header[name]
        case 6:
            header[f"{name}.more"] = dict(tensor)
        case 7:
            header[str(rng.choice(["", "x" * 5000, "a\0b", "\x1b[1m", name.upper(), f"{name} "]))] = header.pop(name)
        case 8:
            header["__metadata__"] = damaged_tree(rng, header.get("__metadata__") or {"a": "b"})
        case 9 if len(offsets) == 2:
            half = (offsets[1] - offsets[0]) // 2
            tensor |= {"dtype": "F16" if half % 2 == 0 else "U8", "data_offsets": [offsets[0], offsets[0] + half]}
            return _joined(json.dumps(header).encode(), data)
        case 10:  # NaN and infinity among the values
            begin = offsets[0] if offsets else 0
            value = [np.nan, np.inf, -np.inf, 3e38][int(rng.integers(4))]
            data = data[:begin] + struct.pack("<f", value) + data[begin + 4 :]
        case _:
            header = damaged_tree(rng, header)
    return _joined(json.dumps(header).encode("utf-8", "replace"), data)


def _header_text(rng: np.random.Generator, content: bytes) -> bytes:
    """Return the file with something wrong in the text of its header."""
    header, data = _parts(content)
    return _joined(as_json(rng, header), data)


def read_weights(path: Path) -> None:
    """Load a model folder, weights as `models import` does, or a cached study with its prior."""
    from glimpseg.data.prior_cache import open_case
    from glimpseg.model.importing import read_weights as read

    if path.is_dir():
        read_model(path)
        return
    if path.name == "authors.safetensors":
        read(path)
        return
    case = open_case(path, path.with_name("case.prior.safetensors"))
    crop = case.crop((0, 0, 0), (8, 8, 8))
    assert np.isfinite(crop.image).all(), "NaN or infinity reached the network's input"


def read_model(path: Path) -> None:
    """Load a model folder as `segment` does, and say what is expected of the model."""
    from glimpseg.modality import SUBSETS
    from glimpseg.model.loading import load_model

    found = load_model(path)
    for parameter in found.network.parameters():
        assert parameter.isfinite().all(), "NaN or infinity reached the network"
    if found.expectations is None:
        return
    json.dumps(found.expectations.as_tree(), allow_nan=False)
    for subset in SUBSETS:
        found.expectations.sentences(subset)
        found.expectations.temperatures(subset)
        found.expectations.most_helpful(subset)
