"""Pre-flight checks of a recipe, made before a training writes anything."""

from __future__ import annotations

from pathlib import Path

from glimpseg.errors import UsageError
from glimpseg.method import Segmenter
from glimpseg.model.checkpoint import newest_valid
from glimpseg.model.outline import outline
from glimpseg.model.transfer import find_initial_weights
from glimpseg.priors.making import refuse_unready
from glimpseg.recipe import Recipe


def refuse_unfit(recipe: Recipe) -> None:
    """Raise UsageError if the method cannot use the recipe's crops or prior, or if the prior cannot be made here.

    A method cannot use the recipe's prior if it needs one and the recipe has none, or the other way round. The prior
    cannot be made if its weights or the package for them are not there.
    """
    learner = outline(recipe)
    patch, kind = recipe.data.sampling.patch, recipe.data.prior.kind
    stride, smallest = learner.stride, learner.smallest
    if any(side % stride or side < smallest for side in patch):
        raise UsageError(
            f"data.sampling.patch is {'x'.join(map(str, patch))}, but this {recipe.method} takes crops whose sides "
            f"are multiples of {stride} and at least {smallest}. Change it with --set data.sampling.patch=[...]."
        )
    if learner.needs_prior and kind == "none":
        raise UsageError(
            f"This {recipe.method} learns from a prior and the recipe has none. Set data.prior.kind (and "
            "data.prior.weights for sam), or config.refinement and config.agreement to 0."
        )
    if kind != "none" and not learner.needs_prior:
        raise UsageError(f"This {recipe.method} does not use the prior {kind}. Set data.prior.kind to none.")
    refuse_unready(recipe.data.prior)


def refuse_unfit_weights(recipe: Recipe, run: Path) -> None:
    """Raise UsageError or ModelError if a new run cannot begin with the weights that the recipe's `init` names.

    A run that has a checkpoint, and a recipe without initial weights, are not checked.
    """
    if recipe.init.weights is None or newest_valid(run) is not None:
        return
    learner = outline(recipe)
    if not isinstance(learner, Segmenter):
        raise UsageError(f"This {recipe.method} is pretraining, which begins with random weights. Leave init out.")
    find_initial_weights(learner, recipe)
