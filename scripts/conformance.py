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

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conformance import mstkdnet_reference, reference, smml_reference, voxmmsd_reference

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
    alone = {"mstkdnet": mstkdnet_reference, "smml": smml_reference, "voxmmsd": voxmmsd_reference}.get(wanted.method)
    if wanted.cut:
        np.savez_compressed(wanted.cut, **(getattr(alone, "cut", cut))(stored))
        print(f"{wanted.cut}: {wanted.cut.stat().st_size / 1e6:.2f} MB")
        return
    if alone is voxmmsd_reference:
        by_family(alone.compared(stored))
        return
    found = alone.differences(stored) if alone else reference.differences(wanted.method, stored)
    many = {
        "gradient": "gradient norms: at most {:.3f} of their tolerance",
        "after": "sums after a step: off by at most {:.1e} an element",
    }
    for name, value in found.items():
        if not name.startswith(tuple(many)):
            print(f"{name:60} {value:.1e}")
    for kind, words in many.items():
        of_kind = {name: value for name, value in found.items() if name.startswith(kind)}
        if of_kind:
            worst = max(of_kind, key=lambda name: of_kind[name])
            print(f"{len(of_kind)} {words.format(of_kind[worst])} ({worst})")


def by_family(found: dict[str, float]) -> None:
    """Of each family how many checks are within its tolerance, and the largest difference."""
    for family in voxmmsd_reference.TOLERANCES:
        of_family = {name: value for name, value in found.items() if name.startswith(f"{family}/")}
        passed = sum(value <= voxmmsd_reference.tolerance(name) for name, value in of_family.items())
        worst = max(of_family, key=lambda name: of_family[name])
        most = f"at most {of_family[worst]:.1e} ({worst})"
        print(f"{family:6} {passed:3} of {len(of_family):3} within their tolerance, {most}")


def cut(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with its maps at a stride."""
    small = {}
    for name, value in stored.items():
        is_map = name.startswith(("eval_", "train_fuse", "train_sep", "train_prm", "train_refined"))
        step = STRIDE * value.shape[-1] // stored["x"].shape[-1] if is_map else 1
        small[name] = value[..., ::step, ::step, ::step] if is_map else value
    return small


if __name__ == "__main__":
    main()
