"""What of a pretraining fits into each method, as the table of docs/methods/voxmmsd.md.

python scripts/transfers.py
"""

from __future__ import annotations

from pathlib import Path

import torch

from glimpseg import methods
from glimpseg.method import Segmenter
from glimpseg.model.checkpoint import Stored
from glimpseg.model.transfer import transfer
from glimpseg.recipe import Init


def main() -> None:
    """Every backbone into every method, at the size of the recipes `phantom`, where something fits."""
    segmenters = [name for name in methods.names() if issubclass(methods.module(name).METHOD, Segmenter)]
    for backbone in segmenters:
        recipe = methods.find_recipe("voxmmsd/phantom", backbone=f"{backbone}/phantom")
        with torch.device("meta"):
            found = Stored(methods.build(recipe).kept, recipe, {}, Path())
        for name in segmenters:
            with torch.device("meta"):
                network = methods.build(methods.find_recipe(f"{name}/phantom"))
            cells = []
            for part in ("encoder", "encoder+decoder"):
                taken = transfer(network, found, Init(transfer=part))
                done, of = (sum(counts[place] for counts in taken.parts.values()) for place in (0, 1))
                cells.append(f"{done} of {of}")
            if cells[1].split()[0] != "0":
                print(f"| `{backbone}` | `{name}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
