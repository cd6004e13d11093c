"""Compares a method with numbers that its authors' code computed, and cuts them small for the tests.

python scripts/conformance.py rfnet REFERENCE.npz
python scripts/conformance.py rfnet REFERENCE.npz --cut tests/conformance/rfnet.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "conformance"))
import reference

STRIDE = 4
"""Of the maps in a cut; the inputs stay whole."""


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("reference", type=Path)
    parser.add_argument("--cut", type=Path)
    wanted = parser.parse_args()
    torch.set_num_threads(2)
    stored = dict(np.load(wanted.reference))
    if wanted.cut:
        np.savez_compressed(wanted.cut, **cut(stored))
        print(f"{wanted.cut}: {wanted.cut.stat().st_size / 1e6:.2f} MB")
        return
    found = reference.differences(wanted.method, stored)
    for name, value in found.items():
        if not name.startswith("gradient"):
            print(f"{name:20} {value:.1e}")
    gradients = {name: value for name, value in found.items() if name.startswith("gradient")}
    worst = max(gradients, key=lambda name: gradients[name])
    print(f"{len(gradients)} gradient norms: at most {gradients[worst]:.3f} of their tolerance ({worst})")


def cut(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with its maps at a stride."""
    small = {}
    for name, value in stored.items():
        is_map = name.startswith(("eval_", "train_fuse", "train_sep", "train_prm"))
        step = STRIDE * value.shape[-1] // stored["x"].shape[-1] if is_map else 1
        small[name] = value[..., ::step, ::step, ::step] if is_map else value
    return small


if __name__ == "__main__":
    main()
