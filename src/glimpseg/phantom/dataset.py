"""Dataset of phantoms: a folder of studies, named and numbered as in a BraTS release."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glimpseg import phantom
from glimpseg.data.layouts import release_named, write_study
from glimpseg.errors import UsageError
from glimpseg.modality import SUBSETS, Modality
from glimpseg.runtime.atomic import atomic_folder, write_json
from glimpseg.study import Study
from glimpseg.volume import Volume

log = logging.getLogger(__name__)

MANIFEST = "phantoms.json"


def write_phantoms(
    folder: str | Path,
    seeds: Iterable[int],
    settings: phantom.Settings,
    release: str,
    *,
    incomplete: float = 0.0,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
) -> list[Path]:
    """Write one study folder for each seed, and `phantoms.json` with settings and digests, all or nothing.

    Args:
        folder: Output folder.
        seeds: Seeds of the phantoms, one study each.
        settings: Grid and population.
        release: Name of the BraTS release whose file names, folder names and label numbers are used, such as
            `brats2023`.
        incomplete: Probability, from 0 to 1, that a study lacks one to three sequences. It and the missing ones depend
            on the seed alone.
        device: Torch device that renders the images.
        overwrite: Replace the folder if an earlier call has written it.

    Returns:
        The study folders, in the order of the seeds.

    Raises:
        UsageError: The folder holds files and may not be replaced (without `overwrite`, or without `phantoms.json` in
            it), `incomplete` is out of range, or the release is unknown.
        InputError: A phantom has a label that has no number in the release, such as a cavity in `brats2023`.
        ValueError: As `generate`.
        OutputError: The disk is full, read-only or not accessible.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as parent:
    ...     settings = phantom.Settings.at_spacing(4.0)
    ...     folders = write_phantoms(Path(parent) / "phantoms", [1, 2], settings, "brats2023")
    ...     [folder.name for folder in folders]
    ['PHANTOM-00001-000', 'PHANTOM-00002-000']
    """
    if not 0 <= incomplete <= 1:
        raise UsageError(f"--incomplete is a share of the studies, from 0 to 1, not {incomplete}.")
    layout, _ = release_named(release)
    names, records = [], []
    with atomic_folder(folder, overwrite=overwrite, mark=MANIFEST) as temporary:
        for seed in seeds:
            begun = time.perf_counter()
            case = phantom.generate(seed, settings, device)
            study = as_study(case)
            name = f"PHANTOM{layout.separator}{seed:05d}" + ("-000" if layout.separator == "-" else "")
            present = study.restricted_to(kept_sequences(seed, incomplete))
            images = {modality: image for modality, image in present.images.items() if isinstance(image, Volume)}
            reference = study.reference if isinstance(study.reference, Volume) else None
            write_study(temporary, name, images, reference=reference, release=release)
            names.append(name)
            records.append(_record(name, case, present.available))
            log.info("%s: %.1f s", name, time.perf_counter() - begun)
        manifest = {"generator": settings.name, "settings": settings.record(), "layout": release, "studies": records}
        write_json(temporary / MANIFEST, manifest)
    return [Path(folder) / name for name in names]


def kept_sequences(seed: int, incomplete: float) -> Modality:
    """Return the sequences that the study of a seed keeps.

    These are all four, or with probability `incomplete` one of the other 14 subsets.
    """
    rng = np.random.default_rng([seed, 14])
    which = int(rng.integers(len(SUBSETS) - 1))
    return SUBSETS[which] if rng.random() < incomplete else SUBSETS[-1]


def as_study(case: phantom.Phantom) -> Study:
    """Convert a phantom to a study, on its RAS grid."""
    images = {
        modality: Volume(channel.cpu().numpy().astype(np.float32), case.affine)
        for modality, channel in zip(Modality, case.images, strict=True)
    }
    return Study(f"phantom-{case.seed:08d}", images, Volume(case.labels.cpu().numpy().astype(np.uint8), case.affine))


def voxels_digest(case: phantom.Phantom) -> str:
    """Return the SHA-256 of a phantom's int16 images and uint8 labels, in that order."""
    digest = hashlib.sha256(case.images.cpu().to(torch.int16).numpy().tobytes())
    digest.update(case.labels.cpu().to(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _record(name: str, case: phantom.Phantom, available: Modality) -> dict[str, Any]:
    return {
        "study": name,
        "seed": case.seed,
        "available": available.key,
        "sha256": voxels_digest(case),
        **case.description,
    }
