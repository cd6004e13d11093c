"""Compare a method with numbers that its authors' code computed, and reduce them for the tests.

python tests/conformance/compare.py rfnet REFERENCE.npz
python tests/conformance/compare.py rfnet REFERENCE.npz --cut tests/conformance/rfnet.npz
python tests/conformance/compare.py rfnet tests/conformance/rfnet.npz --rounding

The last computes everything once in fp64 and several times in fp32: with this processor's instructions, with those of
older ones, and with results moved as if they were rounded otherwise. It stores in tests/conformance/rounding.npz how
far rounding moves each number.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from conformance import mstkdnet_reference, reference, smml_reference, voxmmsd_reference

ALONE = {"mstkdnet": mstkdnet_reference, "smml": smml_reference, "voxmmsd": voxmmsd_reference}
STRIDE = 4
"""Stride of the maps in a reduced file; the inputs stay complete."""
SETTINGS = (
    {},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
)
"""Environments of the fp32 runs, all with one thread: the CPU's own instructions, AVX2, and SSE4.1."""
SEEDS = (1, 2, 3)
"""Seeds of further runs, each with other rounding (`reference.Rounded`)."""


def main() -> None:
    """Compare, cut or measure the rounding, as the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("reference", type=Path)
    parser.add_argument("--cut", type=Path)
    parser.add_argument("--rounding", action="store_true")
    parser.add_argument("--numbers", type=Path, help="only store our numbers in fp32, pickled")
    parser.add_argument("--seed", type=int, help="of other rounding")
    parser.add_argument("--threads", type=int, default=2)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    stored = dict(np.load(wanted.reference))
    if wanted.cut:
        alone = ALONE.get(wanted.method)
        np.savez_compressed(wanted.cut, **(getattr(alone, "cut", cut))(stored))
        print(f"{wanted.cut}: {wanted.cut.stat().st_size / 1e6:.2f} MB")
    elif wanted.numbers:
        with nullcontext() if wanted.seed is None else reference.Rounded(wanted.seed):
            found = numbers(wanted.method, stored)
        wanted.numbers.write_bytes(pickle.dumps(found))
    elif wanted.rounding:
        with reference.in_fp64():
            exact = numbers(wanted.method, stored, torch.float64)
        keep(wanted.method, reference.scales(exact, runs(wanted.method, wanted.reference)))
    else:
        compare(wanted.method, stored)


def numbers(
    method: str, stored: dict[str, np.ndarray], dtype: torch.dtype = torch.float32
) -> dict[str, reference.Pair]:
    """Return all numbers of a method in the file, ours and the authors'."""
    if method in ALONE:
        return ALONE[method].numbers(stored, dtype)
    return reference.numbers(method, stored, dtype)


def runs(method: str, path: Path) -> list[dict[str, reference.Pair]]:
    """Return our fp32 numbers of every run, each in a separate process, because torch reads its settings on import."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "numbers"
        command = [sys.executable, __file__, method, str(path), "--threads=1", f"--numbers={out}"]
        each = [(environment, []) for environment in SETTINGS] + [({}, [f"--seed={seed}"]) for seed in SEEDS]
        for environment, words in each:
            subprocess.run([*command, *words], check=True, env={**os.environ, **environment})
            found.append(pickle.loads(out.read_bytes()))
    return found


def keep(method: str, scales: dict[str, float]) -> None:
    """Store the scales of one method; the larger one where an older scale is held, from another processor."""
    path = reference.HERE / "rounding.npz"
    held = dict(np.load(path)) if path.exists() else {}
    names, values = (held.get(f"{method}_{what}", np.array([])).tolist() for what in ("names", "scales"))
    older = dict(zip(names, values, strict=True))
    larger = {name: max(scale, older.get(name, 0.0)) for name, scale in scales.items()}
    held[f"{method}_names"] = np.array(list(larger))
    held[f"{method}_scales"] = np.array(list(larger.values()), np.float32)
    np.savez_compressed(path, **held)


def compare(method: str, stored: dict[str, np.ndarray]) -> None:
    """Prints by kind how many numbers are within their tolerance, and the worst; of numbers that the tests do not hold,
    which have no tolerance, the largest relative difference."""
    found = numbers(method, stored)
    held = set(dict(np.load(reference.HERE / "rounding.npz"))[f"{method}_names"].tolist())
    known = reference.shares(method, {name: pair for name, pair in found.items() if name in held})
    by_kind: dict[str, dict[str, float]] = {}
    for name, pair in found.items():
        unit = reference.size(pair.theirs)
        value = known.get(name, reference.size(pair.ours - pair.theirs) / unit if unit else 0.0)
        words = "" if name in known else ", not in the tests"
        by_kind.setdefault(reference.kind(name) + words, {})[name] = value
    if method == "voxmmsd":
        for name, value in voxmmsd_reference.differences(stored).items():
            tolerance = voxmmsd_reference.TOLERANCES.get(reference.kind(name), 0.0)
            by_kind.setdefault(f"{reference.kind(name)} by numpy", {})[name] = value / (tolerance or 1)
    for kind, values in by_kind.items():
        worst = max(values, key=lambda name: values[name])
        share = "relative difference" if kind.endswith("not in the tests") else "share of the tolerance"
        print(f"{kind:32} {len(values):4}, {share} at most {values[worst]:.1e} ({worst})")


def cut(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the file with its maps at a stride."""
    small = {}
    for name, value in stored.items():
        is_map = name.startswith(("eval_", "train_fuse", "train_sep", "train_prm", "train_refined"))
        step = STRIDE * value.shape[-1] // stored["x"].shape[-1] if is_map else 1
        small[name] = value[..., ::step, ::step, ::step] if is_map else value
    return small


if __name__ == "__main__":
    main()
