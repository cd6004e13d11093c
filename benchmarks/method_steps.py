"""Time and peak memory of a training step of five methods, against the order of the authors' code.

    python benchmarks/method_steps.py [--methods rfnet mmformer smml unet voxunet] [--steps 3] [--repeat 2]
        [--record FILE]

Each form runs in a process of its own, in turns, on the same network, crop and draws:

- bf16: the step of `glimpseg train` where the processor computes bf16, as the command line sets up memory.
- fp32: the same in fp32.
- authors: fp32, in the order of the released codes, with our terms: the modalities one after the other through the
  decoder they share, RFNet's regions as a stack of every modality's features times every class, losses class by class,
  an optimiser that takes one tensor after the other; of SMML one backward for each branch, the first with its graph
  kept, and an optimiser for each. nnU-Net, for `unet`, and the code of `voxunet` compute in fp32 on a processor and
  order nothing else differently.

SMML is trained without priors here. The gradients of fp32 and authors are compared before anything is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

from glimpseg.cli.malloc import keep_freed_memory
from turns import Contest, add_options, furthest, in_processes, steps_of, tell

FORMS = ("bf16", "fp32", "authors")
GIB = 2**30


class Setting(NamedTuple):
    """Setting of one method's measurement."""

    side: int
    """Side of the crop, in voxels."""
    config: dict[str, Any]
    """Changes of the recipe's network. No dropout: its draws would differ from form to form."""


SETTINGS = {
    "rfnet": Setting(80, {}),
    "mmformer": Setting(96, {"config.dropout": 0, "config.crop": [96, 96, 96]}),
    "smml": Setting(
        64,
        {
            "config.network.dropout": 0,
            "config.network.crop": [64, 64, 64],
            "config.refinement": 0,
            "config.agreement": 0,
        },
    ),
    "unet": Setting(96, {}),
    "voxunet": Setting(96, {}),
}


def main() -> None:
    """Measure and print. Raises: SystemExit if the gradients differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=3)
    add_options(parser, repeat=2)
    parser.add_argument("--share", nargs=2, metavar=("METHOD", "FORM"), help="one process's share of the work")
    wanted = parser.parse_args()
    if wanted.share:
        method, form = wanted.share
        print(json.dumps(run(method, form, wanted.steps)))
        return
    tell([contest for method in wanted.methods for contest in contests(method, wanted)], wanted.record)


def contests(method: str, wanted: argparse.Namespace) -> list[Contest]:
    """Contests of one method. Raises: SystemExit if the forms do not compute the same."""
    found = in_processes(FORMS, wanted.repeat, ["--share", method])
    worst = furthest(*(found[form][0]["gradients"] for form in ("fp32", "authors")), 1e-3)
    still = found["fp32"][0]["still"]
    rows = (
        ("seconds", "s", "a training step", 0.0),
        ("peak", "GiB", "most memory held", 0.0),
        ("peak", "GiB", "most memory held, beside program, network, gradients and moments", still),
    )
    setting = (
        f"The network of {method}/brats, a crop of {SETTINGS[method].side}^3, {wanted.steps} steps in each process"
    )
    agreement = f"Norms of the first step's gradients, fp32 and authors, differ by at most {worst:.1e}"
    return steps_of(method, setting, "fp32", found, rows, agreement)


def run(method: str, form: str, steps: int) -> dict[str, Any]:
    """Measurement in one process: the median step's seconds without the first, and its peak."""
    if form != "authors":
        keep_freed_memory()  # as the command line does
    import torch

    from authors import as_authors
    from glimpseg import methods
    from glimpseg.data.crops import Batch
    from glimpseg.method import Progress
    from glimpseg.runtime.precision import precision_context

    torch.manual_seed(0)
    recipe = methods.find_recipe(f"{method}/brats", SETTINGS[method].config)
    network = methods.build(recipe)
    side = (SETTINGS[method].side,) * 3
    batch = Batch(
        image=torch.randn(1, 4, *side),
        available=torch.ones(1, 4, dtype=torch.bool),
        target=torch.randint(0, 4, (1, *side)),
        study=("benchmark",),
    )
    parts = [*network.branches] if form == "authors" and method == "smml" else [network]
    fused = {"foreach": False} if form == "authors" else {"fused": True}
    optimizers = [torch.optim.Adam(part.parameters(), 2e-4, weight_decay=1e-4, amsgrad=True, **fused) for part in parts]
    device, progress = torch.device("cpu"), Progress(10_000, 20_000)
    still = (held() + 4 * 4 * sum(p.numel() for p in network.parameters())) / GIB  # beside: gradients, three moments
    seconds, norms = [], []
    for number in range(steps):
        torch.manual_seed(number)
        begun = time.perf_counter()
        order = as_authors() if form == "authors" else nullcontext()
        with order, precision_context("bf16" if form == "bf16" else "fp32", device):
            losses = by_branch(network, batch, progress) if len(parts) > 1 else network.losses(batch, progress)
        if len(parts) > 1:
            norms.append(one_after_the_other(losses, parts, optimizers))
        else:
            sum(losses.values(), torch.zeros(())).backward()
            norms.append(norm(network))
            optimizers[0].step()
            optimizers[0].zero_grad()
        seconds.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    return {"gradients": norms[:1], "seconds": statistics.median(seconds[1:]), "peak": peak, "still": still}


def by_branch(network: Any, batch: Any, progress: Any) -> list[Any]:
    """SMML's losses, one sum for each branch."""
    from glimpseg.losses import one_hot
    from glimpseg.methods.smml.objective import two_subsets

    target = one_hot(batch.target, network.labels)
    subsets = two_subsets(batch.available)
    outputs = [network.output(b, batch, seen, target) for b, seen in zip(network.branches, subsets, strict=True)]
    late = progress.fraction >= network.config.start
    return [
        sum(network.terms(number, own, peer.detached(), batch=batch, target=target, late=late).values())
        for number, (own, peer) in enumerate((outputs, outputs[::-1]))
    ]


def one_after_the_other(losses: Sequence[Any], parts: Sequence[Any], optimizers: Sequence[Any]) -> float:
    """A backward and a step for each branch, the first with its graph kept; the norm of all gradients."""
    squares = 0.0
    for number, (loss, part, optimizer) in enumerate(zip(losses, parts, optimizers, strict=True)):
        optimizer.zero_grad()
        loss.backward(retain_graph=number == 0)
        squares += norm(part) ** 2
        optimizer.step()
    return squares**0.5


def norm(network: Any) -> float:
    """Norm of all gradients."""
    return sum(float(p.grad.double().square().sum()) for p in network.parameters() if p.grad is not None) ** 0.5


def held() -> int:
    """Bytes that this process holds."""
    with open("/proc/self/statm", encoding="ascii") as about:
        return int(about.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
