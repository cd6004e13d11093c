"""The loop, for every method: sum the terms, go back once, step.

A step is a pure function of the weights, the optimiser's state and (seed, step): crops are keyed by sample
number, torch's generator is seeded anew for each backward pass. So a killed run resumes bit for bit from the
tensors of its last checkpoint (on one device, with one number of threads), and N ranks compute what one rank
does that accumulates N times. Under `torchrun` the same command trains on several devices.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from glimpseg import checkpoint, methods
from glimpseg.atomic import atomic_file, write_text
from glimpseg.data import phantom
from glimpseg.data.cache import cached
from glimpseg.data.layouts import find_studies
from glimpseg.data.loader import Archive, Cases, Phantoms, batches
from glimpseg.errors import InputError, Preempted, TrainingError, UsageError
from glimpseg.journal import Journal
from glimpseg.method import Learner, Progress, ema, resolved_precision
from glimpseg.modality import SUBSETS
from glimpseg.recipe import Optim, Recipe
from glimpseg.study import Batch, Study

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

    Raises: TrainingError when a term is not finite; Preempted after SIGTERM, the state saved.
    """
    rank, world = _rank_and_world()
    torch.manual_seed(recipe.seed)
    learner: Learner = methods.build(recipe).to(device)
    training = _Training.of(learner, recipe.optim, device)
    start = _restore(training, run, provenance or {})
    objective: nn.Module = Objective(learner)
    if world > 1:
        objective = DistributedDataParallel(objective)
    parts = _parts(recipe, rank, world)
    feed = batches(
        cases,
        learner.view,
        recipe.data.sampling,
        seed=recipe.seed,
        steps=range(start, recipe.optim.steps),
        parts=[part for _, part in parts],
        device=device,
        threads=threads,
    )
    journal = (
        Journal(run, step=start, steps=recipe.optim.steps, tensorboard=tensorboard, quiet=quiet) if not rank else None
    )
    meter = _Meter()
    with _sigterm() as stop, journal or nullcontext():
        for step in range(start, recipe.optim.steps):
            progress = Progress(step, recipe.optim.steps)
            with meter.waiting():
                pieces = next(feed)
            _set_learning_rate(training.optimizer, recipe.optim, step)
            for (number, _), batch in zip(parts, pieces, strict=True):
                torch.manual_seed(_step_seed(recipe.seed, step, number))
                with training.autocast():
                    terms: dict[str, Tensor] = objective(batch, progress)
                _refuse_non_finite(terms, batch, run, step)
                (sum(terms.values(), torch.zeros((), device=device)) / len(pieces)).backward()
                meter.add(terms)
            norm = nn.utils.clip_grad_norm_(learner.parameters(), recipe.optim.max_norm)
            training.optimizer.step()
            training.optimizer.zero_grad()
            learner.after_step(progress)
            training.average()
            done = step + 1
            if journal and (done % recipe.optim.log_every == 0 or done == recipe.optim.steps):
                rate = training.optimizer.param_groups[0]["lr"]
                journal.record(done, meter.means(gradient_norm=float(norm), learning_rate=rate))
            stopped = _on_any_rank(bool(stop), device)
            if done % recipe.optim.save_every == 0 or done == recipe.optim.steps or stopped:
                if rank == 0:
                    _save(training, run, recipe, done, provenance or {})
                if stopped and done < recipe.optim.steps:
                    raise Preempted(f"Stopped by SIGTERM after step {done}, state saved. Go on with --resume.")
    if rank == 0:
        weights = training.model_weights()
        record = {**(provenance or {}), "steps": recipe.optim.steps, "seed": recipe.seed, "device": str(device)}
        checkpoint.save(run / "model", weights, recipe, record)
    return run / "model"


def train(
    recipe: Recipe,
    run: str | Path,
    *,
    data: str | Path | None = None,
    labels: str | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    device: torch.device,
    threads: int = 1,
    tensorboard: bool = False,
    quiet: bool = False,
) -> Path:
    """Prepares the data, opens the run folder and trains in it; returns the folder of the model.

    Without `data` the recipe's phantom stream is used. Only one process may write a run at a time.

    Raises: UsageError if the run exists (without `resume`) or has another recipe; InputError for data that
        cannot be used; and as `fit`.
    """
    run = Path(run)
    with _ranks(device), _only_one(run):
        _open_run(run, recipe, resume)
        with _first_rank_first():
            cases, described = _cases(recipe, run, data, labels, cache)
        return fit(
            recipe,
            cases,
            run,
            device=device,
            threads=threads,
            tensorboard=tensorboard,
            quiet=quiet,
            provenance=described,
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
    device: torch.device
    precision: str

    @classmethod
    def of(cls, learner: Learner, optim: Optim, device: torch.device) -> _Training:
        groups = learner.parameter_groups()
        optimizer: torch.optim.Optimizer
        if optim.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                groups, lr=optim.learning_rate, momentum=0.99, nesterov=True, weight_decay=optim.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(groups, lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True)
        for group in optimizer.param_groups:
            group.setdefault("scale", 1.0)  # a method's group may run at its own multiple of the learning rate
        averaged = ema(learner, optim.ema) if optim.ema else None
        return cls(learner, optimizer, averaged, device, resolved_precision(optim.precision, device))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def average(self) -> None:
        if self.averaged is not None:
            self.averaged.update_parameters(self.learner)

    def model_weights(self) -> dict[str, Tensor]:
        kept = self.learner if self.averaged is None else self.averaged.module
        return kept.state_dict()

    def state(self, step: int) -> checkpoint.State:
        tensors = {f"learner/{name}": value for name, value in self.learner.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"ema/{name}": value for name, value in self.averaged.state_dict().items()}
        packed = self.optimizer.state_dict()
        for number, slots in packed["state"].items():
            tensors |= {f"optimizer/{number}/{name}": value for name, value in slots.items()}
        return checkpoint.State(step, tensors, {"groups": packed["param_groups"], "precision": self.precision})

    def restore(self, state: checkpoint.State) -> None:
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


@dataclass
class _Meter:
    """Means of the loss terms since the last record, and the share of the time spent waiting for data."""

    totals: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    count: int = 0
    steps: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun
        self.steps += 1

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self.totals[name] += float(value.detach())
        self.count += 1

    def means(self, **others: float) -> dict[str, float]:
        elapsed = time.perf_counter() - self.since
        terms = {f"loss/{name}": total / self.count for name, total in self.totals.items()}
        record = {
            "loss": sum(terms.values()),
            **terms,
            "seconds_per_step": elapsed / self.steps,
            "waiting": self.waited / elapsed,
            **others,
        }
        self.__init__()  # type: ignore[misc]
        return record


def prepare_studies(studies: Sequence[Study], recipe: Recipe, folder: Path) -> list[Path]:
    """The cache files of all studies, made where they are missing.

    Raises: InputError naming every study that cannot be prepared, once all have been tried.
    """
    paths, failures = [], []
    for study in studies:
        try:
            paths.append(cached(study, recipe.data.preprocess, folder))
        except InputError as error:
            failures.append(f"{study.id}: {error}")
    if failures:
        raise InputError(
            f"{len(failures)} of {len(studies)} studies cannot be used; repair them or move them away.\n"
            + "\n".join(failures)
        )
    return paths


def _cases(
    recipe: Recipe, run: Path, data: str | Path | None, labels: str | None, cache: str | Path | None
) -> tuple[Cases, dict[str, Any]]:
    if data is None:
        if recipe.data.stream is None:
            raise UsageError("This recipe has no phantom stream: name a folder of studies with --data.")
        return Phantoms(recipe.data.stream, recipe.data.preprocess), {"data": {"stream": phantom.NAME}}
    studies = find_studies(data, labels=labels, reference_required=True)
    paths = prepare_studies(studies, recipe, Path(cache) if cache else run / "cache")
    have = {subset.key: sum(study.available == subset for study in studies) for subset in SUBSETS}
    log.info("%d studies: %s", len(studies), ", ".join(f"{count} with {key}" for key, count in have.items() if count))
    digest = hashlib.sha256("\n".join(sorted(path.name for path in paths)).encode()).hexdigest()
    convention = studies[0].convention
    return Archive(paths), {
        "data": {
            "studies": len(studies),
            "available": {key: count for key, count in have.items() if count},
            "labels": convention.name if convention else None,
            "digest": digest,
        }
    }


def _open_run(run: Path, recipe: Recipe, resume: bool) -> None:
    """Writes the recipe into a new run, or checks that it is the one an old run began with."""
    if _rank_and_world()[0]:
        return
    path = run / "recipe.yaml"
    tree = methods.as_tree(recipe)
    if path.exists():
        if not resume:
            raise UsageError(
                f"{run} already holds a run. Add --resume to go on with it, or name another folder with -o."
            )
        if yaml.safe_load(path.read_text("utf-8")) != tree:
            raise UsageError(f"{run} was begun with another recipe ({path}). Resume with that one, or start a new run.")
    else:
        write_text(path, yaml.safe_dump(tree, sort_keys=False))


@contextmanager
def _only_one(run: Path) -> Iterator[None]:
    """Holds the run's lock; the system frees it when the process ends, however it ends."""
    rank, _ = _rank_and_world()
    if rank:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise TrainingError(
            f"Another process is training in {run}. Wait for it, or name another folder with -o."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _restore(training: _Training, run: Path, provenance: Mapping[str, Any]) -> int:
    newest = checkpoint.newest_valid(run)
    if newest is None:
        return 0
    state, record = checkpoint.load_state(newest)
    if record.get("data") != provenance.get("data"):
        raise UsageError(f"{run} was begun on other data ({newest / checkpoint.PROVENANCE}). Resume with those.")
    if state.scalars["precision"] != training.precision:
        log.warning("The run was begun in %s and goes on in %s.", state.scalars["precision"], training.precision)
    training.restore(state)
    log.info("Resumed from %s", newest)
    return state.step


def _save(training: _Training, run: Path, recipe: Recipe, step: int, provenance: Mapping[str, Any]) -> None:
    folder = checkpoint.checkpoint_folder(run, step)
    record = {**provenance, "steps": step, "seed": recipe.seed}
    checkpoint.save(folder, training.model_weights(), recipe, record, training.state(step))
    checkpoint.drop_old(run)


def _parts(recipe: Recipe, rank: int, world: int) -> list[tuple[int, range]]:
    """This rank's shares of a step's samples, with their numbers among all shares."""
    count = world * recipe.optim.accumulate
    batch = recipe.data.sampling.batch
    if batch % count:
        raise UsageError(
            f"data.sampling.batch ({batch}) should be a multiple of ranks times optim.accumulate ({count}). Change one."
        )
    size = batch // count
    return [(n, range(n * size, (n + 1) * size)) for n in range(rank, count, world)]


def _set_learning_rate(optimizer: torch.optim.Optimizer, optim: Optim, step: int) -> None:
    rise = min(1.0, (step + 1) / (optim.warmup + 1))
    fall = (1 - step / optim.steps) ** optim.power
    for group in optimizer.param_groups:
        group["lr"] = optim.learning_rate * group["scale"] * rise * fall


def _refuse_non_finite(terms: Mapping[str, Tensor], batch: Batch, run: Path, step: int) -> None:
    broken = [name for name, value in terms.items() if not torch.isfinite(value)]
    if not broken:
        return
    path = run / "failed" / f"step-{step:08d}.safetensors"
    tensors = {"image": batch.image, "available": batch.available}
    if batch.target is not None:
        tensors["target"] = batch.target
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


@contextmanager
def _ranks(device: torch.device) -> Iterator[None]:
    """Joins the other ranks where `torchrun` started several."""
    if _rank_and_world()[1] == 1 or distributed.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def _first_rank_first() -> Iterator[None]:
    """Rank 0 fills the cache; the others wait and then find it."""
    rank, world = _rank_and_world()
    if world > 1 and rank:
        distributed.barrier()
    yield
    if world > 1 and not rank:
        distributed.barrier()


def _on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether any rank has the flag: all stop after the same step, or one would wait for the others for ever."""
    if _rank_and_world()[1] == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return bool(flags.item())


def _rank_and_world() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def _sigterm() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGTERM has come; the step in progress is finished first."""
    received: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    except ValueError:  # not the main thread: the host program keeps its own handlers
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
