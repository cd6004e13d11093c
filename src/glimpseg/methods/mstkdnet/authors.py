"""Import of the authors' weights of MST-KDNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from glimpseg.errors import ModelError
from glimpseg.methods.mstkdnet.config import OFFICIAL
from glimpseg.methods.mstkdnet.objective import MSTKDNet
from glimpseg.modality import Modality
from glimpseg.nets.authors import take_weights
from glimpseg.nets.positions import cubic_crop
from glimpseg.region import Label

_TRUNK = (
    (r"enter\.0", "conv1a"),
    (r"enter\.(?P<i>\d)", "ds{i}"),
    (r"stages\.0\.0\.norm(?P<n>\d)", "conv1b.gn{n}"),
    (r"stages\.0\.0\.conv(?P<n>\d)", "conv1b.conv{n}"),
    *(
        (rf"stages\.(?P<l>\d)\.{place}\.norm(?P<n>\d)", f"conv{{l}}{letter}.gn{{n}}")
        for place, letter in enumerate("abcd")
    ),
    *(
        (rf"stages\.(?P<l>\d)\.{place}\.conv(?P<n>\d)", f"conv{{l}}{letter}.conv{{n}}")
        for place, letter in enumerate("abcd")
    ),
    (r"style", "convc"),
    (r"fuse", "convco"),
    (r"narrow\.(?P<r>\d)", "up{r}conva"),
    (r"merge\.(?P<r>\d)\.norm(?P<n>\d)", "up{r}convb.gn{n}"),
    (r"merge\.(?P<r>\d)\.conv(?P<n>\d)", "up{r}convb.conv{n}"),
    (r"segment", "up1conv"),
)
_TRANSFORMER = (
    (r"embed", "embeddings.patch_embeddings"),
    (r"position", "embeddings.position_embeddings"),
    (r"layers\.(?P<i>\d+)\.attend_norm", "layer.{i}.attention_norm"),
    (r"layers\.(?P<i>\d+)\.mlp_norm", "layer.{i}.mlp_norm"),
    (r"layers\.(?P<i>\d+)\.(?P<w>query|key|value|out)", "layer.{i}.attn.{w}"),
    (r"layers\.(?P<i>\d+)\.inner", "layer.{i}.mlp.w_1"),
    (r"layers\.(?P<i>\d+)\.outer", "layer.{i}.mlp.w_2"),
)
_RAISED = (("0", "block.0.block"), ("1", "block.1.block"), ("2", "block.2"))
_CONVOLVED = (("0", "block.0.block"), ("1", "block.1"))
_DECODER = (
    (r"deepest", "decoder12_upsampler.block"),
    (r"merges\.2\.3", "decoder9_upsampler.3.block"),
    *((rf"merges\.2\.(?P<i>\d)\.{ours}", f"decoder9_upsampler.{{i}}.{theirs}") for ours, theirs in _CONVOLVED),
    *((rf"branches\.2\.0\.{ours}", f"decoder9.{theirs}") for ours, theirs in _RAISED),
    *(
        part
        for number, depth in enumerate((3, 6))
        for part in (
            (rf"merges\.{number}\.2", f"decoder{depth}_upsampler.2.block"),
            *(
                (rf"merges\.{number}\.(?P<i>\d)\.{ours}", f"decoder{depth}_upsampler.{{i}}.{theirs}")
                for ours, theirs in _CONVOLVED
            ),
            *(
                (rf"branches\.{number}\.(?P<i>\d)\.{ours}", f"decoder{depth}.{{i}}.{theirs}")
                for ours, theirs in _RAISED
            ),
        )
    ),
    *((rf"enter\.(?P<i>\d)\.{ours}", f"decoder0.{{i}}.{theirs}") for ours, theirs in _CONVOLVED),
    *((rf"leave\.(?P<i>\d)\.{ours}", f"decoder0_header.{{i}}.{theirs}") for ours, theirs in _CONVOLVED),
    (r"leave\.2", "decoder0_header.2.block"),
)
NAMES = (
    *(
        (rf"{whose}\.{place}{ours}", f"{whole}.{prefix}{theirs}")
        for whose, whole in (("student", "model_missing"), ("teacher", "model_full"))
        for place, prefix, part in (
            (r"bottleneck\.", "Unetr.transformer.", _TRANSFORMER),
            (r"bottleneck\.", "Unetr.", _DECODER),
            ("", "", _TRUNK),
        )
        for ours, theirs in part
    ),
    *((rf"discriminator\.down\.{number}", f"d_style.{2 * number}") for number in range(3)),
    (r"discriminator\.judge", "d_style.6"),
)
"""Patterns of our tensor names, and the authors' names, for `take_weights`."""
UNUSED = r".*\.num_batches_tracked|.*\.running_(mean|var)|.*encoder_norm\."
"""Pattern of the authors' tensors that no forward pass uses, theirs or ours: their network never leaves training mode.
"""
PARTS = ("model_missing", "model_full", "d_style")
"""Names of student, teacher and discriminator in the authors' checkpoint."""
ORDER = (Modality.FLAIR, Modality.T1, Modality.T1C, Modality.T2)
"""Order of the authors' channels."""


def from_authors(weights: Mapping[str, Tensor]) -> MSTKDNet:
    """Return the official network with the weights of an authors' checkpoint.

    Where teacher or discriminator are missing, only the student is loaded: it segments and cannot be trained further.

    Args:
        weights: the checkpoint's three state dicts in one, with keys like `model_missing.conv1a.weight`; or the
            student's state dict alone, with or without `model_missing.` before its keys.

    Raises: ModelError for weights that are not MST-KDNet's, that lack the student, or of other classes than BraTS 2018
        and 2020 have.
    """
    given = {re.sub(r"(^|\.)module\.", r"\1", name): value for name, value in weights.items()}
    if len(given) < len(weights):
        raise ModelError("The weights hold some tensors twice, with and without 'module.' before their names.")
    held = {part for part in PARTS if any(name.startswith(f"{part}.") for name in given)}
    if not held:
        given = {f"{PARTS[0]}.{name}": value for name, value in given.items()}
    elif PARTS[0] not in held:
        raise ModelError(f"The weights hold {', '.join(sorted(held))} but not {PARTS[0]}, the student, which segments.")
    elif held != set(PARTS):  # the student is enough to segment
        given = {name: value for name, value in given.items() if name.startswith(f"{PARTS[0]}.")}
    for part in PARTS[:2]:
        first = given.get(f"{part}.conv1a.weight")
        if first is not None and first.dim() == 5 and first.shape[1] == len(ORDER):
            given[f"{part}.conv1a.weight"] = first[:, [ORDER.index(modality) for modality in Modality]]
    table = given.get(f"{PARTS[0]}.Unetr.transformer.embeddings.position_embeddings")
    if table is None or table.dim() != 3:
        raise ModelError(
            "These are not the weights of the authors' MST-KDNet: model_missing, or the position_embeddings in it, are "
            "missing. Give the checkpoint their training wrote, or its model_missing alone."
        )
    network = MSTKDNet(replace(OFFICIAL, crop=_crop_of(table.shape[1])), (Label.NCR, Label.ED, Label.ET))
    if held != set(PARTS):
        network.drop_training_parts()
    take_weights(network, given, NAMES, UNUSED)
    return network


def _crop_of(tokens: int) -> tuple[int, int, int]:
    """Return the sides, in voxels, of the crop with this number of tokens: the released crop for 120, else a cube."""
    if tokens == 120:
        return OFFICIAL.crop
    return cubic_crop(tokens, OFFICIAL.stride)
