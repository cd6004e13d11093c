"""Time 15-subset inference of one phantom: encoded once and fused 15 times, against 15 forward passes.

    python benchmarks/sharing.py mmformer/brats2020 [--windows 4] [--fp32] [--record FILE]

Every window of the phantom's brain at the recipe's patch and half overlap; at each, the contestants run in turns, their
order rotating. Weights are as initialised: time does not depend on them. Results: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from torch import Tensor

from authors import as_authors
from glimpseg import methods
from glimpseg.cli.malloc import keep_freed_memory
from glimpseg.data.preprocess import prepare
from glimpseg.method import Segmenter
from glimpseg.modality import ALL, SUBSETS, to_flags
from glimpseg.model.backend import changed_labels
from glimpseg.phantom import generate
from glimpseg.phantom.dataset import as_study
from glimpseg.runtime.precision import resolve_precision
from glimpseg.segmentation.inference import window_boxes
from turns import Contest, tell

MASKS = [to_flags(subset)[None] for subset in SUBSETS]
EVERYTHING = to_flags(ALL)[None]


def main() -> None:
    """Measure and print. Raises: SystemExit if the results differ, or if the method shares nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--windows", type=int, help="only the first so many")
    parser.add_argument("--fp32", action="store_true", help="else bf16 where the processor has it")
    parser.add_argument("--seed", type=int, default=4, help="of the phantom")
    parser.add_argument("--record", type=Path, help="a JSON file for `results.py`")
    wanted = parser.parse_args()
    keep_freed_memory()  # as the command line does
    recipe = methods.find_recipe(wanted.recipe)
    torch.manual_seed(0)
    network = methods.build(recipe).eval()
    if not network.shares:
        raise SystemExit(f"{recipe.method} has nothing to share: 15 subsets are 15 forward passes.")
    image = torch.from_numpy(prepare(as_study(generate(wanted.seed)), recipe.data.preprocess).image)[None]
    patch = recipe.data.sampling.patch
    places = window_boxes(image.shape[2:], patch)[: wanted.windows]
    contestants: dict[str, Callable[[Segmenter, Tensor], list[Tensor]]] = {
        "shared": shared,
        "forwards": forwards,
        "released": released,
        "authors": authors,
    }
    names, largest, changed = list(contestants), 0.0, 0.0
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    precision = "fp32" if wanted.fp32 else resolve_precision("auto", torch.device("cpu"))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        contestants["shared"](network, image[:, :, *places[0]])  # warm-up
        for number, place in enumerate(places):
            found = {}
            first = number % len(names)
            for name in names[first:] + names[:first]:
                begun = time.perf_counter()
                found[name] = contestants[name](network, image[:, :, *place])
                seconds[name].append(time.perf_counter() - begun)
            for one, *others, theirs in zip(*(found[name] for name in names), strict=True):
                largest = max(largest, *(float((one - other).abs().max()) for other in others))
                changed = max(changed, changed_labels(network, theirs, one))
    if largest:
        raise SystemExit(f"The results differ, by up to {largest:g}.")
    setting = (
        f"{wanted.recipe}, {precision}, {torch.get_num_threads()} threads, {len(places)} windows of "
        f"{' x '.join(map(str, patch))}, brain box {' x '.join(map(str, image.shape[2:]))}; a round is a window"
    )
    contest = Contest(
        question=f"15 subsets of one study: {wanted.recipe}",
        setting=setting,
        unit="s",
        ours="shared",
        rounds=seconds,
        agreement=f"All probabilities are the same bits; authors gives at most {changed:.1e} of a window other labels",
    )
    tell([contest], wanted.record)


def shared(network: Segmenter, window: Tensor) -> list[Tensor]:
    """Segment all subsets with one encoding."""
    features = network.encode(window, EVERYTHING)
    return [network.fuse(features, mask) for mask in MASKS]


def forwards(network: Segmenter, window: Tensor) -> list[Tensor]:
    """Run a forward pass for each subset, which skips the encoders of absent sequences."""
    return [network(window, mask) for mask in MASKS]


def released(network: Segmenter, window: Tensor) -> list[Tensor]:
    """Run every encoder in every pass, as the authors' code does."""
    return [network.fuse(network.encode(window, EVERYTHING), mask) for mask in MASKS]


def authors(network: Segmenter, window: Tensor) -> list[Tensor]:
    """Run every encoder in the authors' order of operations: RFNet's regions from a stack of every class."""
    with as_authors():
        return released(network, window)


if __name__ == "__main__":
    main()
