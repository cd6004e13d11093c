"""Measure on phantoms whether pretraining helps with few labels: from scratch against pretrained.

    python benchmarks/label_benchmark.py -o labels --methods unet [--shares 0.05 0.1 0.25 1] [--seeds 0 1 2]
    python benchmarks/label_benchmark.py -o labels --methods rfnet --set config.width=4 \\
        --pretraining-set backbone.config.width=4
    python benchmarks/label_benchmark.py -o labels --table

For each method and seed, `voxmmsd/phantom` pretrains the method's network on all training phantoms without labels;
then the method's recipe `phantom` is trained at each share, with and without it, for the same number of steps. Runs of
one seed see the same labelled phantoms and the same crops. All are scored on the same held-out phantoms. After a stop,
the same command goes on with what is missing. docs/methods/comparison.md says what the numbers can tell.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glimpseg.results.folder import read_evaluation
from glimpseg.results.statistics import Bootstrap, Interval
from glimpseg.runtime.atomic import write_text
from phantom_benchmark import FIRST_TEST_SEED, SPACING_MM, glimpseg, training_phantoms

REGIONS = ("WT", "TC", "ET")
INITS = ("scratch", "pretrained")
ALL = "t1+t1c+t2+flair"


class Cell(NamedTuple):
    """One training."""

    method: str
    share: float
    seed: int
    init: str

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.method}-{100 * self.share:g}-{self.init}-{self.seed}"


def main() -> None:
    """Train, score and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["unet", "rfnet"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.25, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pretraining-steps", type=int, default=450)
    parser.add_argument("--training-cases", type=int, default=64)
    parser.add_argument("--cases", type=int, default=16, help="held-out phantoms")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="changes of the recipe")
    parser.add_argument(
        "--pretraining-set", nargs="+", default=[], metavar="FIELD=VALUE", help="and of the pretraining's"
    )
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side, which share the processor's threads")
    parser.add_argument("--table", action="store_true", help="only the tables and the figure of what is finished")
    wanted = parser.parse_args()
    place = wanted.output
    cells = [
        Cell(method, share, seed, init)
        for method in wanted.methods
        for seed in wanted.seeds
        for share in wanted.shares
        for init in INITS
    ]
    if not wanted.table:
        phantoms = place / "phantoms"
        if not phantoms.exists():
            count, first, spacing = str(wanted.cases), str(FIRST_TEST_SEED), str(SPACING_MM)
            glimpseg("phantom", "-o", phantoms, "--count", count, "--seed", first, "--spacing", spacing)
        archive = training_phantoms(place, wanted.training_cases)
        threads = str(max((os.cpu_count() or 1) // wanted.at_once, 1))
        changes = [f"optim.steps={wanted.steps}", *wanted.set]
        before = [f"optim.steps={wanted.pretraining_steps}", *wanted.pretraining_set]
        pairs = [(method, seed) for method in wanted.methods for seed in wanted.seeds]
        with ThreadPoolExecutor(wanted.at_once) as pool:
            list(pool.map(lambda one: pretrain(place, archive, *one, before, threads), pairs))
            list(pool.map(lambda cell: train_and_score(place, archive, cell, changes, threads), cells))
    write_tables(place, [cell for cell in cells if (place / f"{cell.name}-evaluation" / "report.html").exists()])


def pretrain(place: Path, archive: Path, method: str, seed: int, changes: list[str], threads: str) -> None:
    """Pretrain a method's network, or go on with it."""
    run = place / f"{method}-pretraining-{seed}"
    if not (run / "model").exists():
        chosen = [f"--set={change}" for change in (*changes, f"seed={seed}")] + [f"--backbone={method}/phantom"]
        go_on = ["--resume"] if run.exists() else []
        data = ["--data", archive, "--cache", archive.with_name("cache")]
        glimpseg("pretrain", "voxmmsd/phantom", "-o", run, *data, *chosen, *go_on, threads=threads)


def train_and_score(place: Path, archive: Path, cell: Cell, changes: list[str], threads: str) -> None:
    """Train and evaluate one cell, or go on with it."""
    run, evaluation = place / cell.name, place / f"{cell.name}-evaluation"
    if not (run / "model").exists():
        chosen = [f"--set={change}" for change in (*changes, f"seed={cell.seed}")] + [f"--labelled={cell.share}"]
        pretraining = place / f"{cell.method}-pretraining-{cell.seed}"
        begin = ["--init", pretraining, "--part=encoder+decoder"] if cell.init == "pretrained" else []
        go_on = ["--resume"] if run.exists() else []
        data = ["--data", archive, "--cache", archive.with_name("cache")]
        glimpseg("train", f"{cell.method}/phantom", "-o", run, *data, *chosen, *begin, *go_on, threads=threads)
    if not (evaluation / "report.html").exists():
        go_on = ["--resume"] if evaluation.exists() else []
        glimpseg(
            "evaluate", run, "--data", place / "phantoms", "-o", evaluation, "--metrics=dice", *go_on, threads=threads
        )


def write_tables(place: Path, cells: list[Cell]) -> None:
    """Print a Markdown table, write all numbers as CSV and the means as a figure."""
    rows = list(compared(place, cells))
    if not rows:
        return
    with (place / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    heads = ("method", "labels", "subsets", "from scratch", "pretrained", "difference", "seeds ahead")
    lines = [f"| {' | '.join(heads)} |", "|---|--:|---|--:|--:|--:|--:|"]
    for row in rows:
        if row["region"] == "mean":
            numbers = " | ".join(in_words(row, name) for name in (*INITS, "difference"))
            ahead = f"{row['seeds_ahead']} of {row['seeds']}"
            lines.append(f"| `{row['method']}` | {row['share']:.0%} | {row['subsets']} | {numbers} | {ahead} |")
    write_text(place / "labels.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    draw(place / "labels.png", rows)


def compared(place: Path, cells: list[Cell]) -> Iterator[dict]:
    """Rows for every method, share, region and set of subsets: Dice in %, mean over seeds and cases, and the paired
    difference, with 95 % intervals over cases. Seeds that lack one of the two trainings are left out."""
    done = set(cells)
    for method, share in dict.fromkeys((cell.method, cell.share) for cell in cells):
        seeds = [
            cell.seed
            for cell in cells
            if (cell.method, cell.share, cell.init) == (method, share, INITS[0])
            and cell._replace(init=INITS[1]) in done
        ]
        if not seeds:
            continue
        found = {init: np.stack([dice(place, Cell(method, share, seed, init)) for seed in seeds]) for init in INITS}
        for subsets, columns in (("all 15", slice(None)), ("all four sequences", slice(-1, None))):
            for number, region in enumerate((*REGIONS, "mean")):
                # seed case subset region -> case subset
                parts = {
                    init: 100 * (values.mean(-1) if region == "mean" else values[..., number])[..., columns].mean(0)
                    for init, values in found.items()
                }
                bootstrap = Bootstrap(parts[INITS[0]].shape[0])
                intervals = {init: bootstrap.interval(values) for init, values in parts.items()}
                intervals["difference"] = bootstrap.interval(parts[INITS[1]] - parts[INITS[0]])
                of_seed = np.nanmean(found[INITS[1]] - found[INITS[0]], axis=(1, 2, 3)) if region == "mean" else []
                yield {
                    "method": method,
                    "share": share,
                    "subsets": subsets,
                    "region": region,
                    "seeds": len(seeds),
                    **{f"{name}_{end}": round(v, 2) for name, i in intervals.items() for end, v in ends(i)},
                    "seeds_ahead": int(sum(100 * value > 0 for value in of_seed)),
                }


def dice(place: Path, cell: Cell) -> np.ndarray:
    """Dice of each case, subset and region; the last subset is all four sequences."""
    scores = read_evaluation(place / f"{cell.name}-evaluation").scores
    assert scores.subsets[-1] == ALL
    return np.stack([scores.array("dice", region) for region in REGIONS], -1)


def ends(interval: Interval) -> Iterator[tuple[str, float]]:
    """Mean and ends of an interval, by name."""
    yield from (("mean", interval.mean), ("low", interval.low), ("high", interval.high))


def in_words(row: dict, name: str) -> str:
    """Text of a mean and its interval."""
    sign = "+" if name == "difference" else ""
    mean, low, high = (row[f"{name}_{end}"] for end in ("mean", "low", "high"))
    return f"{mean:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def draw(path: Path, rows: list[dict]) -> None:
    """Draw the mean Dice over the share of labels, a panel for each method and set of subsets."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row["method"] for row in rows))
    sets = list(dict.fromkeys(row["subsets"] for row in rows))
    figure = Figure(figsize=(4.2 * len(sets), 3.2 * len(methods)), layout="constrained")
    panels = figure.subplots(len(methods), len(sets), squeeze=False, sharex=True)
    for line, method in zip(panels, methods, strict=True):
        for panel, subsets in zip(line, sets, strict=True):
            kept = [r for r in rows if (r["method"], r["subsets"], r["region"]) == (method, subsets, "mean")]
            shares = [100 * row["share"] for row in kept]
            for init, colour in zip(INITS, ("#8a8a8a", "#0b6e99"), strict=True):
                panel.plot(shares, [row[f"{init}_mean"] for row in kept], "o-", color=colour, label=init)
                low, high = ([row[f"{init}_{end}"] for row in kept] for end in ("low", "high"))
                panel.fill_between(shares, low, high, color=colour, alpha=0.15, linewidth=0)
            panel.set(title=f"{method}, {subsets}", xscale="log", xticks=shares)
            panel.set_xticklabels([f"{share:g} %" for share in shares])
            panel.minorticks_off()
            panel.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("Dice, %, mean of WT, TC, ET")
    panels[-1][0].set_xlabel("labelled studies")
    panels[0][0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
