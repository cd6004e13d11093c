"""Compare phantoms with patients: statistics, a network that tells them apart, a blind look, and false tumour.

    python benchmarks/realism.py measure CASES --labels 'MSD*=brats2023' -o real.json
    python benchmarks/realism.py measure --phantoms 12 --population wide -o wide.json
    python benchmarks/realism.py measure --phantoms 12 --population patients --shapes LABELS -o new.json
    python benchmarks/realism.py compare real.json wide.json -o compared.md
    python benchmarks/realism.py patches CASES --phantoms 10 --population wide -o patches
    python benchmarks/realism.py record real.json wide.json patches --heading Wide -o measured/realism-wide.json
    python benchmarks/realism.py blind CASES --population wide -o blind --seed 1
    python benchmarks/realism.py far MODEL CASES -o far.md

CASES is a folder with a folder for each real case: files that end in t1n, t1c, t2w, t2f (what exists of them) and in
seg or seg_silver (a tumour) or lesion (no tumour), `.nii.gz`; perhaps brainmask (the brain) and covered (what of the
field of view was scanned). Labels are read as brats2021 unless `--labels PATTERN=CONVENTION` names another convention.

Patients and phantoms are prepared alike, and expressed in units of normal brain: z = (I - median) / (0.7413 x
interquartile range), both over the brain at least 5 mm from every label.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from glimpseg import load
from glimpseg.modality import ALL
from glimpseg.phantom import POPULATIONS, Phantom, Settings, generate
from glimpseg.runtime.atomic import write_text
from likeness import comparison, far
from likeness.cases import Case, labelled_studies, phantom_cases, real_cases
from likeness.lesions import Statistics, lesion_statistics
from likeness.normal import normal_statistics
from likeness.outlines import outline_statistics
from likeness.patches import KINDS, SIDE_MM, all_verdicts, cut_all
from likeness.patches import table as table_of_patches
from likeness.pictures import draw_blind, draw_easiest
from turns import surroundings

FIRST_SEED = 700_000
"""Seed of the first phantom."""
FURTHEST = 20
"""Statistics in a record, the furthest off first."""
BLIND = 6
"""Patients and phantoms in a blind look, each."""


def main() -> None:
    """Run the subcommand."""
    wanted = _parser().parse_args()
    torch.set_num_threads(1)
    wanted.run(wanted)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)

    measure = parts.add_parser("measure", help="statistics of real cases, or of phantoms")
    measure.add_argument("cases", type=Path, nargs="?")
    _add_phantoms(measure, default=None)
    measure.set_defaults(run=_measure)

    compare = parts.add_parser("compare", help="table of patients against phantoms")
    compare.add_argument("real", type=Path)
    compare.add_argument("drawn", type=Path)
    compare.add_argument("-o", "--output", type=Path, required=True)
    compare.set_defaults(run=_compare)

    patches = parts.add_parser("patches", help="a small network tells patches of phantoms and patients apart")
    patches.add_argument("cases", type=Path)
    patches.add_argument("--patches", type=int, default=20, help="of each case, kind and sequence")
    patches.add_argument("--seed", type=int, default=0)
    _add_phantoms(patches, default=10)
    patches.set_defaults(run=_patches)

    blind = parts.add_parser("blind", help="six patients and six phantoms without names, and a key")
    blind.add_argument("cases", type=Path)
    blind.add_argument("--seed", type=int, required=True)
    _add_phantoms(blind, default=2 * BLIND)
    blind.set_defaults(run=_blind)

    record = parts.add_parser("record", help="what was found, as a record for results.py")
    record.add_argument("real", type=Path)
    record.add_argument("drawn", type=Path)
    record.add_argument("patches", type=Path, help="folder that `patches` wrote")
    record.add_argument("--heading", required=True)
    record.add_argument("-o", "--output", type=Path, required=True)
    record.set_defaults(run=_record)

    false = parts.add_parser("far", help="predicted tumour far from any label, for each subset of the sequences")
    false.add_argument("model")
    false.add_argument("cases", type=Path)
    _add_output(false)
    false.set_defaults(run=_far)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", nargs="+", default=[], metavar="PATTERN=CONVENTION")
    parser.add_argument("-o", "--output", type=Path, required=True)


def _add_phantoms(parser: argparse.ArgumentParser, default: int | None) -> None:
    parser.add_argument("--phantoms", type=int, default=default, metavar="N")
    parser.add_argument("--population", choices=POPULATIONS, default="wide")
    parser.add_argument("--anatomies", help="folder of label maps of heads, for populations of phantom-2")
    parser.add_argument("--shapes", help="folder of label maps of tumours, for populations of phantom-2")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--spacing", type=float, default=1.0, help="voxel side in mm (default: 1)")
    _add_output(parser)


def generator(wanted: argparse.Namespace) -> Callable[[int], Phantom]:
    """Return the function from seed to phantom that the options name."""
    folders = {name: given for name in ("anatomies", "shapes") if (given := getattr(wanted, name))}
    settings = Settings.at_spacing(wanted.spacing, **folders, **POPULATIONS[wanted.population])
    return lambda seed: generate(seed, settings)


def _conventions(wanted: argparse.Namespace) -> Mapping[str, str]:
    return dict(pair.split("=", 1) for pair in wanted.labels)


def _patients(wanted: argparse.Namespace) -> Iterator[Case]:
    return real_cases(wanted.cases, _conventions(wanted), wanted.spacing)


def _phantoms(wanted: argparse.Namespace) -> Iterator[Case]:
    return phantom_cases(generator(wanted), wanted.phantoms, wanted.first_seed)


# Subcommands


def _measure(wanted: argparse.Namespace) -> None:
    if (wanted.cases is None) == (wanted.phantoms is None):
        raise SystemExit("Name either a folder of real cases or --phantoms N with --population NAME.")
    cases = _patients(wanted) if wanted.phantoms is None else _phantoms(wanted)
    found: dict[str, Statistics] = {}
    for case in cases:
        found[case.name] = statistics_of(case)
        print(f"{case.name}: {len(found[case.name])} statistics", flush=True)
    name = "real" if wanted.phantoms is None else wanted.population
    comparison.Measured(name, wanted.spacing, found).write(wanted.output, surroundings())


def statistics_of(case: Case) -> Statistics:
    """Measure everything in a case."""
    found = normal_statistics(case)
    return found | lesion_statistics(case) | outline_statistics(case) if case.tumour else found


def _compare(wanted: argparse.Namespace) -> None:
    real, drawn = (comparison.Measured.read(path) for path in (wanted.real, wanted.drawn))
    rows = comparison.compared(real, drawn)
    summary = comparison.summary(rows)
    head = (
        f"{len(real.cases)} patients against {len(drawn.cases)} phantoms ({drawn.population}), {real.spacing_mm:g} mm."
    )
    write_text(wanted.output, f"{head}\n\n{summary}\n{comparison.table(rows)}")
    print(f"{head}\n\n{summary}")


def _patches(wanted: argparse.Namespace) -> None:
    patients, phantoms = (cut_all(cases(wanted), wanted.patches, wanted.seed) for cases in (_patients, _phantoms))
    begun = time.process_time()
    verdicts = all_verdicts(patients, phantoms, seed=wanted.seed, tell=lambda line: print(line, flush=True))
    seconds, rng = time.process_time() - begun, np.random.default_rng(wanted.seed)
    rows = [
        {
            "kind": kind,
            "sequence": modality.title,
            "accuracy": verdict.accuracy,
            "area": verdict.area,
            "deviation": verdict.deviation(rng),
            "case_area": verdict.case_area,
            "phantoms": verdict.cases[0],
            "patients": verdict.cases[1],
        }
        for (kind, modality), verdict in verdicts.items()
    ]
    wanted.output.mkdir(parents=True, exist_ok=True)
    content = {"population": wanted.population, "spacing_mm": wanted.spacing, "seconds": seconds, "rows": rows}
    write_text(wanted.output / "patches.json", json.dumps(content | surroundings(), indent=1) + "\n")
    for kind in KINDS:
        chosen = {key: verdict for key, verdict in verdicts.items() if key[0] == kind}
        if chosen:
            draw_easiest(chosen, wanted.output / f"easiest-{kind}.png")
    print(f"{seconds:.0f} processor seconds for training")


def _record(wanted: argparse.Namespace) -> None:
    real, drawn = (comparison.Measured.read(path) for path in (wanted.real, wanted.drawn))
    told = json.loads((wanted.patches / "patches.json").read_text("utf-8"))
    rows = comparison.compared(real, drawn)
    text = (
        f"{len(real.cases)} patients against {len(drawn.cases)} phantoms at {real.spacing_mm:g} mm, in units of normal "
        f"brain. *z* is the distance of the means in standard deviations between cases, *covered* the share of real "
        f"values within the central 95 % of the phantoms, *far off* the number of statistics with an absolute z above "
        f"{comparison.FAR_OFF:g}.\n\n{comparison.summary(rows)}\nFurthest off:\n\n{comparison.table(rows[:FURTHEST])}\n"
        f"A small network tells patches of {SIDE_MM:g} mm of phantoms from those of patients that it has not seen. 0.5 "
        f"means that it cannot.\n\n{table_of_patches(told['rows'])}"
    )
    measured = json.loads(wanted.drawn.read_text("utf-8"))
    about = {name: measured[name] for name in surroundings()}
    content = {"contests": [], "pages": [{"heading": wanted.heading, "text": text}], **about}
    write_text(wanted.output, json.dumps(content, indent=1) + "\n")


def _blind(wanted: argparse.Namespace) -> None:
    rng = np.random.default_rng(wanted.seed)
    patients, phantoms = (
        [case for case in cases if case.whole and case.tumour and set(case.images) == set(ALL)]
        for cases in (_patients(wanted), _phantoms(wanted))
    )
    if min(len(patients), len(phantoms)) < BLIND:
        raise SystemExit(
            f"A blind look needs {BLIND} patients and {BLIND} phantoms with a tumour, four sequences and the whole "
            f"brain; {len(patients)} and {len(phantoms)} were found. Name another folder, or more --phantoms."
        )
    chosen = [side[k] for side in (patients, phantoms) for k in rng.permutation(len(side))[:BLIND]]
    chosen = [chosen[k] for k in rng.permutation(len(chosen))]
    wanted.output.mkdir(parents=True, exist_ok=True)
    draw_blind(chosen, wanted.output / "blind.png")
    key = {str(number): case.name for number, case in enumerate(chosen, 1)}
    write_text(wanted.output / "key.json", json.dumps(key, indent=1) + "\n")


def _far(wanted: argparse.Namespace) -> None:
    model, found = load(wanted.model, device="cpu"), []
    for labelled in labelled_studies(wanted.cases, _conventions(wanted)):
        found += list(far.far_tumour(labelled, model))
        print(f"{labelled.study.id}: done", flush=True)
    write_text(wanted.output, far.table(found) + "\n" + far.single_table(found))
    print(far.table(found))


if __name__ == "__main__":
    main()
