"""A model on labelled studies: what it reaches from each subset of sequences, how sure it should be, and what one more
sequence adds; written as a copy of the model with `expectations.json`.

Of each study a file of counts is kept until the end, voxels by bins of the logit: a calibration that was killed goes
on, and a thousand studies take no more memory than one. Half of the studies give the temperatures, the other half says
what they are worth; the Dice is of all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
import zipfile
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, special

from glimpseg.data.cache import study_digest
from glimpseg.data.preprocess import Prepared, brain_of, prepare
from glimpseg.errors import InputError
from glimpseg.evaluation.scoring import Reference
from glimpseg.metrics import Reliability
from glimpseg.metrics.calibration import BINS
from glimpseg.modality import SUBSETS, Modality, parse, subsets_of
from glimpseg.model.copying import save_copy
from glimpseg.model.expectations import EXPECTATIONS, FORMAT, JUDGED, Expectations, Expected, Gain
from glimpseg.model.folder import PROVENANCE, WEIGHTS
from glimpseg.model.loading import Model
from glimpseg.region import Region
from glimpseg.results.scores import Score, Scores
from glimpseg.results.statistics import FEWEST_CASES, Bootstrap, Interval, additions
from glimpseg.runtime.atomic import atomic_file, folder_lock, refuse_if_used
from glimpseg.segmentation.inference import Prediction, infer
from glimpseg.study import Study
from glimpseg.version import __version__

log = logging.getLogger(__name__)

LOWEST, HIGHEST = -32.0, 17.0
"""Logits are cut here. A float32 cannot tell 1 from the probability of a logit above 17; below -32 lie 1e-14."""
PER_UNIT = 64
"""Bins for each unit of the logit. Each bin keeps its mean, so that the fit differs by less than 1e-4 from that of the
voxels themselves (a test says so)."""
COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures lie between; a model that needs others has not learned the region."""
FEWEST_FITTED = 2
"""Studies with a region without which it gets no temperature (1): one patient says nothing of the next."""
COUNTED_LATER = 2
"""Predictions that may wait to be counted; each holds probabilities on the own grid."""
TENTH = 10
"""Percent of cases below the Dice that is called `tenth`."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Voxels of one region by their logit; can be added up over studies."""

    voxels: Int[np.ndarray, "b"]
    logits: Float[np.ndarray, "b"]
    """Sum over the voxels of each bin."""
    positives: Int[np.ndarray, "b"]
    """How many of the voxels truly belong to the region."""
    found: Int[np.ndarray, "b"]
    """How many of the voxels the model counted to the region."""
    studies: int
    """In which the region occurs."""

    @classmethod
    def empty(cls) -> Histogram:
        """Of no voxel."""
        nothing = np.zeros(0, bool)
        return cls.of(np.zeros(0, np.float32), nothing, nothing)

    @classmethod
    def of(
        cls, probability: Float[np.ndarray, "n"], truth: Bool[np.ndarray, "n"], mask: Bool[np.ndarray, "n"]
    ) -> Histogram:
        """Of one study's voxels: their probability, whether they belong to the region, whether the model said so."""
        logit = np.clip(special.logit(probability), LOWEST, HIGHEST)
        bins = round((HIGHEST - LOWEST) * PER_UNIT)
        index = np.minimum(((logit - LOWEST) * PER_UNIT).astype(np.int64), bins - 1)
        return cls(
            np.bincount(index, minlength=bins),
            np.bincount(index, logit, bins).astype(np.float64),  # of no voxel, numpy counts in whole numbers
            np.bincount(index[truth], minlength=bins),
            np.bincount(index[mask], minlength=bins),
            int(truth.any()),
        )

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(
            self.voxels + other.voxels,
            self.logits + other.logits,
            self.positives + other.positives,
            self.found + other.found,
            self.studies + other.studies,
        )

    def temperature(self) -> float:
        """What divides the logits so that the mean negative log-likelihood of sigmoid(logit / T) is smallest. Eq. (2)
        of the page on trust.

        The likelihood is convex in 1 / T, so that its minimum is where its derivative is 0, or the nearest end of the
        range. 1 without voxels of both kinds.
        """
        filled = self.voxels > 0
        voxels, positives = self.voxels[filled], self.positives[filled]
        if not 0 < positives.sum() < voxels.sum():
            return 1.0
        logit = self.logits[filled] / voxels

        def slope(inverse: float) -> float:
            return float((logit * (voxels * special.expit(inverse * logit) - positives)).sum())

        low, high = 1 / HOTTEST, 1 / COLDEST
        if slope(low) >= 0:
            return HOTTEST
        if slope(high) <= 0:
            return COLDEST
        return 1 / float(optimize.brentq(slope, low, high, xtol=1e-9))

    def probabilities(self, temperature: float = 1.0) -> Float[np.ndarray, "b"]:
        """Of each bin, at its mean logit; 0 for an empty one."""
        mean = np.divide(self.logits, self.voxels, out=np.full(len(self.logits), -np.inf), where=self.voxels > 0)
        return np.asarray(special.expit(mean / temperature))

    def reliability(self, temperature: float = 1.0) -> Reliability:
        """Of the probabilities at a temperature."""
        probability = self.probabilities(temperature)
        index = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
        squared = self.voxels * probability**2 - 2 * self.positives * probability + self.positives
        counts, predicted, observed = (
            np.bincount(index, values, BINS) for values in (self.voxels, self.voxels * probability, self.positives)
        )
        return Reliability(counts.astype(np.int64), predicted, observed.astype(np.int64), float(squared.sum()))

    def estimated_dice(self, temperature: float = 1.0) -> float:
        """What `uncertainty.estimated_dice` says of the mask, of the bins. Eq. (3) of the page on trust."""
        if not self.found.any():
            return math.nan
        probability = self.probabilities(temperature)
        both = float((self.found * probability).sum())
        return 2 * both / float((self.voxels * probability).sum() + self.found.sum())


Key = tuple[Modality, Region]


@dataclass(frozen=True, eq=False)
class Counts:
    """All that is kept of one study."""

    lines: list[Score]
    """The Dice of each subset and region."""
    histograms: dict[Key, Histogram]


def calibrate(
    model: Model, studies: Sequence[Study], folder: str | Path, *, population: str, overwrite: bool = False
) -> Expectations:
    """Runs a model on every subset of every study that has a reference, and writes a copy of it with
    `expectations.json` to `folder`, whole or not at all.

    `population` says in words what the studies are: `phantoms of held-out settings`. Studies that cannot be read are
    named in a warning and left out. Which half a study belongs to follows from its name. Until all is done, the counts
    of each study lie beside `folder`, in `folder.parts`: a calibration that was stopped goes on with them, if model,
    study and version are the same.

    Raises: InputError if no study has a reference or none can be used; UsageError if `folder` holds files or another
        process calibrates into it.
    """
    folder = Path(folder)
    refuse_if_used(folder, overwrite=overwrite, mark=PROVENANCE)
    labelled = sorted((study for study in studies if study.reference is not None), key=_draw)
    if not labelled:
        raise InputError("No study has a reference, and without one nothing can be measured. Give labelled studies.")
    parts = folder.with_name(f"{folder.name}.parts")
    with folder_lock(parts):
        files = _count_all(model, labelled, parts)
        if not files:
            raise InputError("None of the studies could be used; the warnings above say why. Repair them.")
        told = _concluded(model, files, population)
        write_calibrated(model, told, folder, overwrite=overwrite)
    shutil.rmtree(parts, ignore_errors=True)
    return told


def write_calibrated(model: Model, told: Expectations, folder: str | Path, *, overwrite: bool = False) -> None:
    """A copy of a model's folder, without training state, with these expectations; whole or not at all."""
    told_text = json.dumps(told.as_tree(), indent=1) + "\n"
    cards = {path.name: path.read_text("utf-8") for path in model.path.glob("*.md")}
    note = {"calibrated_by": __version__}
    save_copy(model, folder, {EXPECTATIONS: told_text.encode()}, note, texts=cards, overwrite=overwrite)


def _draw(study: Study) -> str:
    """A study's place in an order that has nothing to do with its name's: archives are sorted by site and year."""
    return hashlib.sha256(study.id.encode("utf-8", "surrogateescape")).hexdigest()


def _count_all(model: Model, studies: Sequence[Study], parts: Path) -> list[Path]:
    """The files of counts of all studies that can be used, in their order; those that are there are kept."""
    files, begun = [], time.perf_counter()
    for number, study in enumerate(studies, 1):
        try:
            file = parts / f"{_digest(model, study)}.npz"
            if not file.is_file():
                counts = _counts(model, study)
                with atomic_file(file) as path:
                    _write_counts(path, counts)
        except InputError as error:
            log.warning("%s is left out: %s", study.id, error)
            continue
        files.append(file)
        log.info("%d/%d %s (%.0f s)", number, len(studies), study.id, time.perf_counter() - begun)
    return files


def _digest(model: Model, study: Study) -> str:
    """Of all that decides a study's counts."""
    what = [__version__, FORMAT, model.provenance["sha256"][WEIGHTS], model.chosen, study_digest(study)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _counts(model: Model, study: Study) -> Counts:
    """Runs the network on every subset that a study allows; a thread counts while it works on the next."""
    prepared = prepare(study, model.recipe.data.preprocess)
    case, waiting, done = _Case(prepared, model.network.regions), deque[Future[Counts]](), []
    with ThreadPoolExecutor(1, thread_name_prefix="counter") as counter:
        for found in infer(prepared, model, subsets_of(prepared.available), keep_probabilities=True):
            if len(waiting) >= COUNTED_LATER:
                done.append(waiting.popleft().result())
            waiting.append(counter.submit(case.counted, found))
        done += [one.result() for one in waiting]
    lines = [line for one in done for line in one.lines]
    return Counts(lines, {key: histogram for one in done for key, histogram in one.histograms.items()})


class _Case:
    """One study's truth, ready to be compared with."""

    def __init__(self, prepared: Prepared, regions: Sequence[Region]) -> None:
        assert prepared.reference is not None
        self.id, self.brain = prepared.id, brain_of(prepared)
        self.reference = Reference(prepared, regions, ["dice"])
        self.truth = {region: region.mask(prepared.reference.voxels)[self.brain] for region in regions}

    def counted(self, found: Prediction) -> Counts:
        """One subset's Dice and voxels."""
        assert found.probabilities is not None
        names = {region.name for region in self.truth}
        lines = [
            Score(
                self.id, found.subset.key, one.region, "dice", "clinical",
                one.values["dice"], one.predicted_ml, one.reference_ml,
            )
            for one in self.reference.rate(found.labels, None)
            if one.region in names
        ]  # fmt: skip
        labels = found.labels.voxels[self.brain]
        histograms = {
            (found.subset, region): Histogram.of(
                found.probabilities[region].voxels[self.brain], truth, region.mask(labels)
            )
            for region, truth in self.truth.items()
        }
        return Counts(lines, histograms)


def _write_counts(path: Path, counts: Counts) -> None:
    arrays = {"lines": np.array(json.dumps([astuple(line) for line in counts.lines]))}
    for (subset, region), one in counts.histograms.items():
        whole = np.stack([one.voxels, one.logits, one.positives, one.found])
        arrays[f"{subset.key} {region.name} {one.studies}"] = whole
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _read_counts(path: Path) -> Counts:
    """Raises: InputError if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            lines = [Score(*line) for line in json.loads(str(arrays["lines"]))]
            histograms = {}
            for name in set(arrays.files) - {"lines"}:
                subset, region, studies = name.split(" ")
                voxels, logits, positives, found = arrays[name]
                histograms[parse(subset), Region[region]] = Histogram(
                    voxels.astype(np.int64), logits, positives.astype(np.int64), found.astype(np.int64), int(studies)
                )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} does not hold counts ({error}). Remove it, and calibrate again.") from error
    return Counts(lines, histograms)


@dataclass(frozen=True)
class Temperature:
    """Of a subset and region."""

    value: float
    pooled: bool
    """Whether it is that of all subsets together."""


def _temperatures(fitted: Mapping[Key, Histogram]) -> dict[Key, Temperature]:
    """One for each subset and region; that of all subsets together where fewer than 8 studies show the region."""
    found = {}
    for region in {region for _, region in fitted}:
        ours = {subset: histogram for (subset, one), histogram in fitted.items() if one is region}
        together = sum(ours.values(), Histogram.empty())
        enough = max(histogram.studies for histogram in ours.values()) >= FEWEST_FITTED
        pooled = together.temperature() if enough else 1.0
        for subset in SUBSETS:
            own = ours.get(subset)
            alone = own is not None and own.studies >= FEWEST_CASES
            found[subset, region] = (
                Temperature(own.temperature(), False) if own and alone else Temperature(pooled, True)
            )
    return found


def _of(temperatures: Mapping[Key, Temperature], key: Key) -> Temperature:
    """1 for what no study of the fitting half had."""
    return temperatures.get(key, Temperature(1.0, True))


def _concluded(model: Model, files: Sequence[Path], population: str) -> Expectations:
    """What the counts of all studies come to, read one after another."""
    half, lines = math.ceil(len(files) / 2), list[Score]()
    fitted = dict[Key, Histogram]()
    for file in files[:half]:
        counts = _read_counts(file)
        lines += counts.lines
        _add(fitted, counts)
    temperatures = _temperatures(fitted)
    measured, errors = dict[Key, Histogram](), dict[Key, list[float]]()
    for file in files[half:]:
        counts = _read_counts(file)
        lines += counts.lines
        _add(measured, counts)
        for key, error in _errors(counts, temperatures).items():
            errors.setdefault(key, []).append(error)
    scores, regions = Scores(lines), model.network.regions
    bootstrap = Bootstrap(len(scores.studies))

    def expected(subset: Modality, region: Region) -> Expected:
        dice = scores.array("dice", region.name)[:, scores.subsets.index(subset.key)]
        key = (subset, region)
        counted, wrong, temperature = measured.get(key, Histogram.empty()), errors.get(key), _of(temperatures, key)
        return Expected(
            dice=bootstrap.interval(dice[:, None]),
            tenth=float(np.nanpercentile(dice, TENTH)),
            temperature=temperature.value,
            pooled=temperature.pooled,
            ece_before=counted.reliability().ece,
            ece_after=counted.reliability(temperature.value).ece,
            estimate_error=float(np.mean(wrong)) if wrong else math.nan,
        )

    return Expectations(
        population=population,
        studies=len(files),
        fitted_on=half,
        subsets={
            subset: {region: expected(subset, region) for region in regions} for subset in map(parse, scores.subsets)
        },
        gains=_gains(scores, [region for region in JUDGED if region in regions], bootstrap),
        choices=model.chosen,
    )


def _add(total: dict[Key, Histogram], counts: Counts) -> None:
    for key, histogram in counts.histograms.items():
        total[key] = total[key] + histogram if key in total else histogram


def _errors(counts: Counts, temperatures: Mapping[Key, Temperature]) -> dict[Key, float]:
    """How far the estimated Dice of one study is from its true one, wherever there is an estimate."""
    true = {(parse(line.subset), Region[line.region]): line.value for line in counts.lines}
    estimates = {key: one.estimated_dice(_of(temperatures, key).value) for key, one in counts.histograms.items()}
    return {key: abs(estimate - true[key]) for key, estimate in estimates.items() if not math.isnan(estimate)}


def _gains(scores: Scores, regions: Sequence[Region], bootstrap: Bootstrap) -> dict[Modality, tuple[Gain, ...]]:
    """What each absent sequence adds to each subset, over the cases that have both."""
    dice = np.stack([scores.array("dice", region.name) for region in regions])  # region study subset
    columns = {subset: scores.subsets.index(subset.key) for subset in SUBSETS if subset.key in scores.subsets}
    found: dict[Modality, list[Gain]] = {}
    for subset, sequence in additions(list(columns)):
        change = dice[:, :, columns[subset | sequence]] - dice[:, :, columns[subset]]
        intervals: dict[Region, Interval] = {
            region: bootstrap.interval(values[:, None]) for region, values in zip(regions, change, strict=True)
        }
        gain = Gain(sequence=sequence, mean=bootstrap.interval(change.mean(0)[:, None]), regions=intervals)
        found.setdefault(subset, []).append(gain)
    return {subset: tuple(gains) for subset, gains in found.items()}
