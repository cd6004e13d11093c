"""The loop, for every method: sum the terms, go back once, step.

A step is a pure function of the weights, the optimiser's state and (seed, step): crops are keyed by sample
number, torch's generator is seeded anew for each backward pass. So a killed run resumes bit for bit from the
tensors of its last checkpoint (on one device, with one number of threads), and N ranks compute what one rank
does that accumulates N times, but for what a method gathers from all ranks (SMML) and the running statistics of
batch norms, which are the first rank's. Under `torchrun` the same command trains on several devices.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from glimpseg import methods
from glimpseg.data.crops import Batch
from glimpseg.data.loader import Cases, batches
from glimpseg.errors import Preempted, TrainingError, UsageError
from glimpseg.method import Learner, Progress, ema
from glimpseg.model.checkpoint import SavedState, load_state, newest_valid, save_checkpoint
from glimpseg.model.folder import PROVENANCE, RECIPE, save_model
from glimpseg.model.transfer import initialise
from glimpseg.nets.recompute import recompute
from glimpseg.recipe import Optim, Recipe
from glimpseg.runtime.atomic import atomic_file, folder_lock, write_text
from glimpseg.runtime.distributed import any_rank, first_rank_first, mean_over_ranks, process_group, rank_and_world
from glimpseg.runtime.precision import precision_context, resolve_precision, small_convolutions_in_fp32
from glimpseg.runtime.preemption import deferred_sigterm
from glimpseg.runtime.selftest import require_correct_convolutions
from glimpseg.training.checks import refuse_beginning, refuse_unfit
from glimpseg.training.compiling import compile_networks, is_wanted
from glimpseg.training.dataset import cases_of, studies_of
from glimpseg.training.logger import Journal, Meter

log = logging.getLogger(__name__)


def fit(
    recipe: Recipe,
    cases: Cases,
    run: Path,
    *,
    device: torch.device,
    threads: int = 1,
    tensorboard: bool = False,
    quiet: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Trains from the run's newest checkpoint, or from the beginning; returns the folder of the model.

    Raises: UsageError if the network cannot take crops of the recipe's size, or its prior; TrainingError when a term
        is not finite, or a graphics processor computes wrongly; Preempted after SIGTERM, the state saved.
    """
    refuse_unfit(recipe)
    require_correct_convolutions(device, resolve_precision(recipe.optim.precision, device))
    optim, record = recipe.optim, {**(provenance or {}), "seed": recipe.seed}
    torch.manual_seed(recipe.seed)
    learner = methods.build(recipe)
    newest = newest_valid(run)
    if recipe.init.weights is not None and newest is None:
        record["init"] = initialise(learner, recipe)
    training = _Training.of(learner.to(device), optim, device)
    start = 0 if newest is None else _restore(training, newest, run, record)
    parts = _parts(recipe)
    feed = batches(
        cases,
        training.learner,
        recipe.data.sampling,
        seed=recipe.seed,
        steps=range(start, optim.steps),
        parts=[part for _, part in parts],
        device=device,
        threads=threads,
    )
    meter, chief = Meter(), rank_and_world()[0] == 0
    journal = Journal(run, step=start, steps=optim.steps, tensorboard=tensorboard, quiet=quiet) if chief else None
    with deferred_sigterm() as received, journal or nullcontext():
        for step in range(start, optim.steps):
            progress, done = Progress(step, optim.steps), step + 1
            with meter.waiting():
                pieces = next(feed)
            if step == start and is_wanted(optim.compile, device):
                training.compile(pieces[0], progress)
            for (number, _), batch in zip(parts, pieces, strict=True):
                torch.manual_seed(_step_seed(recipe.seed, step, number))
                terms = training.losses(training.objective, batch, progress)
                _refuse_non_finite(terms, batch, run, step)
                (sum(terms.values(), torch.zeros((), device=device)) / len(pieces)).backward()
                meter.add(terms)
            measured = training.step(optim, progress)
            stopped = any_rank(bool(received), device)
            if _due(done, optim.log_every, optim.steps):
                record_of_step = mean_over_ranks(meter.means(**measured), device)
                if journal:
                    journal.record(done, record_of_step)
            if chief and (_due(done, optim.save_every, optim.steps) or stopped):
                _save(training, run, recipe, done, record)
            if stopped and done < optim.steps:
                raise Preempted(f"Stopped by SIGTERM after step {done}, state saved. Go on with --resume.")
    if chief:
        record = {**record, "steps": optim.steps, "device": str(device)}
        save_model(run / "model", training.model_weights(), recipe, record)
    return run / "model"


def train(
    recipe: Recipe,
    run: str | Path,
    *,
    data: str | Path | None = None,
    labels: str | None = None,
    split: str | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    device: torch.device,
    threads: int = 1,
    tensorboard: bool = False,
    quiet: bool = False,
) -> Path:
    """Prepares the data, opens the run folder and trains in it; returns the folder of the model.

    Without `data` the recipe's phantom stream is used. `split` names a published list, `brats2020/train`, whose studies
    alone are learned from. Only one process may write a run at a time.

    Raises: UsageError if the run exists (without `resume`) or has another recipe, or if the method cannot learn from
        such an archive; InputError for data that cannot be used; and as `fit`.
    """
    run = Path(run)
    refuse_unfit(recipe)
    refuse_beginning(recipe, run)
    studies, note = studies_of(recipe, data, labels, split)  # refused before anything is written
    if note:
        log.info("%s.", note)
    with process_group(device), _only_one(run):
        _open_run(run, recipe, resume)
        with first_rank_first():
            cases, described = cases_of(recipe, run, studies, split, cache, device)
        return fit(
            recipe,
            cases,
            run,
            device=device,
            threads=threads,
            tensorboard=tensorboard,
            quiet=quiet,
            provenance={**described, "archive": note} if note else described,
        )


class Objective(nn.Module):
    """The learner's losses as a forward pass, so that DDP and torch.compile see it."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The learner's named, weighted terms."""
        return self.learner.losses(batch, progress)


@dataclass
class _Training:
    """What changes while training, and how it is put into a checkpoint and back."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    averaged: torch.optim.swa_utils.AveragedModel | None
    objective: nn.Module
    device: torch.device
    precision: str

    @classmethod
    def of(cls, learner: Learner, optim: Optim, device: torch.device) -> _Training:
        # A group may have a decay of its own, which no schedule changes.
        groups = [{"scheduled": "weight_decay" not in group, **group} for group in learner.parameter_groups()]
        optimizer: torch.optim.Optimizer
        if optim.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                groups,
                lr=optim.learning_rate,
                momentum=optim.momentum,
                nesterov=optim.nesterov,
                weight_decay=optim.weight_decay,
            )
        elif optim.optimizer in ("adam", "amsgrad"):
            never_falls = optim.optimizer == "amsgrad"
            optimizer = torch.optim.Adam(
                groups, lr=optim.learning_rate, weight_decay=optim.weight_decay, amsgrad=never_falls, fused=True
            )
        else:
            optimizer = torch.optim.AdamW(groups, lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True)
        for group in optimizer.param_groups:
            group.setdefault("scale", 1.0)  # a method's group may run at its own multiple of the learning rate
        averaged = ema(learner, optim.ema) if optim.ema else None
        precision = resolve_precision(optim.precision, device)
        if optim.recompute:  # after the average, which is never run
            recompute(learner.stages, partial(small_convolutions_in_fp32, precision, device))
        objective: nn.Module = Objective(learner)
        if rank_and_world()[1] > 1:
            objective = DistributedDataParallel(objective)
        return cls(learner, optimizer, averaged, objective, device, precision)

    def losses(self, objective: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The objective's terms, in the run's precision."""
        with precision_context(self.precision, self.device):
            return objective(batch, progress)

    def compile(self, batch: Batch, progress: Progress) -> None:
        """Compiles the network if a pass over this batch can be computed so."""

        def trial(learner: Learner) -> None:
            sum(self.losses(Objective(learner), batch, progress).values(), torch.zeros(())).backward()

        compile_networks(self.learner, trial, self.device, self.precision)

    def step(self, optim: Optim, progress: Progress) -> dict[str, float]:
        """Clips, steps, averages; returns the gradient's norm and the learning rate."""
        rate, decay = optim.rate(progress.step), optim.decay(progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
            if group["scheduled"]:
                group["weight_decay"] = decay
        most = math.inf if optim.max_norm is None else optim.max_norm
        # Group by group, so that a discriminator's gradient does not shrink the step of what it judges.
        norms = [float(nn.utils.clip_grad_norm_(group["params"], most)) for group in self.optimizer.param_groups]
        norm = math.hypot(*norms)
        if not math.isfinite(norm):
            raise TrainingError(
                f"The gradient's norm is {norm} at step {progress.step}, though every loss term is finite. The last "
                "checkpoint is untouched. Lower optim.learning_rate, or set optim.precision=fp32."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.learner.after_step(progress)
        if self.averaged is not None:
            self.averaged.update_parameters(self.learner)
        return {"gradient_norm": norm, "learning_rate": rate}

    def model_weights(self) -> dict[str, Tensor]:
        kept: Any = self.learner if self.averaged is None else self.averaged.module
        return kept.kept

    def state(self, step: int) -> SavedState:
        tensors = {f"learner/{name}": value for name, value in self.learner.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"ema/{name}": value for name, value in self.averaged.state_dict().items()}
        packed = self.optimizer.state_dict()
        for number, slots in packed["state"].items():
            tensors |= {f"optimizer/{number}/{name}": value for name, value in slots.items()}
        return SavedState(step, tensors, {"groups": packed["param_groups"], "precision": self.precision})

    def restore(self, state: SavedState) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}

        self.learner.load_state_dict(part("learner/"))
        if self.averaged is not None:
            self.averaged.load_state_dict(part("ema/"))
        slots: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, value in part("optimizer/").items():
            number, slot = name.split("/")
            slots[int(number)][slot] = value
        self.optimizer.load_state_dict({"state": dict(slots), "param_groups": state.scalars["groups"]})


def _open_run(run: Path, recipe: Recipe, resume: bool) -> None:
    """Writes the recipe into a new run, or checks that it is the one an old run began with."""
    if rank_and_world()[0]:
        return
    newest = newest_valid(run)
    # Where the run's own file has gone, its newest checkpoint knows the recipe as well.
    kept = [run / RECIPE, *([newest / RECIPE] if newest else [])]
    path = next((place for place in kept if place.exists()), None)
    tree = methods.as_tree(recipe)
    if path is not None:
        if not resume:
            raise UsageError(
                f"{run} already holds a run. Add --resume to go on with it, or name another folder with -o."
            )
        # Fields that did not exist when the run began have their defaults.
        if methods.as_tree(methods.from_tree(yaml.safe_load(path.read_text("utf-8")))) != tree:
            raise UsageError(f"{run} was begun with another recipe ({path}). Resume with that one, or start a new run.")
    if not (run / RECIPE).exists():
        write_text(run / RECIPE, yaml.safe_dump(tree, sort_keys=False))


@contextmanager
def _only_one(run: Path) -> Iterator[None]:
    """Holds the run's lock in the first rank, which alone writes."""
    rank, _ = rank_and_world()
    with nullcontext() if rank else folder_lock(run):
        yield


def _restore(training: _Training, newest: Path, run: Path, provenance: dict[str, Any]) -> int:
    """Takes up a run's newest checkpoint; the number of steps it has behind it, and in `provenance` how it began."""
    state, record = load_state(newest)
    if record.get("data") != provenance.get("data"):
        raise UsageError(f"{run} was begun on other data ({newest / PROVENANCE}). Resume with those.")
    if state.scalars["precision"] != training.precision:
        log.warning("The run was begun in %s and goes on in %s.", state.scalars["precision"], training.precision)
    training.restore(state)
    if "init" in record:
        provenance["init"] = record["init"]
    log.info("Resumed from %s", newest)
    return state.step


def _save(training: _Training, run: Path, recipe: Recipe, step: int, provenance: Mapping[str, Any]) -> None:
    save_checkpoint(run, training.model_weights(), recipe, provenance, state=training.state(step))


def _parts(recipe: Recipe) -> list[tuple[int, range]]:
    """This rank's shares of a step's samples, with their numbers among all shares."""
    rank, world = rank_and_world()
    count = world * recipe.optim.accumulate
    batch = recipe.data.sampling.batch
    if batch % count:
        raise UsageError(
            f"data.sampling.batch ({batch}) should be a multiple of ranks times optim.accumulate ({count}). Change one."
        )
    size = batch // count
    return [(n, range(n * size, (n + 1) * size)) for n in range(rank, count, world)]


def _due(done: int, every: int, steps: int) -> bool:
    return done % every == 0 or done == steps


def _refuse_non_finite(terms: Mapping[str, Tensor], batch: Batch, run: Path, step: int) -> None:
    broken = [name for name, value in terms.items() if not torch.isfinite(value)]
    if not broken:
        return
    path = run / "failed" / f"step-{step:08d}.safetensors"
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    with atomic_file(path) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary)
    raise TrainingError(
        f"The loss term '{broken[0]}' is {float(terms[broken[0]].detach())} at step {step}, on crops of "
        f"{', '.join(batch.study)}. The batch is saved as {path}; the last checkpoint is untouched. "
        "Look at the crops, or lower optim.learning_rate."
    )


def _step_seed(seed: int, step: int, part: int) -> int:
    digest = hashlib.sha256(f"{seed} {step} {part}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
