"""Count the parameters and operations of a method: inference, training, and all 15 subsets shared or not.

    python benchmarks/cost.py rfnet --shapes 80 96 128

A multiply-add counts as two operations, in convolutions, linear layers and matrix products. Interpolation and
elementwise work are not counted. Nothing is computed (fake tensors). The table shows the authors'
configuration and ours.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from glimpseg.data.crops import Batch
from glimpseg.method import Progress, Segmenter
from glimpseg.modality import SUBSETS
from glimpseg.region import Label

LABELS = (Label.NCR, Label.ED, Label.ET)


def main() -> None:
    """Print the table of one method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", help="one whose module has OFFICIAL and Config")
    parser.add_argument(
        "--shapes", type=voxels, nargs="+", default=[(80,) * 3, (96,) * 3, (128,) * 3], help="80 or 160x192x128"
    )
    wanted = parser.parse_args()
    with FakeTensorMode():
        report(wanted)


def voxels(text: str) -> tuple[int, ...]:
    """Return three sides from text such as 80 or 160x192x128."""
    sides = [int(side) for side in text.split("x")]
    return tuple(sides * 3 if len(sides) == 1 else sides)


def report(wanted: argparse.Namespace) -> None:
    """Print the table."""
    module = importlib.import_module(f"glimpseg.methods.{wanted.method}")
    configs = {"authors' configuration": module.OFFICIAL, "ours": module.Config()}
    if hasattr(module, "LITE"):
        configs["lite"] = module.LITE
    for name, config in configs.items():
        network = module.METHOD(config, LABELS)  # in training mode, in which every encoder runs
        print(f"{wanted.method}, {name}: {sum(p.numel() for p in network.parameters()):,} parameters")
        for part, child in network.named_children():
            print(f"  {part:10} {sum(p.numel() for p in child.parameters()):>12,}")
        print(
            "  voxels       inference  training" + "  15 forwards  15 released  15 shared" * network.shares + "  GFLOP"
        )
        for shape in wanted.shapes:
            values = counted(network, shape) if network.shares else [*plain(network, shape)]
            print(f"  {'x'.join(map(str, shape)):11}  " + "  ".join(f"{value:9.1f}" for value in values))


def plain(network: Segmenter, shape: Sequence[int]) -> tuple[float, float]:
    """GFLOP of one window: inference, and the training losses without the backward pass."""
    image, everything = torch.empty(1, 4, *shape), torch.ones(1, 4, dtype=torch.bool)
    return gflop(lambda: network(image, everything)), gflop(lambda: every_loss(network, shape))


def every_loss(network: Segmenter, shape: Sequence[int]) -> object:
    """Loss terms of one crop."""
    labels = torch.zeros(1, 5, *shape, dtype=torch.int64)
    batch = Batch(torch.empty(1, 4, *shape), torch.ones(1, 4, dtype=torch.bool), labels[:, 0], ["none"], labels[:, 1:])
    return network.losses(batch, Progress(1, 1))


def counted(network: Any, shape: Sequence[int]) -> list[float]:
    """GFLOP of one window: inference with all modalities, training outputs; then 15 subsets: as 15 forwards (absent
    encoders skipped), as the released code (all encoders each time), and encoded once."""
    image = torch.empty(1, 4, *shape)
    everything = torch.ones(1, 4, dtype=torch.bool)
    encoding = gflop(lambda: network.encode(image, everything))
    features = network.encode(image, everything)
    fusing = gflop(lambda: network.fuse(features, everything))
    if hasattr(network, "maps"):
        training = gflop(lambda: network.maps(image, everything, everything))
    else:
        training = gflop(lambda: every_loss(network, shape))
    n, passes = len(SUBSETS), sum(map(len, SUBSETS)) / 4  # each modality costs a quarter of the encoding
    return [encoding + fusing, training, passes * encoding + n * fusing, n * (encoding + fusing), encoding + n * fusing]


def gflop(work: Callable[[], object]) -> float:
    """GFLOP of one call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    main()
