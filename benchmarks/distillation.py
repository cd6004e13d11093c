"""Time and memory of MST-KDNet's attention distillation: whole matrices at once, against some rows at a time.

    python benchmarks/distillation.py [--tokens 120 512 960] [--layers 4] [--heads 12] [--repeat 3] [--record FILE]

Each form runs in a process of its own, in turns, on the same matrices of teacher and student, forward and backward, in
fp32. The released crop has 120 tokens, few enough for whole matrices. The number of tokens grows with the crop's
volume, and the size of the matrices with its square. The second form is `attention_distance` as it is; the first has no
limit to what it compares at once.

The distance and the gradients' norm are compared before anything is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from torch import Tensor

from glimpseg.methods.mstkdnet import objective
from glimpseg.methods.mstkdnet.network import NetworkOutput
from turns import Contest, add_options, furthest, in_processes, steps_of, tell

LEAST = 2**-10
"""Smallest difference of memory that counts, in GiB: one page."""
FORMS = ("in rows", "at once")


def main() -> None:
    """Measure and print. Raises: SystemExit if the forms do not compute the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[120, 512, 960])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=12)
    add_options(parser, repeat=3)
    parser.add_argument("--form", choices=FORMS, help="one process's share of the work, at the first count of tokens")
    wanted = parser.parse_args()
    if wanted.form:
        print(json.dumps(run(wanted)))
        return
    contests = [contest for tokens in wanted.tokens for contest in compared(wanted, tokens)]
    tell(contests, wanted.record)


def compared(wanted: argparse.Namespace, tokens: int) -> list[Contest]:
    """Time and memory of both forms."""
    found = in_processes(FORMS, wanted.repeat, ["--tokens", str(tokens), "--form"])
    measured = [[found[form][0][what] for what in ("distance", "gradient")] for form in FORMS]
    worst = furthest(*measured, 1e-4)
    setting = f"{wanted.layers} layers of {wanted.heads} heads, two networks, fp32, {wanted.repeat} processes each"
    rows = (
        ("seconds", "s", "forward and backward", 0.0),
        ("peak", "GiB", "most memory held, beside the matrices", 0.0),
    )
    subject = f"MST-KDNet's distance of attentions, {tokens} tokens"
    agreement = f"Distances and gradients' norms differ by at most {worst:.0e} of them"
    return steps_of(subject, setting, FORMS[0], found, rows, agreement)


def run(wanted: argparse.Namespace) -> dict[str, float]:
    """Measurement in one process: seconds of the second pass, and the peak memory of both passes beside the inputs."""
    if wanted.form == "at once":
        objective.ENTRIES_AT_ONCE = 2**62
    tokens, draws = wanted.tokens[0], torch.Generator().manual_seed(0)
    shape = (1, wanted.heads, tokens, tokens)
    both = [[torch.randn(shape, generator=draws).softmax(-1) for _ in range(wanted.layers)] for _ in range(2)]
    teacher, student = (seen([matrix.requires_grad_() for matrix in half]) for half in both)
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the most is counted from here
    before = most()
    for _ in range(2):
        begun = time.perf_counter()
        distance = objective.attention_distance(teacher, student).sum()
        gradients = torch.autograd.grad(distance, [*teacher.attentions, *student.attentions])
        seconds = time.perf_counter() - begun
        norm = torch.stack([gradient.double().norm() for gradient in gradients]).norm()
        del gradients
    return {
        "seconds": seconds,
        "peak": max(most() - before, LEAST),
        "distance": float(distance.detach()),
        "gradient": float(norm),
    }


def seen(attentions: list[Tensor]) -> NetworkOutput:
    """Attention matrices of a network, without its other outputs."""
    nothing = torch.empty(0)
    return NetworkOutput(nothing, nothing, nothing, nothing, [], attentions)


def most() -> float:
    """Peak memory of this process since the last reset, in GiB."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


if __name__ == "__main__":
    main()
