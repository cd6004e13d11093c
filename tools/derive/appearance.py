"""Derive the appearance of the sequences from phantoms: `src/glimpseg/data/identify/appearance.json`.

`python tools/derive/appearance.py [--cases 240] [--first-seed 50000] [-o FILE]`. Deterministic. Phantoms of 3 mm:
some operated on, some healthy; a third keep their brain's rim, the others lose 3 or 6 mm of it, as skull strippers do.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from glimpseg import phantom
from glimpseg.data.identify import appearance
from glimpseg.modality import Modality

TARGET = Path(__file__).parents[2] / "src/glimpseg/data/identify/appearance.json"
SETTINGS = phantom.Settings.at_spacing(appearance.COARSE_MM, post_operative=0.15, healthy=0.05)
WIDER = 2.0
"""Factor of the deviations between phantoms: patients, scanners and skull strippers differ more."""
KINDS = (0, 0, 1, 2)
"""Kind of each modality, in channel order."""


def eroded(inside: Bool[np.ndarray, "m x y z"], times: int) -> Bool[np.ndarray, "m x y z"]:
    """Brain mask without its outermost voxels."""
    return np.stack([ndimage.binary_erosion(one, iterations=times) if times else one for one in inside])


def cases(first: int, count: int) -> Iterator[tuple[Float[np.ndarray, "m x y z"], Bool[np.ndarray, "m x y z"]]]:
    """Images and brains of phantoms."""
    for seed in range(first, first + count):
        images = phantom.generate(seed, SETTINGS).images.numpy().astype(np.float32)
        yield images, eroded(images > 0, seed % 3)


def fitted(measures: Float[np.ndarray, "n m 4"], pairs: Float[np.ndarray, "n m m"]) -> dict[str, list[object]]:
    """Means and widened covariances by kind, means and widened deviations by pair of kinds."""
    by_kind = [
        measures[:, [m for m, other in enumerate(KINDS) if other == kind]].reshape(-1, len(appearance.MEASURES))
        for kind in range(len(appearance.KINDS))
    ]
    mean, deviation = np.zeros((2, len(appearance.KINDS), len(appearance.KINDS)))
    for one, two in itertools.combinations(range(len(Modality)), 2):
        place = (KINDS[one], KINDS[two])
        found = np.concatenate(
            [pairs[:, a, b] for a, b in itertools.combinations(range(4), 2) if (KINDS[a], KINDS[b]) == place]
        )
        mean[place], deviation[place] = found.mean(), WIDER * found.std()
        mean[place[::-1]], deviation[place[::-1]] = mean[place], deviation[place]
    for kind in (1, 2):  # two images of one kind resemble each other as T1 and T1c do
        mean[kind, kind], deviation[kind, kind] = mean[0, 0], deviation[0, 0]
    return {
        "mean": [np.nanmean(rows, 0).round(4).tolist() for rows in by_kind],
        "covariance": [(WIDER**2 * np.cov(rows[~np.isnan(rows).any(1)].T)).round(6).tolist() for rows in by_kind],
        "pair_mean": mean.round(4).tolist(),
        "pair_deviation": deviation.round(4).tolist(),
    }


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=240)
    parser.add_argument("--first-seed", type=int, default=50000)
    parser.add_argument("-o", type=Path, default=TARGET)
    chosen = parser.parse_args()
    measures, pairs = [], []
    for images, inside in cases(chosen.first_seed, chosen.cases):
        measures.append(appearance.appearance_measures(images, inside, appearance.COARSE_MM))
        pairs.append(appearance.correlations(images, inside))
    made = {"generator": phantom.NAME, "cases": chosen.cases, "first_seed": chosen.first_seed}
    content = {"made": made, **fitted(np.array(measures), np.array(pairs))}
    chosen.o.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
