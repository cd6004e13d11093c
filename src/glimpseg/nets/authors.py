"""Weights of the papers' authors, loaded into our networks by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from glimpseg.errors import ModelError


def take_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    names: Sequence[tuple[str, str]],
    unused: str = r"(?!)",
) -> None:
    """Load an authors' state dict into our network.

    Args:
        network: Our network; its weights are replaced.
        weights: The authors' tensors; their names may begin with `module.`.
        names: Pairs of a pattern of our names and a template of the authors' names. Groups of the pattern fill the
            template: `m` is our key of a modality (`t1c` becomes `t1ce`), `l` a level from 0 (1 is added), `r` a
            convolution of a residual block from 0 (2 is added), others are copied.
        unused: Pattern of the authors' names that nothing needs. Default: none.

    Raises: ModelError if a tensor is missing, left over, given with and without `module.`, of another shape (sides of
        length 1 aside), not of floating-point numbers (a batch norm's counter aside), or not finite.
    """
    given = {name.removeprefix("module."): value for name, value in weights.items()}
    if len(given) < len(weights):
        raise ModelError("The weights hold some tensors twice, with and without 'module.' before their names.")
    wanted = {own: authors_name(own, names) for own in network.state_dict()}
    missing = sorted(set(wanted.values()) - set(given))
    extra = sorted(name for name in set(given) - set(wanted.values()) if not re.match(unused, name))
    kind = type(network).__name__
    if missing or extra:
        raise ModelError(
            f"These are not the weights of the authors' {kind}: {len(missing)} tensors are missing"
            f"{f' (such as {missing[0]})' if missing else ''}, {len(extra)} are unknown"
            f"{f' (such as {extra[0]})' if extra else ''}. Give the checkpoint their training wrote."
        )
    state = network.state_dict()
    for own, theirs in wanted.items():
        value, shape = given[theirs], state[own].shape
        if value.numel() != shape.numel() or value.squeeze().shape != state[own].squeeze().shape:
            raise ModelError(
                f"The authors' tensor {theirs} should be {tuple(shape)}, not {tuple(value.shape)}. "
                f"Was this {kind} trained with other classes or another size?"
            )
        kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        counts = not state[own].is_floating_point()  # number of batches that a batch norm has seen
        if value.dtype not in kinds and not (counts and value.dtype == torch.int64):
            raise ModelError(f"The authors' tensor {theirs} should hold floating-point numbers, not {value.dtype}.")
        if not torch.isfinite(value).all():
            raise ModelError(f"The authors' tensor {theirs} holds values that are not finite. Copy the file again.")
        state[own] = value.reshape(shape).to(state[own].dtype)
    network.load_state_dict(state)


def authors_name(own: str, names: Sequence[tuple[str, str]]) -> str:
    """Return the authors' name of one of our tensors, by the first pattern that fits; `names` as in `take_weights`."""
    for pattern, template in names:
        match = re.match(pattern + r"(?=\.|$)", own)
        if match:
            words = match.groupdict()
            words |= {key: str(int(words[key]) + add) for key, add in (("l", 1), ("r", 2)) if key in words}
            words |= {"m": words["m"].replace("t1c", "t1ce")} if "m" in words else {}
            return template.format(**words) + own[match.end() :]
    raise AssertionError(f"no authors' name for {own}")
