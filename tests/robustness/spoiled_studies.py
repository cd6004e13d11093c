"""Spoil 12 of 60 phantoms, segment all of them as one batch, and count what `review.csv` finds.

    python tests/robustness/spoiled_studies.py [--seed 720000] [--kinds testing] [--incomplete 0]
        [--population standard] [-o OUT]

The thresholds of `segmentation.quality` were set on the seeds from 310000 and on the kinds `SETTING`. The default run
has other seeds, and other kinds or other strengths (`TESTING`). It prints which spoiled studies were caught, which were
missed, how many of the good ones were flagged, and how often each rule fired.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy import ndimage

import glimpseg
from glimpseg.batch.job import BatchOptions
from glimpseg.batch.review import REVIEW
from glimpseg.batch.tree import segment_tree
from glimpseg.data.layouts import write_study
from glimpseg.data.nifti import read_labels
from glimpseg.metrics import dice
from glimpseg.modality import Modality
from glimpseg.phantom import VARIETIES, Settings, Variety, generate
from glimpseg.phantom.dataset import as_study, kept_sequences
from glimpseg.region import Region, convention_named
from glimpseg.segmentation.inputs import study_entries
from glimpseg.segmentation.options import InferenceOptions
from glimpseg.study import Study
from glimpseg.volume import Volume

T1, T1C, T2, FLAIR = Modality
SPACING_MM = 3.0
STUDIES = 60
Arrays = dict[Modality, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Images of a phantom, and what a spoiler may use."""

    images: Arrays
    labels: np.ndarray
    other: Arrays
    """Images of another phantom."""
    draw: np.random.Generator

    @property
    def brain(self) -> np.ndarray:
        return np.logical_or.reduce([image > 0 for image in self.images.values()])

    @property
    def first(self) -> Modality:
        """FLAIR if it is there, else any sequence."""
        return FLAIR if FLAIR in self.images else next(iter(self.images))

    def with_image(self, modality: Modality, image: np.ndarray) -> Arrays:
        """Return the images, one of them replaced."""
        return {**self.images, modality: image.astype(np.float32)}

    def every(self, change: Callable[[np.ndarray], np.ndarray]) -> Arrays:
        """Return the images, each of them changed."""
        return {m: change(image).astype(np.float32) for m, image in self.images.items()}


Spoiler = Callable[[Case], Arrays]


def centre_of_tumour(case: Case) -> list[int]:
    """Return the index of the slice with most tumour along each axis."""
    mask = case.labels if case.labels.any() else case.brain
    return [int((mask > 0).sum(tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]


def zeroed(modality: Modality, axis: int, share: float) -> Spoiler:
    """Set the first part of a sequence along an axis of the brain to 0."""

    def spoil(case: Case) -> Arrays:
        image = case.images[modality].copy()
        places = np.flatnonzero(image.any(tuple({0, 1, 2} - {axis})))
        box = [slice(None)] * 3
        box[axis] = slice(0, int(places[0] + share * len(places)))
        image[tuple(box)] = 0
        return case.with_image(modality, image)

    return spoil


def swapped(one: Modality, two: Modality) -> Spoiler:
    """Exchange two sequences."""
    return lambda case: {**case.images, one: case.images[two], two: case.images[one]}


def flipped(modality: Modality, axis: int) -> Spoiler:
    """Mirror a sequence within the box of the brain."""

    def spoil(case: Case) -> Arrays:
        image, places = case.images[modality], np.flatnonzero(case.brain.any(tuple({0, 1, 2} - {axis})))
        box = [slice(None)] * 3
        box[axis] = slice(int(places[0]), int(places[-1]) + 1)
        flipped_image = np.zeros_like(image)
        flipped_image[tuple(box)] = np.flip(image[tuple(box)], axis)
        return case.with_image(modality, flipped_image)

    return spoil


def of_another(modality: Modality) -> Spoiler:
    """Take a sequence from another patient."""
    return lambda case: case.with_image(modality, case.other[modality])


def stripped_wrong(axis: int, end: int) -> Spoiler:
    """Cut half of the brain away in all sequences, as a skull-stripping that failed."""

    def spoil(case: Case) -> Arrays:
        keep = np.zeros(case.labels.shape, bool)
        places = np.flatnonzero(case.brain.any(tuple({0, 1, 2} - {axis})))
        middle = int(places.mean())
        box = [slice(None)] * 3
        box[axis] = slice(middle, None) if end else slice(0, middle)
        keep[tuple(box)] = True
        return case.every(lambda image: np.where(keep, image, 0))

    return spoil


def cut_through_tumour(axis: int) -> Spoiler:
    """End the field of view of all sequences in the middle of the tumour: the array itself is shorter."""

    def spoil(case: Case) -> Arrays:
        at = centre_of_tumour(case)[axis]
        longer = slice(at, None) if at < case.labels.shape[axis] / 2 else slice(0, at)
        box = [slice(None)] * 3
        box[axis] = longer
        return case.every(lambda image: image[tuple(box)])

    return spoil


def bias_field(strength: float, axis: int) -> Spoiler:
    """Multiply all sequences by a field that rises exponentially along an axis."""

    def spoil(case: Case) -> Arrays:
        ramp = np.linspace(-1, 1, case.labels.shape[axis])
        shape = [1, 1, 1]
        shape[axis] = -1
        field = np.exp(strength * ramp).reshape(shape)
        return case.every(lambda image: image * field)

    return spoil


def inverted(modality: Modality) -> Spoiler:
    """Invert the contrast of a sequence in the brain."""

    def spoil(case: Case) -> Arrays:
        image = case.images[modality]
        top = np.percentile(image[image > 0], 99.5)
        return case.with_image(modality, np.where(image > 0, np.clip(top - image, 1, None), 0))

    return spoil


def ghosts(share: float, axis: int, parts: int) -> Spoiler:
    """Add copies of the image that are shifted by a part of the field of view, in all sequences, air set to 0."""

    def spoil(case: Case) -> Arrays:
        brain = case.brain

        def one(image: np.ndarray) -> np.ndarray:
            step = image.shape[axis] // parts
            copies = sum(np.roll(image, n * step, axis) * (1 if n % 2 else -1) for n in range(1, parts))
            return np.where(brain, np.abs(image + share * copies), 0)

        return case.every(one)

    return spoil


def noise(share: float, only: Modality | None = None) -> Spoiler:
    """Add noise with a standard deviation that is a share of the mean of the brain, in the brain alone."""

    def spoil(case: Case) -> Arrays:
        def one(image: np.ndarray) -> np.ndarray:
            inside = image > 0
            sigma = share * image[inside].mean()
            return np.where(inside, np.maximum(image + case.draw.normal(0, sigma, image.shape), 1), 0)

        return {m: one(image) if only in (None, m) else image for m, image in case.images.items()}

    return spoil


def skull_left(width_mm: float) -> Spoiler:
    """Add a bright rim around the brain: scalp and skull that were not stripped."""

    def spoil(case: Case) -> Arrays:
        distance = ndimage.distance_transform_edt(~case.brain) * SPACING_MM
        scalp = (distance > 0.4 * width_mm) & (distance <= width_mm)
        bone = (distance > 0) & (distance <= 0.4 * width_mm)

        def one(image: np.ndarray) -> np.ndarray:
            mean = image[image > 0].mean()
            rim = mean * case.draw.normal(1.6, 0.3, image.shape).clip(0.3)
            return np.where(scalp, rim, np.where(bone, 0.2 * mean, image))

        return case.every(one)

    return spoil


def quantised(levels: int) -> Spoiler:
    """Round all sequences to a few levels."""

    def spoil(case: Case) -> Arrays:
        def one(image: np.ndarray) -> np.ndarray:
            unit = image.max() / levels
            return np.where(image > 0, np.ceil(image / unit) * unit, 0)

        return case.every(one)

    return spoil


def moved(modality: Modality, mm: tuple[float, float, float], degrees: float = 0.0) -> Spoiler:
    """Move and rotate a sequence against the others."""

    def spoil(case: Case) -> Arrays:
        image = case.images[modality]
        if degrees:
            image = ndimage.rotate(image, degrees, axes=(0, 1), reshape=False, order=1)
        return case.with_image(modality, ndimage.shift(image, np.array(mm) / SPACING_MM, order=1))

    return spoil


def blurred(sigma_mm: float) -> Spoiler:
    """Smooth all sequences within the brain."""

    def spoil(case: Case) -> Arrays:
        def one(image: np.ndarray) -> np.ndarray:
            inside = image > 0
            weight = ndimage.gaussian_filter(inside.astype(float), sigma_mm / SPACING_MM)
            smooth = ndimage.gaussian_filter(image, sigma_mm / SPACING_MM) / np.maximum(weight, 1e-3)
            return np.where(inside, np.maximum(smooth, 1), 0)

        return case.every(one)

    return spoil


def shuffled_slices(modality: Modality) -> Spoiler:
    """Put the even slices before the odd ones: an interleaved scan in the order of its acquisition."""

    def spoil(case: Case) -> Arrays:
        order = np.arange(case.labels.shape[2])
        return case.with_image(modality, case.images[modality][..., np.r_[order[::2], order[1::2]]])

    return spoil


def stripes(strength: float) -> Spoiler:
    """Multiply each slice of all sequences by a random factor."""

    def spoil(case: Case) -> Arrays:
        return case.every(lambda image: image * np.exp(strength * case.draw.normal(size=image.shape[2])))

    return spoil


def hole(case: Case) -> Arrays:
    """Set a ball of 25 mm at the tumour to 0 in all sequences, as a mask with a hole."""
    x, y, z = centre_of_tumour(case)
    grid = np.indices(case.labels.shape)
    near = ((grid - np.array([x, y, z])[:, None, None, None]) ** 2).sum(0) * SPACING_MM**2 < 25**2
    return case.every(lambda image: np.where(near, 0, image))


def clipped(case: Case) -> Arrays:
    """Cut all sequences off at their median: everything brighter is one value."""
    return case.every(lambda image: np.minimum(image, np.median(image[image > 0])))


SETTING: Mapping[str, Spoiler] = {
    "half of FLAIR is 0 (left)": zeroed(FLAIR, 0, 0.5),
    "T2 and FLAIR swapped": swapped(T2, FLAIR),
    "T1c and FLAIR swapped": swapped(T1C, FLAIR),
    "FLAIR mirrored left-right": flipped(FLAIR, 0),
    "FLAIR of another": of_another(FLAIR),
    "left half of the brain stripped": stripped_wrong(0, 1),
    "field of view ends in the tumour (z)": cut_through_tumour(2),
    "field of view ends in the tumour (x)": cut_through_tumour(0),
    "bias field of e^1.2 (x)": bias_field(1.2, 0),
    "T2 inverted": inverted(T2),
    "FLAIR inverted": inverted(FLAIR),
    "ghosts of 40 % (y)": ghosts(0.4, 1, 4),
    "noise of 40 %": noise(0.4),
    "skull left on (12 mm)": skull_left(12),
    "6 levels": quantised(6),
    "FLAIR moved by 15 mm": moved(FLAIR, (0, 15, 0)),
}
"""Kinds that the thresholds were set on."""
TESTING: Mapping[str, Spoiler] = {
    "upper 40 % of T2 is 0": zeroed(T2, 2, 0.4),
    "T1 and T2 swapped": swapped(T1, T2),
    "T1c mirrored left-right": flipped(T1C, 0),
    "T2 of another": of_another(T2),
    "front half of the brain stripped": stripped_wrong(1, 0),
    "field of view ends in the tumour (y)": cut_through_tumour(1),
    "bias field of e^1.5 (z)": bias_field(1.5, 2),
    "T1c inverted": inverted(T1C),
    "ghosts of 50 % (x)": ghosts(0.5, 0, 3),
    "noise of 40 % in FLAIR": noise(0.4, FLAIR),
    "skull left on (18 mm)": skull_left(18),
    "T1c turned by 20 degrees and moved by 10 mm": moved(T1C, (10, 0, 5), 20.0),
}
"""Kinds of the test: other sequences, other axes, other strengths."""
FURTHER: Mapping[str, Spoiler] = {
    "4 levels": quantised(4),
    "smoothed by 6 mm": blurred(6),
    "slices of FLAIR in the wrong order": shuffled_slices(FLAIR),
    "random factor of each slice": stripes(0.4),
    "hole at the tumour": hole,
    "clipped at the median": clipped,
    "FLAIR upside down": flipped(FLAIR, 2),
    "T1 of another": of_another(T1),
    "half of T1 is 0 (right)": zeroed(T1, 0, 0.5),
    "noise of 80 % in T2": noise(0.8, T2),
    "T2 moved by 8 mm": moved(T2, (8, 0, 0)),
    "T1 mirrored front-back": flipped(T1, 1),
}
"""More kinds that no threshold was set on."""
KINDS: Mapping[str, Mapping[str, Spoiler]] = {"setting": SETTING, "testing": TESTING, "further": FURTHER}


def arrays(study: Study) -> Arrays:
    """Return the images of a phantom as arrays."""
    return {m: image.voxels.astype(np.float32) for m, image in study.images.items() if isinstance(image, Volume)}


def spoiled(seed: int, settings: Settings, spoiler: Spoiler | None) -> tuple[Study, bool]:
    """Return a phantom with its images spoiled, and true if the reference still fits its grid."""
    study = as_study(generate(seed, settings))
    if spoiler is None:
        return study, True
    assert isinstance(study.reference, Volume)
    other = arrays(as_study(generate(seed + 5000, settings)))
    case = Case(
        images=arrays(study), labels=study.reference.voxels, other=other, draw=np.random.default_rng([seed, 77])
    )
    images = spoiler(case)
    fits = next(iter(images.values())).shape == study.reference.voxels.shape
    volumes = {m: Volume(image, study.reference.affine) for m, image in images.items()}
    return Study(study.id, volumes, study.reference if fits else None), fits


# The batch


@dataclass(frozen=True, kw_only=True)
class Made:
    """One study of the tree."""

    name: str
    kind: str | None
    """Kind of its spoiling; None for a good study."""
    reference: Volume | None
    """Reference, if it fits the images."""


def write_tree(
    folder: Path, kinds: Mapping[str, Spoiler], *, seed: int, incomplete: float, variety: Variety
) -> list[Made]:
    """Write the studies as a tree of NIfTI files, and return what they are.

    Every fifth study is spoiled until each kind was used once. Good studies lack sequences with probability
    `incomplete`, and every tenth study has no tumour.
    """
    made, waiting = [], list(kinds.items())
    for number in range(STUDIES):
        kind, spoiler = waiting.pop(0) if number % 5 == 4 and waiting else (None, None)
        healthy = 1.0 if kind is None and number % 10 == 0 else 0.0
        settings = Settings.at_spacing(SPACING_MM, variety=variety, healthy=healthy)
        study, _ = spoiled(seed + number, settings, spoiler)
        images = {m: image for m, image in study.images.items() if isinstance(image, Volume)}
        kept = kept_sequences(seed + number, incomplete if kind is None else 0.0)
        name = f"S{number:02d}"
        stored = {m: whole_numbers(image) for m, image in images.items() if m in kept}
        write_study(folder, name, stored, reference=None, release="brats2023")
        made.append(
            Made(name=name, kind=kind, reference=study.reference if isinstance(study.reference, Volume) else None)
        )
    return made


def whole_numbers(image: Volume) -> Volume:
    """Return an image in whole numbers that int16 holds."""
    factor = min(1.0, 32_000 / float(image.voxels.max()))
    return Volume(np.rint(image.voxels * factor).astype(np.float32), image.affine)


def segment(tree: Path, output: Path) -> dict[str, dict[str, str]]:
    """Segment a tree as `glimpseg segment -i` does, and return the rows of `review.csv` by study."""
    options = BatchOptions(inference=InferenceOptions(raw="no"))
    outcome = segment_tree(study_entries(tree), glimpseg.load(device="cpu"), output, options)
    with (output / REVIEW).open(newline="", encoding="utf-8") as file:
        rows = {row["study"]: row for row in csv.DictReader(file)}
    # A study that cannot be segmented is named in failures.json, and so is not missed.
    failed = {name: {"study": name, "look": "failed", "reasons": why} for name, why in outcome.failed.items()}
    return {**rows, **failed}


def true_dice(output: Path, study: Made) -> float | None:
    """Return the Dice of the whole tumour; None without a reference or a result on its grid."""
    path = output / study.name / "seg.nii.gz"
    if study.reference is None or not path.is_file() or not study.reference.voxels.any():
        return None
    found, reference = read_labels(path, convention_named("brats2024")).ras(), study.reference.ras()
    return dice(Region.WT.mask(found.voxels), Region.WT.mask(reference.voxels))


def main() -> None:
    """Print the studies that were caught, missed and flagged without a fault, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=720_000)
    parser.add_argument("--kinds", choices=sorted(KINDS), default="testing")
    parser.add_argument("--incomplete", type=float, default=0.0, help="share of the good studies that lack sequences")
    parser.add_argument("--population", choices=sorted(VARIETIES), default="standard", help="of all studies")
    parser.add_argument("-o", "--output", type=Path, help="keep the tree and the batch here")
    wanted = parser.parse_args()
    logging.disable(logging.WARNING)
    with TemporaryDirectory() as temporary:
        place = wanted.output or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        made = write_tree(
            place / "tree",
            KINDS[wanted.kinds],
            seed=wanted.seed,
            incomplete=wanted.incomplete,
            variety=VARIETIES[wanted.population],
        )
        rows = segment(place / "tree", place / "out")
        print_outcome(made, rows, place / "out")


def print_outcome(made: list[Made], rows: Mapping[str, Mapping[str, str]], output: Path) -> None:
    """Print a line for each study that was spoiled or flagged, and the counts."""
    counts, rules = Counter[str](), Counter[str]()
    for study in made:
        row, score = rows[study.name], true_dice(output, study)
        flagged = row["look"] != "no"
        outcome = {(True, True): "caught", (True, False): "missed", (False, True): "false alarm"}.get(
            (study.kind is not None, flagged), "good"
        )
        counts[outcome] += 1
        rules.update({(rule, outcome) for rule in row.get("rules", "").split()})
        if outcome != "good":
            number = "no reference" if score is None else f"Dice {score:.2f}"
            print(f"{outcome:11} {study.name} {study.kind or 'good'} ({number}): {row['reasons']}")
    print(f"\ncaught {counts['caught']}, missed {counts['missed']}, ", end="")
    print(f"false alarms {counts['false alarm']} of {counts['false alarm'] + counts['good']}")
    print("\n| rule | spoiled | good |\n|---|---|---|")
    for rule in sorted({rule for rule, _ in rules}):
        print(f"| {rule} | {rules[rule, 'caught']} | {rules[rule, 'false alarm']} |")


if __name__ == "__main__":
    main()
