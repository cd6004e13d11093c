"""Weights of one model as the beginning of another: what has the same role and shape is taken over."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimpseg import methods
from glimpseg.errors import ModelError
from glimpseg.method import Segmenter, by_role
from glimpseg.model import checkpoint
from glimpseg.model.checkpoint import WEIGHTS, Stored
from glimpseg.recipe import Init, Recipe

log = logging.getLogger(__name__)


WHOLE = "whole"
"""The part of a network that is all of it."""


class Transfer(NamedTuple):
    """What is taken over."""

    weights: dict[str, Tensor]
    """By the name that the network has for them; copies share one."""
    parts: dict[str, tuple[int, int]]
    """For every part of the network, tensors taken over and tensors that it has, each role counted once."""
    unlike: list[str]
    """Roles that both have in different shapes."""


def transfer(network: Segmenter, found: Stored, init: Init) -> Transfer:
    """Weights of a model that have the role and the shape of one of the network's, in the wanted parts; all or none if
    the whole is wanted."""
    if init.transfer == WHOLE:
        state = network.state_dict()
        fits = {n: v.shape for n, v in found.weights.items()} == {n: v.shape for n, v in state.items()}
        weights = dict(found.weights) if fits else {}
        return Transfer(weights, {WHOLE: (len(weights), len(state))}, [])
    given, state, roles = roles_of(found), network.state_dict(), by_role(network)
    both = [role for role in roles if role in given and _part(role) in init.parts]
    alike = {role for role in both if given[role].shape == state[roles[role][0]].shape}
    # What a norm has counted is of use only with what it has seen.
    fit = [role for role in both if role.replace("num_batches_tracked", "running_mean") in alike]
    done, of = (Counter(_part(role) for role in some) for some in (fit, roles))
    taken = {name: given[role] for role in fit for name in roles[role]}
    return Transfer(taken, {part: (done[part], of[part]) for part in of}, [role for role in both if role not in fit])


def _part(role: str) -> str:
    return role.split(".")[0]


def roles_of(found: Stored) -> Mapping[str, Tensor]:
    """A model's weights by role: a pretraining keeps them so, of a segmenter its class says it."""
    if found.recipe.backbone is not None:
        return found.weights
    with torch.device("meta"):
        network = methods.build(found.recipe)
    roles = {role: next((n for n in names if n in found.weights), None) for role, names in by_role(network).items()}
    return {role: found.weights[name] for role, name in roles.items() if name is not None}


def fitting(network: Segmenter, recipe: Recipe) -> tuple[Stored, Transfer]:
    """The model that the recipe's `init` begins with, and what of it fits.

    Raises: ModelError if there is no such model, or nothing of it fits, or not the whole that is wanted.
    """
    init = recipe.init
    assert init.weights is not None
    found = checkpoint.stored(init.weights)
    taken = transfer(network, found, init)
    if init.transfer == WHOLE and (not taken.weights or found.recipe.labels != recipe.labels):
        raise ModelError(
            f"Transfer {WHOLE} goes on with the same network, but {init.weights} is of {trained(found)} and tells "
            f"{', '.join(found.recipe.labels)} apart, this {type(network).__name__} {', '.join(recipe.labels)}, or "
            "their configurations differ. Take over encoder+decoder in its place, or begin with a recipe like its own."
        )
    if not taken.weights:
        raise ModelError(
            f"Nothing of {init.weights} fits into this {type(network).__name__}: it comes from {trained(found)}, and "
            f"of its {init.transfer} {len(taken.unlike)} tensors have the same role but another shape, the others no "
            "such role. Pretrain with this network: glimpseg pretrain voxmmsd/RECIPE --backbone METHOD/RECIPE."
        )
    return found, taken


def trained(found: Stored) -> str:
    """The method whose network it is."""
    return found.recipe.method if found.recipe.backbone is None else found.recipe.backbone.method


def begin_with(network: Segmenter, recipe: Recipe) -> dict[str, Any]:
    """Puts the weights that fit into the network, says which those are, and returns what provenance should know.

    Raises: ModelError as `fitting`.
    """
    init = recipe.init
    found, taken = fitting(network, recipe)
    source, kind = trained(found), type(network).__name__
    steps, planned = found.provenance.get("steps"), found.recipe.optim.steps
    if steps is not None and steps < planned:
        log.warning("%s is not finished: these are its weights after %d of %d steps.", init.weights, steps, planned)
    if found.recipe.data.preprocess != recipe.data.preprocess:
        log.warning(
            "%s saw studies in another preparation than this recipe's: %s, not %s.",
            init.weights, found.recipe.data.preprocess, recipe.data.preprocess,
        )  # fmt: skip
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
        "steps": steps,
        "transfer": init.transfer,
        "taken": {part: list(counts) for part, counts in taken.parts.items()},
    }
