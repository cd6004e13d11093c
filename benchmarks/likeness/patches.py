"""Classifier two-sample test: a small network is told to tell patches of phantoms from patches of patients.

If it cannot on cases that it has not seen, phantoms look like patients at the scale of a patch. Where it can, its most
confident patches show by which properties.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor, nn

from glimpseg.modality import Modality
from likeness.cases import Case, Mask
from likeness.lesions import area_under_curve

SIDE_MM = 24.0
"""Side of a patch."""
LIMITS = (-6.0, 10.0)
"""Intensities are clipped here, in units of normal brain."""
OUTSIDE = -6.0
"""Intensity outside the brain, in units of normal brain."""
SCALE = 2.0
"""Intensities are divided by this before the network."""
DETAIL = 5.0
"""Enlargement of detail finer than 3 voxels before the network."""
NORMAL_SHARE, BORDER_SHARE, TUMOUR_SHARE = 0.95, (0.3, 0.7), 0.25
"""Share of a patch that is brain: in a normal one at least, at the border from and to. Least share of tumour."""
KINDS = ("normal", "border", "tumour")

Patch = Float[np.ndarray, "n side side side"]


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of one sequence and one kind from several cases."""

    values: Patch
    """Intensities in units of normal brain, `OUTSIDE` outside the brain."""
    case: Int[np.ndarray, " n"]
    """Number of the case of each patch."""
    phantom: Bool[np.ndarray, " n"]
    """Whether the patch is of a phantom."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training of the network that tells patches apart."""

    folds: int = 4
    epochs: int = 10
    batch: int = 32
    rate: float = 5e-3
    """Largest learning rate of Adam; it falls to 0 as a cosine."""
    decay: float = 1e-3
    """Weight decay."""
    width: int = 8
    """Channels of the first layer."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """Result of the test for one sequence and kind, from patches of cases that the network had not seen."""

    logits: Float[np.ndarray, " n"]
    """Above 0: the network takes the patch for a phantom's."""
    patches: Patches

    @property
    def accuracy(self) -> float:
        """Share of patches told right; each side counts half."""
        right = (self.logits > 0) == self.patches.phantom
        return float(np.mean([right[self.patches.phantom].mean(), right[~self.patches.phantom].mean()]))

    @property
    def area(self) -> float:
        """Area under the ROC curve of patches."""
        return area_under_curve(self.logits[self.patches.phantom], self.logits[~self.patches.phantom])

    @property
    def case_area(self) -> float:
        """Area under the ROC curve of cases, by the mean of their patches."""
        phantoms, patients = (self._case_means(side) for side in (True, False))
        return area_under_curve(phantoms, patients)

    @property
    def cases(self) -> tuple[int, int]:
        """Numbers of phantoms and of patients."""
        phantom, patients = self.patches.phantom, self.patches.case[~self.patches.phantom]
        return len(np.unique(self.patches.case[phantom])), len(np.unique(patients))

    def deviation(self, rng: np.random.Generator, repeat: int = 200) -> float:
        """Standard error of `area`: standard deviation over samples of the cases with replacement."""
        of_case = {number: np.flatnonzero(self.patches.case == number) for number in np.unique(self.patches.case)}
        sides = [np.unique(self.patches.case[self.patches.phantom == side]) for side in (True, False)]
        found = []
        for _ in range(repeat):
            one, two = (np.concatenate([of_case[k] for k in rng.choice(side, len(side))]) for side in sides)
            found.append(area_under_curve(self.logits[one], self.logits[two]))
        return float(np.std(found))

    def easiest(self, phantom: bool, count: int) -> list[int]:
        """Return the patches told right most confidently, the most confident of each case, at most `count`."""
        order = np.argsort(-self.logits if phantom else self.logits)
        best: dict[int, int] = {}
        for number in order[self.patches.phantom[order] == phantom]:
            best.setdefault(int(self.patches.case[number]), int(number))
        return list(best.values())[:count]

    def _case_means(self, phantom: bool) -> Float[np.ndarray, " k"]:
        numbers = np.unique(self.patches.case[self.patches.phantom == phantom])
        return np.array([self.logits[self.patches.case == number].mean() for number in numbers])


# Cutting


def centres(case: Case, kind: str) -> Mask:
    """Return the voxels around which patches of a kind may be cut.

    Args:
        case: the case.
        kind: `normal`: brain without a label nearby; `border`: the surface of the brain without a label nearby, none
            in a slab; `tumour`: labelled voxels, none in a case without tumour.
    """
    side = round(SIDE_MM / case.spacing_mm)
    inside = ndimage.uniform_filter(case.brain.astype(np.float64), side, mode="constant")
    if kind == "tumour":
        share = ndimage.uniform_filter((case.labels > 0).astype(np.float64), side, mode="constant")
        return (case.labels > 0) & (share >= TUMOUR_SHARE) & case.tumour
    apart = case.apart_mm > SIDE_MM / 2 * math.sqrt(3)
    if kind == "normal":
        return apart & (inside >= NORMAL_SHARE)
    low, high = BORDER_SHARE
    return apart & (inside >= low) & (inside <= high) & case.whole


def cut(case: Case, kind: str, count: int, rng: np.random.Generator) -> Mapping[Modality, Patch]:
    """Cut patches at random places, the same in all sequences. Beyond the image there is air.

    Returns: patches of each available sequence; nothing if there is no place.
    """
    side = round(SIDE_MM / case.spacing_mm)
    corners = np.argwhere(centres(case, kind))  # after the padding by half a side, a centre is a corner
    if not len(corners):
        return {}
    boxes = [tuple(slice(at, at + side) for at in corner) for corner in corners[rng.integers(len(corners), size=count)]]
    found = {}
    for modality, image in case.images.items():
        shown = np.where(case.brain, np.clip(image, *LIMITS), OUTSIDE).astype(np.float32)
        padded = np.pad(shown, side // 2, constant_values=OUTSIDE)
        found[modality] = np.stack([padded[box] for box in boxes])
    return found


def gather(
    patients: Sequence[Mapping[Modality, Patch]], phantoms: Sequence[Mapping[Modality, Patch]], modality: Modality
) -> Patches | None:
    """Put together the patches of one sequence from equally many patients and phantoms.

    Args:
        patients: patches that `cut` made, one entry for each patient.
        phantoms: the same of phantoms; the first ones are taken.
        modality: the sequence.

    Returns: None if either side has fewer than two cases.
    """
    sides = [[case[modality] for case in side if modality in case] for side in (patients, phantoms)]
    number = min(map(len, sides))
    if number < 2:
        return None
    values = [*sides[0][:number], *sides[1][:number]]
    case = np.repeat(np.arange(len(values)), [len(part) for part in values])
    return Patches(np.concatenate(values), case, case >= number)


# Telling apart


class Judge(nn.Module):
    """Network of three convolutions: `channels` of a patch to a logit, above 0 for a phantom; 14,617 parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 3 * width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv3d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm3d(after))
            for before, after in itertools.pairwise(widths)
        )
        self.last = nn.Linear(2 * widths[-1], 1)

    def forward(self, features: Float[Tensor, "b 3 side side side"]) -> Float[Tensor, " b"]:
        """Return a logit for each patch of `channels`."""
        for layer in self.layers:
            features = torch.relu(layer(features))
        return self.last(torch.cat([features.mean((2, 3, 4)), features.amax((2, 3, 4))], 1))[:, 0]


def channels(patches: Patch) -> Float[Tensor, "n 3 side side side"]:
    """Return the intensity, its detail (the difference from the mean of 3 x 3 x 3 voxels, enlarged), and the mask."""
    found = np.zeros((len(patches), 3, *patches.shape[1:]), np.float32)
    for patch, (values, detail, inside) in zip(patches, found, strict=True):
        inside[:] = patch > OUTSIDE
        values[:] = patch * inside / SCALE
        share = ndimage.uniform_filter(inside, 3, mode="nearest")
        mean = ndimage.uniform_filter(values, 3, mode="nearest") / np.maximum(share, 1e-3)
        detail[:] = DETAIL * (values - mean) * inside
    return torch.from_numpy(found).contiguous(memory_format=torch.channels_last_3d)


def judge(patches: Patches, training: Training, seed: int) -> Verdict:
    """Train on all cases but a fold, tell the patches of that fold apart, for each fold.

    A fold has the same share of patients and phantoms, as far as their numbers allow. The patches of a case are in one
    fold.
    """
    rng = np.random.default_rng(seed)
    fold_of = _folds(patches, training.folds, rng)
    fold = np.array([fold_of[int(number)] for number in patches.case])
    logits = np.zeros(len(patches.case))
    values = channels(patches.values)
    target = torch.from_numpy(patches.phantom.astype(np.float32))
    for number in sorted(set(fold_of.values())):
        held_out = np.flatnonzero(fold == number)
        seen = torch.from_numpy(np.flatnonzero(fold != number))
        network = _trained(values[seen], target[seen], training, int(rng.integers(2**31)))
        with torch.no_grad():
            logits[held_out] = network(values[torch.from_numpy(held_out)]).numpy()
    return Verdict(logits, patches)


def _folds(patches: Patches, count: int, rng: np.random.Generator) -> dict[int, int]:
    found: dict[int, int] = {}
    for side in (True, False):
        numbers = rng.permutation(np.unique(patches.case[patches.phantom == side]))
        found |= {int(number): place % min(count, len(numbers)) for place, number in enumerate(numbers)}
    return found


def _trained(
    values: Float[Tensor, "n 3 side side side"], target: Float[Tensor, " n"], training: Training, seed: int
) -> Judge:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Judge(training.width)
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=training.rate, weight_decay=training.decay)
    steps = training.epochs * math.ceil(len(target) / training.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(training.epochs):
        for chosen in torch.randperm(len(target), generator=generator).split(training.batch):
            flipped = [axis + 2 for axis in range(3) if torch.rand((), generator=generator) < 0.5]
            loss = nn.functional.binary_cross_entropy_with_logits(network(values[chosen].flip(flipped)), target[chosen])
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
    return network.eval()


Cuts = Mapping[str, Sequence[Mapping[Modality, Patch]]]
"""Patches by kind, one entry for each case."""


def cut_all(cases: Iterable[Case], count: int, seed: int) -> Cuts:
    """Cut patches of every kind from each case in turn; no case is kept."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Mapping[Modality, Patch]]] = {kind: [] for kind in KINDS}
    for case in cases:
        for kind in KINDS:
            found[kind].append(cut(case, kind, count, rng))
    return found


def all_verdicts(
    patients: Cuts, phantoms: Cuts, seed: int, tell: Callable[[str], None]
) -> dict[tuple[str, Modality], Verdict]:
    """Run the test for every kind and sequence that two patients or more have.

    Args:
        patients: patches of real cases.
        phantoms: patches of phantoms; of as many as there are patients.
        seed: seed of folds and training.
        tell: called with a line for each result.
    """
    found: dict[tuple[str, Modality], Verdict] = {}
    for kind in KINDS:
        for modality in Modality:
            patches = gather(patients[kind], phantoms[kind], modality)
            if patches is not None:
                found[kind, modality] = verdict = judge(patches, Training(), seed)
                tell(f"{kind} {modality.title}: accuracy {verdict.accuracy:.2f}, area {verdict.area:.2f}")
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of the results that `realism.py patches` writes."""
    text = [
        "| patches | sequence | accuracy | AUC of patches +- standard error | AUC of cases | patients, phantoms |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        area = f"{row['area']:.2f} +- {row['deviation']:.2f}"
        cells = (row["kind"], row["sequence"], f"{row['accuracy']:.2f}", area, f"{row['case_area']:.2f}")
        text.append(f"| {' | '.join(cells)} | {row['patients']}, {row['phantoms']} |")
    return "\n".join(text) + "\n"
