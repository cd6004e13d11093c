"""Weights of one model as the beginning of another: what has the same role and shape is taken over."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimpseg import checkpoint, methods
from glimpseg.checkpoint import WEIGHTS, Stored
from glimpseg.errors import ModelError
from glimpseg.method import Segmenter, by_role
from glimpseg.recipe import Init

log = logging.getLogger(__name__)


class Transfer(NamedTuple):
    """What is taken over."""

    weights: dict[str, Tensor]
    """By the name that the network has for them; copies share one."""
    parts: dict[str, tuple[int, int]]
    """For every part of the network, tensors taken over and tensors that it has, each role counted once."""
    unlike: list[str]
    """Roles that both have in different shapes."""


def transfer(network: Segmenter, found: Stored, init: Init) -> Transfer:
    """Weights of a model that have the role and the shape of one of the network's, in the wanted parts."""
    given = roles_of(found)
    taken: dict[str, Tensor] = {}
    parts: dict[str, tuple[int, int]] = {}
    unlike: list[str] = []
    state = network.state_dict()
    for role, names in by_role(network).items():
        part = role.split(".")[0]
        value = given.get(role) if part in init.parts else None
        fits = value is not None and value.shape == state[names[0]].shape
        if value is not None and fits:
            taken |= dict.fromkeys(names, value)
        elif value is not None:
            unlike.append(role)
        done, of = parts.get(part, (0, 0))
        parts[part] = done + fits, of + 1
    return Transfer(taken, parts, unlike)


def roles_of(found: Stored) -> Mapping[str, Tensor]:
    """A model's weights by role: a pretraining keeps them so, of a segmenter its class says it."""
    if found.recipe.backbone is not None:
        return found.weights
    with torch.device("meta"):
        network = methods.build(found.recipe)
    roles = {role: next((n for n in names if n in found.weights), None) for role, names in by_role(network).items()}
    return {role: found.weights[name] for role, name in roles.items() if name is not None}


def fitting(network: Segmenter, init: Init) -> tuple[Stored, Transfer]:
    """The model to begin with, and what of it fits.

    Raises: ModelError if there is no such model, or nothing of it fits.
    """
    assert init.weights is not None
    found = checkpoint.stored(init.weights)
    taken = transfer(network, found, init)
    if not taken.weights:
        raise ModelError(
            f"Nothing of {init.weights} fits into this {type(network).__name__}: it comes from {trained(found)}, and "
            f"of its {init.part} {len(taken.unlike)} tensors have the same role but another shape, the others no such "
            "role. Pretrain with this network: glimpseg pretrain voxmmsd/RECIPE --backbone METHOD/RECIPE."
        )
    return found, taken


def trained(found: Stored) -> str:
    """The method whose network it is."""
    return found.recipe.method if found.recipe.backbone is None else found.recipe.backbone.method


def begin_with(network: Segmenter, init: Init) -> dict[str, Any]:
    """Puts the weights that fit into the network, says which those are, and returns what provenance should know.

    Raises: ModelError as `fitting`.
    """
    found, taken = fitting(network, init)
    source, kind = trained(found), type(network).__name__
    network.load_state_dict({**network.state_dict(), **taken.weights})
    anew = sum(1 for name in network.state_dict() if name not in taken.weights)
    for part, (done, of) in taken.parts.items():
        log.info("%s: %d of %d tensors from %s (%s).", part, done, of, init.weights, source)
    if taken.unlike:
        log.warning("%d tensors have another shape here, such as %s.", len(taken.unlike), taken.unlike[0])
    log.info("%d tensors of %s begin anew.", anew, kind)
    return {
        "weights": found.provenance["sha256"][WEIGHTS],
        "of": source,
        "part": init.part,
        "taken": {part: list(counts) for part, counts in taken.parts.items()},
    }
