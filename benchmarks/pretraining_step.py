"""Time and peak memory of Vox-MMSD's pretraining, against the way of the authors' code.

    python benchmarks/pretraining_step.py [--side 64] [--steps 3] [--samples 8] [--repeat 2] [--record FILE]

Each form runs in processes of its own, in turns, on the same phantom of 1 mm, network, crops and seeds, in fp32:

- ours: the teacher without a graph; voxels that both crops show are searched in their overlap, as truth values.
- authors': the teacher with a graph that nothing uses; voxels searched in the whole volume, a copy for each crop.

Losses, norms of gradients and drawn voxels are compared first. Results: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
import tracemalloc
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import torch
from torch import Tensor

from glimpseg import methods, phantom
from glimpseg.data.cache import Case, in_memory
from glimpseg.data.preprocess import prepare
from glimpseg.method import Progress
from glimpseg.methods.voxmmsd import views
from glimpseg.methods.voxmmsd.objective import VoxMMSD, distillation_loss, restoration_loss, voxel_features
from glimpseg.methods.voxmmsd.views import PairBatch
from glimpseg.phantom.dataset import as_study
from training_step import rss
from turns import Contest, add_options, in_processes, tell

FORMS = ("ours", "authors")
GIB, MIB = 2**30, 2**20
STEPS = 60_000


def main() -> None:
    """Measure and print. Raises: SystemExit if the forms do not compute the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="of the crops of a step; views are of 96")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8)
    add_options(parser, repeat=2)
    parser.add_argument("--share", nargs=2, metavar=("PART", "FORM"), help="one process's share of the work")
    wanted = parser.parse_args()
    if wanted.share:
        part, form = wanted.share
        print(json.dumps({"step": step, "views": viewing}[part](form, wanted)))
        return
    contests = [contest for part in ("views", "step") for contest in _contests(part, wanted)]
    tell(contests, wanted.record)


def _contests(part: str, wanted: argparse.Namespace) -> list[Contest]:
    """Contests of one part, measured in processes. Raises: SystemExit if the forms do not compute the same."""
    found = in_processes(FORMS, wanted.repeat, ["--share", part])
    one, other = (np.array(found[form][0]["check"]) for form in FORMS)
    worst = float((np.abs(one - other) / np.maximum(np.abs(one), 1e-12)).max())
    if worst > 1e-4:
        sys.exit(f"The forms do not compute the same: {part} differ by {worst:.1e}.")
    measured = [name for name in found["ours"][0] if name != "check"]
    return [
        Contest(
            question=f"Vox-MMSD: {name}",
            setting=f"Crops of {wanted.side}^3 in a step, views of 96^3, a phantom of 1 mm, fp32",
            unit=name.split()[0].replace("processor", "s").replace("seconds", "s"),
            ours="ours",
            rounds={form: [share[name] for share in shares] for form, shares in found.items()},
            agreement=f"Losses, gradients and voxels differ by at most {worst:.1e}",
        )
        for name in measured
    ]


def study() -> Case:
    """Phantom of 1 mm, with intensities from 0 to 1."""
    made = as_study(phantom.generate(7, phantom.Settings.at_spacing(1.0)))
    return in_memory(prepare(made, methods.find_recipe("voxmmsd/brats2023").data.preprocess))


def viewing(form: str, wanted: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a pair of views of 96^3, and its peak memory beside the result."""
    config, case = methods.find_recipe("voxmmsd/official").config, study()
    if form == "authors":
        search_everywhere(case, 96)
    views.view_pair(case, (96, 96, 96), config, np.random.default_rng(99))
    seconds, processor = [], []
    for number in range(wanted.samples):
        begun, used = time.perf_counter(), time.process_time()
        pair = views.view_pair(case, (96, 96, 96), config, np.random.default_rng(number))
        seconds.append(time.perf_counter() - begun)
        processor.append(time.process_time() - used)
    tracemalloc.start()
    views.view_pair(case, (96, 96, 96), config, np.random.default_rng(0))
    most = tracemalloc.get_traced_memory()[1]
    return {
        "seconds a pair": statistics.median(seconds),
        "processor seconds a pair": statistics.median(processor),
        "MiB at most": most / MIB,
        "check": pair.voxels.sum((0, 1)).tolist(),
    }


def search_everywhere(case: Case, side: int) -> None:
    """Search candidates as the authors do: all that is not 0 in the volume, once for each crop, then what lies in
    both."""
    volume = case.crop((0, 0, 0), case.shape).image.astype(np.float32)

    def candidates(tissue: np.ndarray, starts: np.ndarray, *, by_channel: bool) -> np.ndarray:
        inside = []
        for start in starts:
            where = np.argwhere(volume.copy() != 0)
            inside.append(((where[:, 1:] >= start) & (where[:, 1:] < start + side)).all(1))
        return where[inside[0] & inside[1], 1:]

    views.candidates = candidates


def step(form: str, wanted: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step on two studies' crops, without the first, and the process's peak beside the weights."""
    changes = {"data.sampling.patch": [wanted.side] * 3}
    recipe, case = methods.find_recipe("voxmmsd/official", changes), study()
    torch.manual_seed(0)
    learner = methods.build(recipe)
    pairs = [
        views.view_pair(case, recipe.data.sampling.patch, recipe.config, np.random.default_rng(n)) for n in range(2)
    ]
    batch, _ = learner.collate(pairs)
    del case, pairs
    still = rss()
    if form == "authors":
        learner.teacher.requires_grad_(True)
    optimizer = torch.optim.SGD(learner.parameter_groups(), 1e-3, momentum=0.9)
    seconds, processor, check = [], [], []
    for number in range(wanted.steps):
        torch.manual_seed(number)
        begun, used = time.perf_counter(), time.process_time()
        if form == "authors":
            terms, kept = with_graph(learner, batch)
        else:
            terms, kept = learner.losses(batch, Progress(0, STEPS)), None
        loss = sum(terms.values(), torch.zeros(()))
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in learner.student.parameters() if p.grad is not None]).norm()
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(Progress(0, STEPS))
        del kept
        seconds.append(time.perf_counter() - begun)
        processor.append(time.process_time() - used)
        check += [float(loss.detach()), float(norm)] if number == 0 else []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds a step": statistics.median(seconds[1:]),
        "processor seconds a step": statistics.median(processor[1:]),
        "GiB at most": peak * 1024 / GIB,
        "GiB beside network and batch": peak * 1024 / GIB - still,
        "check": check,
    }


def with_graph(learner: VoxMMSD, batch: PairBatch) -> tuple[dict[str, Tensor], Any]:
    """Losses with a recorded teacher pass; the graph is kept as long as the second value."""
    levels = learner.student.pyramid(batch.image, batch.available)
    student = learner.projector(voxel_features(levels, batch.voxels, batch.image.shape[2:]))
    slow = learner.teacher.pyramid(batch.image, batch.available)
    teacher = learner.projector(voxel_features(slow, batch.voxels, batch.image.shape[2:]))
    temperatures = learner.config.student_temperature, learner.temperature(Progress(0, STEPS))
    distilled = distillation_loss(student, teacher, learner.centre, temperatures)
    learner._rows.append(teacher.detach().mean(0, keepdim=True))
    restored = learner.restorer(levels).tanh()
    return {"distillation": distilled, "restoration": restoration_loss(restored, batch)}, (slow, teacher)


if __name__ == "__main__":
    main()
