"""Makes one model of two mmFormers that were trained apart, which segments as SMML does: by the mean of their logits.

    python scripts/average_mmformers.py RUN RUN -o MODEL

The control for SMML: the same networks and the same cost, without a word between the two.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from glimpseg import methods
from glimpseg.methods import smml
from glimpseg.model import checkpoint


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=2)
    parser.add_argument("-o", "--output", type=Path, required=True)
    wanted = parser.parse_args()
    models = [checkpoint.load(run) for run in wanted.runs]
    recipes = [replace(model.recipe, seed=0) for model in models]
    if recipes[0] != recipes[1] or recipes[0].method != "mmformer":
        parser.error("two runs of mmformer whose recipes differ in nothing but the seed are needed")
    config = smml.Config(network=recipes[0].config, pixel=0, feature=0, refinement=0, agreement=0, nodes="samples")
    recipe = replace(recipes[0], method="smml", config=config, seed=models[0].recipe.seed)
    network = methods.build(recipe)
    for branch, model in zip(network.branches, models, strict=True):
        branch.load_state_dict(model.network.network.state_dict())
    record = {"averaged": [model.name for model in models], "steps": models[0].provenance.get("steps")}
    checkpoint.save(wanted.output, network.state_dict(), recipe, record)
    print(wanted.output)


if __name__ == "__main__":
    main()
