"""Training step on one device: its time, its distance from the device's limits, and its wait for data.

    python benchmarks/gpu_step.py [--device cuda] [--methods unet mmformer mstkdnet] [--steps 20] [--repeat 5]
    python benchmarks/gpu_step.py --device cpu --tiny          # a quick check on any machine

Each method is trained with its recipe `brats`: crops of 128 x 128 x 128, two a step, AdamW, the precision that `auto`
takes. In turns:

- eager: as with `optim.compile=false`.
- compiled: as with `optim.compile=true`; left out where compiling fails, as in training.
- recomputed: eager with `optim.recompute=true`.

They are compared with two floors, measured on the same device in the same rounds: the operations of an eager step
(counted by torch) at the speed of a bf16 matrix product, and the bytes that its operations read and write (counted
operation by operation) at the speed of a copy. An eager step cannot be faster than either; a compiled one reads and
writes less.

Waiting is what `metrics.jsonl` of a short run says, on one phantom in memory, augmented on the device. At last,
phantoms are drawn on the device and prepared, as for a recipe's stream. The gradients' norm of the forms is compared
first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from glimpseg import methods
from glimpseg.data.cache import Case, in_memory
from glimpseg.data.crops import Batch
from glimpseg.data.preprocess import prepare
from glimpseg.method import Learner, Progress
from glimpseg.nets.recompute import recompute
from glimpseg.phantom import Settings, generate
from glimpseg.phantom.dataset import as_study
from glimpseg.phantom.training_stream import PhantomStream, Stream
from glimpseg.recipe import Recipe
from glimpseg.runtime.device import resolved_device
from glimpseg.runtime.precision import precision_context, resolve_precision, small_convolutions_in_fp32
from glimpseg.training.compiling import compile_networks
from glimpseg.training.loop import fit
from glimpseg.training.options import TrainOptions
from turns import Contest, add_options, in_turns, tell

GIB = 2**30
HALFWAY = Progress(1, 2)
SEED = 5
"""Seed of the phantom."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", nargs="+", default=["unet", "mmformer", "mstkdnet"])
    parser.add_argument("--steps", type=int, default=20, help="of the run that says how much is waited")
    parser.add_argument("--threads", type=int, default=4, help="that cut crops")
    parser.add_argument("--tiny", action="store_true", help="recipes `phantom` on crops of 32 x 32 x 32")
    add_options(parser, repeat=5)
    wanted = parser.parse_args()
    device = resolved_device(wanted.device)
    contests: list[Contest] = []
    for method in wanted.methods:
        recipe = recipe_of(method, wanted.tiny)
        contests += [*steps_compared(recipe, device, wanted), waiting(recipe, device, wanted)]
    tell([*contests, stream(device, wanted)], wanted.record)


def recipe_of(method: str, tiny: bool) -> Recipe:
    """Recipe that is trained."""
    if not tiny:
        return methods.find_recipe(f"{method}/brats", {"optim.precision": "auto"})
    return methods.find_recipe(f"{method}/phantom", {"data.sampling.patch": [32, 32, 32]})


class Step:
    """Whole step on one batch: forward, backward, optimiser. It returns when the device is done."""

    def __init__(self, recipe: Recipe, device: torch.device, batch: Batch) -> None:
        torch.manual_seed(0)
        self.learner: Learner = methods.build(recipe).to(device)
        self.device, self.batch = device, batch
        self.precision = resolve_precision(recipe.optim.precision, device)
        self.optimizer = torch.optim.AdamW(self.learner.parameter_groups(), lr=1e-6, fused=True)

    def backward(self, learner: Learner | None = None) -> None:
        """One pass forward and backward, of the learner or another."""
        torch.manual_seed(1)
        with precision_context(self.precision, self.device):
            terms = (learner or self.learner).losses(self.batch, HALFWAY)
        sum(terms.values(), torch.zeros((), device=self.device)).backward()

    def norm(self) -> float:
        """Norm of the gradients, which are then dropped."""
        self.backward()
        found = [p.grad.double().norm() for p in self.learner.parameters() if p.grad is not None]
        self.optimizer.zero_grad()
        return float(torch.stack(found).norm())

    def __call__(self) -> None:
        """The step."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.learner.after_step(HALFWAY)
        finish(self.device)


def forms(recipe: Recipe, device: torch.device) -> dict[str, Step]:
    """The contestants, on the same random batch."""
    draws, sampling = torch.Generator().manual_seed(0), recipe.data.sampling
    shape = (sampling.batch, *sampling.patch)
    batch = Batch(
        study=tuple("ab"),
        image=torch.randn((sampling.batch, 4, *sampling.patch), generator=draws).to(device),
        available=torch.ones(sampling.batch, 4, dtype=torch.bool, device=device),
        target=torch.randint(0, 4, shape, generator=draws).to(device),
    )
    found = {name: Step(recipe, device, batch) for name in ("eager", "compiled", "recomputed")}
    recomputed, compiled = found["recomputed"], found["compiled"]
    recompute(recomputed.learner.stages, partial(small_convolutions_in_fp32, recomputed.precision, device))
    if not compile_networks(compiled.learner, compiled.backward, device, compiled.precision):
        del found["compiled"]
    return found


def steps_compared(recipe: Recipe, device: torch.device, wanted: argparse.Namespace) -> Iterator[Contest]:
    """The forms' time against the floors, and on a CUDA device their memory."""
    steps = forms(recipe, device)
    norms = {name: step.norm() for name, step in steps.items()}
    apart = max(abs(norm / norms["eager"] - 1) for norm in norms.values())
    with FlopCounterMode(display=False) as counted:
        steps["eager"].backward()
    operations = counted.get_total_flops()
    with Traffic() as moved:
        steps["eager"]()
    for step in steps.values():
        step()
    size = 512 if wanted.tiny else 8192
    kernels = {"matrix product": product(size, device), "copy": copy(size, device)}
    rounds = in_turns({**steps, **kernels}, wanted.repeat)
    product_speed = [2 * size**3 / seconds for seconds in rounds.pop("matrix product")]
    copy_speed = [2 * 4 * size**2 / seconds for seconds in rounds.pop("copy")]
    floors = {
        "bytes of an eager step, at the speed of a copy": [moved.total / speed for speed in copy_speed],
        "operations, at the speed of a matrix product": [operations / speed for speed in product_speed],
    }
    middle, batch = statistics.median(rounds["eager"]), recipe.data.sampling.batch
    yield Contest(
        question=f"A training step of {recipe.method}: how far from the floor of its memory traffic?",
        setting=f"{where(device)}, {recipe.optim.precision}, {told(recipe)}; eager: {batch / middle:.1f} samples/s, "
        f"{operations / middle / 1e12:.2f} of {statistics.median(product_speed) / 1e12:.2f} TFLOP/s, "
        f"{moved.total / 1e9:.1f} GB at {statistics.median(copy_speed) / 1e9:.0f} GB/s",
        unit="s",
        ours="bytes of an eager step, at the speed of a copy",
        rounds={**floors, **rounds},
        agreement=f"Norms of the gradients differ by at most {apart:.0e} (dropout draws otherwise when compiled)",
    )
    if device.type == "cuda":
        yield memory(recipe, device, steps)


def memory(recipe: Recipe, device: torch.device, steps: dict[str, Step]) -> Contest:
    """Peak memory of a step of each form, beside what was held before."""
    most: dict[str, list[float]] = {}
    for name, step in steps.items():
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        most[name] = [(torch.cuda.max_memory_allocated(device) - before) / GIB]
    return Contest(
        question=f"A training step of {recipe.method}: most memory, beside weights and moments",
        setting=f"{where(device)}, {recipe.optim.precision}, {told(recipe)}; one step of each",
        unit="GiB",
        ours="recomputed",
        rounds=most,
        agreement="The same steps as above",
    )


def waiting(recipe: Recipe, device: torch.device, wanted: argparse.Namespace) -> Contest:
    """Share of a step that waits for data, from a run's record."""
    made = prepare(
        as_study(generate(SEED, Settings.at_spacing(recipe.data.preprocess.spacing_mm))), recipe.data.preprocess
    )
    # The first record has the compiler's time, and whatever else happens once.
    optim = replace(recipe.optim, steps=2 * wanted.steps, warmup=0, log_every=wanted.steps, save_every=10**6)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        fit(
            replace(recipe, optim=optim),
            One(in_memory(made)),
            run,
            TrainOptions(device=device, threads=wanted.threads, quiet=True),
        )
        last = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    step = last["seconds_per_step"]
    return Contest(
        question=f"A training step of {recipe.method}: how much of it waits for data?",
        setting=f"{where(device)}, {told(recipe)}; {wanted.steps} steps, {wanted.threads} threads, a phantom in memory",
        unit="s",
        ours="a step",
        rounds={"a step": [step], "of which waiting": [last["waiting"] * step]},
        agreement="One run",
    )


class One:
    """The same case for every sample."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def case(self, n: int, seed: int) -> Case:
        """Return the same case for every index."""
        return self._case


def stream(device: torch.device, wanted: argparse.Namespace) -> Contest:
    """Phantoms drawn and prepared, one after the other, on the device and on the CPU."""
    spacing = 3.0 if wanted.tiny else 1.0
    settings = replace(methods.find_recipe("unet/phantom").data.preprocess, spacing_mm=spacing)
    drawn = {str(place): PhantomStream(Stream(), settings, None, place) for place in {torch.device("cpu"), device}}
    counts = dict.fromkeys(drawn, 0)

    def next_of(place: str) -> None:
        counts[place] += 1
        drawn[place].case(counts[place] * Stream().crops, 0)
        finish(device)

    for place in drawn:
        next_of(place)
    rounds = in_turns({place: partial(next_of, place) for place in drawn}, wanted.repeat)
    rate = 1 / statistics.median(rounds[str(device)])
    return Contest(
        question="A phantom of a recipe's stream, drawn and prepared",
        setting=f"{where(device)}, {spacing:.0f} mm; {rate:.2f} cases/s there",
        unit="s",
        ours=str(device),
        rounds=rounds,
        agreement="The phantoms of the same seeds",
    )


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, made = ([t for t in tree_leaves(part) if isinstance(t, Tensor)] for part in ((args, kwargs), result))
        known = {tensor.untyped_storage().data_ptr() for tensor in read}
        if func._schema.is_mutable or any(t.untyped_storage().data_ptr() not in known for t in made):
            self.total += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in (*read, *made))
        return result


def product(size: int, device: torch.device) -> Callable[[], None]:
    """Product of two square matrices, in bf16."""
    one, other = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))

    def multiply() -> None:
        torch.mm(one, other)
        finish(device)

    multiply()
    return multiply


def copy(size: int, device: torch.device) -> Callable[[], None]:
    """Copy a matrix in fp32 into memory that exists already."""
    one = torch.randn(size, size, device=device)
    other = torch.empty_like(one)

    def move() -> None:
        other.copy_(one)
        finish(device)

    move()
    return move


def finish(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def where(device: torch.device) -> str:
    """Name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def told(recipe: Recipe) -> str:
    """Size and number of the crops."""
    sampling = recipe.data.sampling
    return f"{sampling.batch} crops of {'x'.join(map(str, sampling.patch))}"


if __name__ == "__main__":
    main()
