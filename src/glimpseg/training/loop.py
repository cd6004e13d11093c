"""Training loop, the same for every method: sum the losses, one backward pass, one optimiser step.

A step depends on the weights, the optimiser's state and (seed, step) alone: crops are keyed by their number, and
torch's generator is seeded before each backward pass. A killed run therefore resumes bit for bit from its last
checkpoint, on one device and with one number of threads. N ranks compute what one rank computes that accumulates N
times, except for what a method gathers from all ranks (SMML) and the running statistics of batch norms, which are the
first rank's. Under `torchrun` the same command trains on several devices.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glimpseg import methods
from glimpseg.data.crops import Batch
from glimpseg.data.loader import Cases, Schedule, batches
from glimpseg.data.notices import TABLE, StudyNotices, collected
from glimpseg.errors import Preempted, TrainingError, UsageError
from glimpseg.method import Learner, Progress
from glimpseg.model.checkpoint import load_state, newest_valid, save_checkpoint
from glimpseg.model.folder import PROVENANCE, RECIPE, save_model
from glimpseg.model.transfer import initialise
from glimpseg.recipe import Recipe
from glimpseg.runtime.atomic import atomic_file, folder_lock, remove_unfinished
from glimpseg.runtime.distributed import any_rank, first_rank_first, mean_over_ranks, process_group, rank_and_world
from glimpseg.runtime.precision import resolve_precision
from glimpseg.runtime.preemption import deferred_sigterm
from glimpseg.runtime.resumable import Resumable
from glimpseg.runtime.selftest import require_correct_convolutions
from glimpseg.training.checks import refuse_unfit, refuse_unfit_weights
from glimpseg.training.compiling import should_compile
from glimpseg.training.dataset import find_training_studies, open_cases
from glimpseg.training.logger import METRICS, PICTURE, StepAverages, TrainingLogger
from glimpseg.training.options import TrainOptions
from glimpseg.training.state import TrainingState

log = logging.getLogger(__name__)

WRITTEN = (RECIPE, METRICS, PICTURE, "model")
"""Files and folders directly in a run folder that a training writes."""
RUN = Resumable(noun="run", file=RECIPE, among_files=True)
"""Run folder as an output that can be resumed. It may hold other files before the training begins, such as a cache."""


def train(recipe: Recipe, run: str | Path, options: TrainOptions) -> Path:
    """Prepare the data, open the run folder and train in it. One process at a time may write a run.

    Returns: The model folder.

    Raises:
        UsageError: The run exists and `options.resume` is false, or it was begun with another recipe or other data; the
            method cannot use the recipe or learn from such a dataset; or another process writes the run.
        InputError: The data cannot be used.
        ModelError: The initial weights cannot be used.
        OutputError: When the disk refuses.
        TrainingError, Preempted: As `fit`; TrainingError also if another rank has gone.
    """
    run = Path(run)
    refuse_unfit(recipe)
    refuse_unfit_weights(recipe, run)
    found = StudyNotices(where=f"{TABLE} in the cache has all of them")
    # Every rank finds the same studies; the first tells.
    with found.telling() if rank_and_world()[0] == 0 else collected():
        studies, note = find_training_studies(recipe, options)  # refused before anything is written
    if note:
        log.info("%s.", note)
    with process_group(options.device), _run_lock(run):
        _open_run(run, recipe, options.resume)
        if rank_and_world()[0] == 0:
            remove_unfinished(run, WRITTEN)
        with first_rank_first():
            cases, described = open_cases(recipe, run, studies, options, found=found)
        return fit(recipe, cases, run, options, provenance={**described, "dataset": note} if note else described)


def fit(
    recipe: Recipe, cases: Cases, run: Path, options: TrainOptions, provenance: Mapping[str, Any] | None = None
) -> Path:
    """Train from the newest whole checkpoint of a run, or from the beginning if there is none.

    Args:
        recipe: The recipe.
        cases: Source of the studies that crops are cut from.
        run: The run folder.
        options: `device`, `threads`, `tensorboard` and `quiet` are used.
        provenance: Fields for the provenance of the model.

    Returns: The model folder, `model` in the run folder. The first rank writes it.

    Raises:
        UsageError: The method cannot use the recipe's crops or prior, or returns no loss terms; the samples of a step
            cannot be divided among ranks and backward passes; the run was begun with other data; or TensorBoard is
            asked for and not installed.
        ModelError: The initial weights cannot be used.
        TrainingError: A loss term or the gradient's norm is not finite, or the graphics processor computes wrongly.
        Preempted: SIGTERM came before the last step was done; the state is saved.
        OutputError: When the disk refuses.
    """
    refuse_unfit(recipe)
    device, optim = options.device, recipe.optim
    require_correct_convolutions(device, resolve_precision(optim.precision, device))
    record = {**(provenance or {}), "seed": recipe.seed}
    torch.manual_seed(recipe.seed)
    learner = methods.build(recipe)
    newest = newest_valid(run)
    if recipe.init.weights is not None and newest is None:
        record["init"] = initialise(learner, recipe)
    state = TrainingState.begin(learner.to(device), optim, device)
    first = 0 if newest is None else _restore(state, newest, run, record)
    steps, shares = range(first, optim.steps), _shares(recipe)
    schedule = Schedule(
        sampling=recipe.data.sampling, seed=recipe.seed, steps=steps, shares=[share for _, share in shares]
    )
    feed = batches(cases, state.learner, schedule, device=device, threads=options.threads)
    averages, is_first_rank = StepAverages(), rank_and_world()[0] == 0
    logger = TrainingLogger(run, steps, tensorboard=options.tensorboard, quiet=options.quiet) if is_first_rank else None
    with deferred_sigterm() as stop_request, logger or nullcontext():
        for step in steps:
            progress, done = Progress(step, optim.steps), step + 1
            with averages.waiting():
                parts = next(feed)
            if step == first and should_compile(optim.compile, device):
                state.compile(parts[0], progress)
            seeds = [_pass_seed(recipe.seed, step, number) for number, _ in shares]
            for terms in _accumulate(state, parts, seeds, progress, run=run):
                averages.add(terms)
            measured = state.step(optim, progress)
            stopping = any_rank(bool(stop_request), device)
            if is_due(done, optim.log_every, optim.steps):
                values = mean_over_ranks(averages.means(**measured), device)
                if logger:
                    logger.record(done, values)
            if is_first_rank and (is_due(done, optim.save_every, optim.steps) or stopping):
                save_checkpoint(run, state.model_weights(), recipe, record, state=state.save(done))
            if stopping and done < optim.steps:
                raise Preempted(f"Stopped by SIGTERM after step {done}, state saved. Go on with --resume.")
    if is_first_rank:
        record = {**record, "steps": optim.steps, "device": str(device)}
        save_model(run / "model", state.model_weights(), recipe, record)
    return run / "model"


def is_due(done: int, every: int, steps: int) -> bool:
    """True after every `every` steps, and after the last one of `steps`. `done`: number of steps done."""
    return done % every == 0 or done == steps


def _accumulate(
    state: TrainingState, parts: Sequence[Batch], seeds: Sequence[int], progress: Progress, *, run: Path
) -> Iterator[dict[str, Tensor]]:
    """Make one backward pass for each part of a step's batch, with its seed, and yield its loss terms.

    The gradients are those of the mean over the parts. Raises: TrainingError if a loss term is not finite; UsageError
    if the method returns no terms.
    """
    for seed, batch in zip(seeds, parts, strict=True):
        torch.manual_seed(seed)
        terms = state.loss_terms(state.objective, batch, progress)
        _refuse_malformed(state.learner, terms)
        _refuse_non_finite(terms, batch, run, progress.step)
        (sum(terms.values(), torch.zeros((), device=state.device)) / len(parts)).backward()
        yield terms


def _open_run(run: Path, recipe: Recipe, resume: bool) -> None:
    """Write the recipe into a new run folder, or check that an old one was begun with the same recipe.

    The first rank does so; the others do nothing. Raises: UsageError for an old run without `resume`, or with another
    recipe; InputError if its recipe is damaged.
    """
    if rank_and_world()[0]:
        return
    # If the file in the run folder is lost, the newest checkpoint holds the recipe as well.
    places = [folder for folder in (run, newest_valid(run)) if folder is not None and (folder / RECIPE).exists()]
    kept: dict[str, Any] | None = None
    if places:  # fields that did not exist when the run began get their defaults
        kept = methods.as_tree(methods.from_tree(RUN.read(places[0]))) if resume else {}
    RUN.open(run, methods.as_tree(recipe), resume=resume, kept=kept)


@contextmanager
def _run_lock(run: Path) -> Iterator[None]:
    """Hold the lock of the run folder in the first rank, the only one that writes."""
    with nullcontext() if rank_and_world()[0] else folder_lock(run):
        yield


def _restore(state: TrainingState, checkpoint: Path, run: Path, provenance: dict[str, Any]) -> int:
    """Take over a checkpoint; add its `init`, if it has one, to `provenance`.

    Returns: The number of steps done.

    Raises: UsageError if the run was begun with other data.
    """
    saved, record = load_state(checkpoint)
    if record.get("data") != provenance.get("data"):
        raise UsageError(f"{run} was begun on other data ({checkpoint / PROVENANCE}). Resume with those.")
    if saved.scalars["precision"] != state.precision:
        log.warning("The run was begun in %s and goes on in %s.", saved.scalars["precision"], state.precision)
    state.restore(saved)
    if "init" in record:
        provenance["init"] = record["init"]
    log.info("Resumed from %s", checkpoint)
    return saved.step


def _shares(recipe: Recipe) -> list[tuple[int, range]]:
    """Return this rank's shares of a step's samples, each with its number among the shares of all ranks.

    Raises: UsageError if the samples of a step cannot be divided equally.
    """
    rank, world = rank_and_world()
    count = world * recipe.optim.accumulate
    batch = recipe.data.sampling.batch
    if batch % count:
        raise UsageError(
            f"data.sampling.batch ({batch}) should be a multiple of ranks times optim.accumulate ({count}). Change one."
        )
    size = batch // count
    return [(n, range(n * size, (n + 1) * size)) for n in range(rank, count, world)]


def _refuse_malformed(learner: Learner, terms: Any) -> None:
    """Raise UsageError if `losses` returned something else than named tensors of one number each."""
    name = f"losses of {type(learner).__name__}"
    if not isinstance(terms, Mapping) or not terms:
        found = "an empty dict" if isinstance(terms, Mapping) else type(terms).__name__
        raise UsageError(f"{name} should return a dict of named loss terms, not {found}.")
    for term, value in terms.items():
        if not (isinstance(value, Tensor) and value.numel() == 1):
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"{name}: the term '{term}' should be a tensor with one number, not {found}.")


def _refuse_non_finite(terms: Mapping[str, Tensor], batch: Batch, run: Path, step: int) -> None:
    """Save the batch and raise TrainingError if a loss term is not finite."""
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


def _pass_seed(seed: int, step: int, share: int) -> int:
    """Return the seed of torch's generator for one backward pass.

    `share` is the number of the pass's samples among the shares of the step, over all ranks.
    """
    digest = hashlib.sha256(f"{seed} {step} {share}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
