"""Initial weights of a network, taken from another model where role and shape agree."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from glimpseg.errors import ModelError
from glimpseg.method import Learner, Segmenter, names_by_role
from glimpseg.model.folder import WEIGHTS, StoredModel
from glimpseg.model.loading import stored_model
from glimpseg.model.outline import outline
from glimpseg.recipe import Init, Recipe

log = logging.getLogger(__name__)

WHOLE = "whole"
"""Value of `init.transfer` for the whole network, heads included."""


class Transfer(NamedTuple):
    """Weights that a network takes from another model, with counts of what was taken."""

    weights: dict[str, Tensor]
    """Tensors by the name that the new network has for them; copies in the network share one tensor."""
    parts: dict[str, tuple[int, int]]
    """For every part of the network, the number of tensors taken, and the number that it has; each role is counted
    once."""
    unlike: list[str]
    """Roles in the parts asked for that both models have and that were not taken, because shapes differ."""


def transfer(network: Segmenter, source: StoredModel, init: Init) -> Transfer:
    """Return the weights of `source` that fit into a network.

    Args:
        network: The network to initialise; it is not changed.
        source: The model whose weights are taken.
        init: `init.transfer` names the parts. For `whole` all weights have to fit in name and shape, else none is
            taken; for a part, the tensors of the same role and shape are taken.
    """
    if init.transfer == WHOLE:
        state = network.state_dict()
        fits = {n: v.shape for n, v in source.weights.items()} == {n: v.shape for n, v in state.items()}
        weights = dict(source.weights) if fits else {}
        return Transfer(weights, {WHOLE: (len(weights), len(state))}, [])
    given, state, roles = weights_by_role(source), network.state_dict(), names_by_role(network)
    both = [role for role in roles if role in given and _part(role) in init.parts]
    alike = {role for role in both if given[role].shape == state[roles[role][0]].shape}
    # The count of batches is of use only together with the statistics of those batches.
    fit = [role for role in both if role.replace("num_batches_tracked", "running_mean") in alike]
    taken, of = (Counter(_part(role) for role in some) for some in (fit, roles))
    weights = {name: given[role] for role in fit for name in roles[role]}
    return Transfer(weights, {part: (taken[part], of[part]) for part in of}, [role for role in both if role not in fit])


def _part(role: str) -> str:
    return role.split(".")[0]


def weights_by_role(source: StoredModel) -> Mapping[str, Tensor]:
    """Return the pretrainable weights of a model by role (`method.names_by_role`).

    A pretraining stores its weights by role. For a segmenter, one weight stands for all copies of a role.
    """
    if source.recipe.backbone is not None:
        return source.weights
    network = outline(source.recipe)
    assert isinstance(network, Segmenter), "only a pretraining does not segment"
    stored = {role: [n for n in names if n in source.weights] for role, names in names_by_role(network).items()}
    return {role: source.weights[names[0]] for role, names in stored.items() if names}


def find_initial_weights(network: Segmenter, recipe: Recipe) -> tuple[StoredModel, Transfer]:
    """Load the model that the recipe's `init.weights` names, and return it with its weights that fit the network.

    Raises: ModelError if there is no such model, if none of its weights fits, or if `init.transfer` is `whole` and not
        all fit or the labels differ.
    """
    init = recipe.init
    assert init.weights is not None
    source = stored_model(init.weights)
    taken = transfer(network, source, init)
    kind, trained = type(network).__name__, source.trained_method
    if init.transfer == WHOLE and (not taken.weights or source.recipe.labels != recipe.labels):
        raise ModelError(
            f"Transfer {WHOLE} goes on with the same network, but {init.weights} is of {trained} and tells "
            f"{', '.join(source.recipe.labels)} apart, this {kind} {', '.join(recipe.labels)}, or "
            "their configurations differ. Take over encoder+decoder in its place, or begin with a recipe like its own."
        )
    if not taken.weights:
        raise ModelError(
            f"Nothing of {init.weights} fits into this {kind}: it comes from {trained}, and "
            f"of its {init.transfer} {len(taken.unlike)} tensors have the same role but another shape, the others no "
            "such role. Pretrain with this network: glimpseg pretrain voxmmsd/RECIPE --backbone METHOD/RECIPE."
        )
    return source, taken


def initialise(network: Learner, recipe: Recipe) -> dict[str, Any]:
    """Put the initial weights that the recipe's `init` names into the network, and log what was taken.

    All other weights keep their random values. A warning is logged if the other model is not finished or had another
    preprocessing.

    Returns: The field `init` of the provenance.

    Raises: ModelError as `find_initial_weights`.
    """
    assert isinstance(network, Segmenter), "a pretraining begins with random weights"
    init = recipe.init
    source, taken = find_initial_weights(network, recipe)
    steps, planned = source.provenance.get("steps"), source.recipe.optim.steps
    if steps is not None and steps < planned:
        log.warning("%s is not finished: these are its weights after %d of %d steps.", init.weights, steps, planned)
    if source.recipe.data.preprocess != recipe.data.preprocess:
        log.warning(
            "%s was trained with another preprocessing than this recipe has: %s, not %s.",
            init.weights, source.recipe.data.preprocess, recipe.data.preprocess,
        )  # fmt: skip
    network.load_state_dict({**network.state_dict(), **taken.weights})
    random = sum(1 for name in network.state_dict() if name not in taken.weights)
    origin = f"{init.weights} ({source.trained_method})"
    for part, (count, of) in taken.parts.items():
        log.info("%s: %s tensors from %s.", part, f"{count} of {of}", origin)
    if taken.unlike:
        log.warning("%d tensors have another shape here, such as %s.", len(taken.unlike), taken.unlike[0])
    log.info("%d tensors of %s begin with random values.", random, type(network).__name__)
    return {
        "weights": source.provenance["sha256"][WEIGHTS],
        "of": source.trained_method,
        "steps": steps,
        "transfer": init.transfer,
        "taken": {part: list(counts) for part, counts in taken.parts.items()},
    }
