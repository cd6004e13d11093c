"""Time and peak memory of MST-KDNet's training step: one backward of the sum, against the authors' alternating ones.

    python benchmarks/training_step.py [--config LITE] [--shape 96x96x96] [--steps 3] [--repeat 2] [--record FILE]

Each form runs in a process of its own, in turns, on the same network, crop and seeds, in fp32:

- summed: the loop of `glimpseg train`: one sum, one backward, one optimiser, then nothing is left of the graph.
- alternating: the student's and teacher's terms backward with the graph kept, the adversary's through the same graph,
  then the discriminator's; two optimisers, the second made anew; the outputs stay until the next forward pass.

The gradients of the first step are compared before anything is printed. Results: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from glimpseg.method import blanked
from glimpseg.methods import mstkdnet
from glimpseg.methods.mstkdnet.objective import MSTKDNet, label_maps
from glimpseg.region import Label
from turns import add_options, furthest, in_processes, steps_of, tell

GIB = 2**30
SEEN = torch.tensor([[False, True, False, True]])
ALL = torch.ones(1, 4, dtype=torch.bool)


def main() -> None:
    """Measure and print. Raises: SystemExit if the gradients differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=["Config", "LITE"], default="Config")
    parser.add_argument("--shape", default="96x96x96")
    parser.add_argument("--steps", type=int, default=3)
    add_options(parser, repeat=2)
    parser.add_argument("--form", choices=["summed", "alternating"], help="one process's share of the work")
    wanted = parser.parse_args()
    if wanted.form:
        print(json.dumps(run(wanted)))
        return
    found = in_processes(("summed", "alternating"), wanted.repeat, ["--form"])
    worst = furthest(*(found[form][0]["gradients"] for form in found), 1e-3)
    still = found["summed"][0]["still"]
    rows = (
        ("seconds", "s", "a training step", 0.0),
        ("peak", "GiB", "most memory held", 0.0),
        ("peak", "GiB", "most memory held, beside weights, gradients and moments", still),
        ("held", "GiB", "memory held after a step, beside weights, gradients and moments", still),
    )
    setting = f"{wanted.config}, a crop of {wanted.shape}, fp32, {wanted.steps} steps in each process"
    agreement = f"Norms of the first step's gradients differ by at most {worst:.1e}"
    tell(steps_of("MST-KDNet", setting, "summed", found, rows, agreement), wanted.record)


def run(wanted: argparse.Namespace) -> dict[str, Any]:
    """Measurement in one process: the median step's seconds without the first, the peak, and what is held."""
    torch.manual_seed(0)
    crop = tuple(int(side) for side in wanted.shape.split("x"))
    config = mstkdnet.LITE if wanted.config == "LITE" else mstkdnet.Config()
    network = MSTKDNet(replace(config, crop=crop), (Label.NCR, Label.ED, Label.ET))
    image = torch.rand(1, 4, *crop)
    target = label_maps(torch.randint(0, 4, (1, *crop)), network.labels)
    steps = {"summed": summed, "alternating": alternating}[wanted.form](network, image, target)
    seconds, held = [], []
    for _ in range(wanted.steps):
        begun = time.perf_counter()
        gradients = next(steps)
        seconds.append(time.perf_counter() - begun)
        held.append(rss())
        first = gradients if len(seconds) == 1 else first
    parameters = sum(p.numel() for p in network.parameters())
    return {
        "gradients": first,
        "seconds": statistics.median(seconds[1:]),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        "held": held[-1],
        "still": 4 * 4 * parameters / GIB,  # weights, gradients and Adam's two moments
    }


def summed(network: MSTKDNet, image: Tensor, target: Tensor) -> Iterator[list[float]]:
    """Steps as `training.loop.fit` takes them."""
    groups = network.parameter_groups()
    optimizer = torch.optim.Adam([{**group, "lr": 1e-4} for group in groups], fused=True)
    while True:
        torch.manual_seed(1)
        seen, complete = shown(network, image), torch.ones(1, dtype=torch.bool)
        terms = network.terms(*seen, target, complete, 0.5) | network.adversaries(*seen, complete)
        del seen
        sum(terms.values(), torch.zeros(())).backward()
        norms = measured(network)
        optimizer.step()
        optimizer.zero_grad()
        yield norms


def alternating(network: MSTKDNet, image: Tensor, target: Tensor) -> Iterator[list[float]]:
    """Steps in the order of the released code; the terms themselves are ours, so that only the order differs."""
    both, judge = [*network.student.parameters(), *network.teacher.parameters()], network.discriminator
    optimizer = torch.optim.Adam(both, lr=1e-4, fused=True)
    while True:
        torch.manual_seed(1)
        optimizer.zero_grad()
        teacher, student = shown(network, image)
        terms = network.terms(teacher, student, target, torch.ones(1, dtype=torch.bool), 0.5)
        loss = sum(terms.values(), torch.zeros(()))
        loss.backward(retain_graph=True)
        judge.requires_grad_(False)
        adversary = network.config.adversary * binary_cross_entropy_with_logits(judge(student.style), torch.zeros(1))
        adversary.backward(retain_graph=True)
        judge.requires_grad_(True)
        judges_own = torch.optim.Adam(judge.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)
        judges_own.zero_grad()
        for style, label in ((teacher.style, 0.0), (student.style, 1.0)):
            binary_cross_entropy_with_logits(judge(style.detach()), torch.full((1,), label)).backward()
        norms = measured(network)
        optimizer.step()
        judges_own.step()
        yield norms


def shown(network: MSTKDNet, image: Tensor) -> tuple[Any, Any]:
    """Outputs of the teacher from all sequences and of the student from two."""
    return network.teacher(blanked(image, ALL), True), network.student(blanked(image, SEEN), True)


def measured(network: nn.Module) -> list[float]:
    """Norms of the gradients of the three networks."""
    return [
        float(torch.stack([p.grad.double().norm() for p in part.parameters() if p.grad is not None]).norm())
        for part in network.children()
    ]


def rss() -> float:
    """Memory of this process, in GiB."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / GIB


if __name__ == "__main__":
    main()
