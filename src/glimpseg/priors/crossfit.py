"""Priors of SAM for a list of studies, cross-fitted: no study's prior comes from a decoder that saw its reference.

Everything is kept whole in the cache folder as it is made, named by content: features for each sequence, decoders for
each part of the list, priors. A run that was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from glimpseg.atomic import atomic_file
from glimpseg.data.cache import CachedCase
from glimpseg.data.prior_file import SUFFIX, write_prior
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
from glimpseg.priors.decoder import Decoder, Features, decoded, trained
from glimpseg.priors.sam import Encoder, slices_of, weights_digest, weights_of
from glimpseg.priors.settings import Prior

log = logging.getLogger(__name__)

VERSION = 1
"""Of what is computed here; part of every name."""


def cross_fitted(
    cases: Sequence[Path],
    settings: Prior,
    labels: Sequence[int],
    spacing_mm: float,
    folder: Path,
    device: torch.device,
) -> list[Path]:
    """The prior of each cached study, made where it is missing.

    Raises: UsageError for fewer than two patients or weights that are not there; ModelError for other weights than
        SAM's.
    """
    wanted, about = kept_at(cases, settings, labels, folder)
    if all(path.exists() for path in wanted):
        return wanted
    encoder = Encoder(settings, device)
    studies = [_Study(path, encoder, about, spacing_mm, folder) for path in cases]
    parts = folds([study.id for study in studies], settings.folds)
    everything = _key(about, sorted(path.name for path in cases))
    for number, study in enumerate(studies, 1):
        study.look()
        log.info("%d/%d %s seen by SAM's encoder", number, len(studies), study.id)
    for part in sorted(set(parts)):
        held_out = [study for study, own in zip(studies, parts, strict=True) if own == part]
        others = [study for study, own in zip(studies, parts, strict=True) if own != part]
        decoders = {}
        for modality in Modality:
            learned_from = [study.sequence(modality) for study in others if modality in study.available]
            if not learned_from:
                log.warning("No study outside part %d has %s: its priors there are empty.", part, modality.title)
                continue
            path = folder / f"sam-{everything}-{part}-{modality.key}.safetensors"
            decoders[modality] = _decoder(path, encoder, learned_from, settings, labels, part, device)
        for study in held_out:
            path = wanted[studies.index(study)]
            if not path.exists():
                maps = [
                    decoded(decoders[modality], study.sequence(modality), labels, device)
                    if modality in decoders
                    else np.zeros(study.case.shape, np.uint8)
                    for modality in study.available
                ]
                seen = {"patients_learned_from": len({patient(other.id) for other in others}), "part": part}
                write_prior(path, np.stack(maps), {**about, **seen, "study": study.id, "uses_reference": False})
        log.info("part %d of %d: priors of %d studies", part + 1, max(parts) + 1, len(held_out))
    for study in studies:
        study.forget()
    return wanted


def kept_at(
    cases: Sequence[Path], settings: Prior, labels: Sequence[int], folder: Path
) -> tuple[list[Path], dict[str, Any]]:
    """Where the prior of each cached study lies or will lie, and what decides its content besides the list.

    Raises: UsageError for weights that are not named or not there.
    """
    about = {
        "kind": "sam",
        "version": VERSION,
        "weights": weights_digest(weights_of(settings)),
        **{name: getattr(settings, name) for name in ("side", "scaling", "folds", "steps", "seed")},
        "labels": [int(label) for label in labels],
    }
    everything = _key(about, sorted(path.name for path in cases))
    return [folder / f"{path.stem}-{everything}{SUFFIX}" for path in cases], about


def folds(studies: Sequence[str], count: int) -> list[int]:
    """For each study the number of its part; a patient's are in one. Raises: UsageError for a single patient."""
    patients = sorted({patient(study) for study in studies})
    if len(patients) < 2:
        raise UsageError(
            f"The prior sam is cross-fitted and needs at least two patients, not {len(patients)}: a decoder may not "
            "see the reference of the study it is used on."
        )
    return [patients.index(patient(study)) % min(count, len(patients)) for study in studies]


def patient(study: str) -> str:
    """Whose study it is: in BraTS' releases since 2023 the last three digits count visits."""
    return re.sub(r"^(BraTS-\w+-\d+)-\d{3}$", r"\1", study)


class _Study:
    """A cached study, and what the encoder makes of its sequences."""

    def __init__(self, path: Path, encoder: Encoder, about: dict[str, Any], spacing_mm: float, folder: Path) -> None:
        self.case = CachedCase(path)
        if not self.case.has_target:
            raise InputError(f"The study {self.id} has no reference: decoders of the prior sam learn from them.")
        self._encoder, self._spacing_mm = encoder, spacing_mm
        name = _key({key: about[key] for key in ("version", "weights", "side", "scaling")}, [path.name])
        self._files = {m: folder / f"{path.stem}-{name}-{m.key}.features.safetensors" for m in self.available}

    @property
    def id(self) -> str:
        return self.case.id

    @property
    def available(self) -> Modality:
        return self.case.available

    @cached_property
    def reference(self) -> UInt8[np.ndarray, "x y z"]:
        target = self.case.crop((0, 0, 0), self.case.shape).target
        assert target is not None
        return target.astype(np.uint8)

    def look(self) -> None:
        """Writes the features of every sequence that has none yet."""
        missing = [modality for modality, path in self._files.items() if not _is_whole(path)]
        image = self.case.crop((0, 0, 0), self.case.shape).image if missing else np.zeros(0)
        for modality in missing:
            channel = image[list(Modality).index(modality)]
            brain = channel != np.float16(self.case.level(modality))
            pictures, places = slices_of(channel, brain, self._spacing_mm)
            with atomic_file(self._files[modality]) as temporary:
                save_arrays({"features": self._encoder.features(pictures), "places": np.array(places)}, temporary)

    def sequence(self, modality: Modality) -> _Sequence:
        """One sequence's features."""
        return _Sequence(self, self._files[modality])

    def forget(self) -> None:
        """Removes the features: 72 MiB of a study at 256 pixels, and of no more use."""
        for path in self._files.values():
            path.unlink(missing_ok=True)


class _Sequence(Features):
    """Features on disk, read slice by slice."""

    def __init__(self, study: _Study, path: Path) -> None:
        self._path, self.shape, self._study = path, study.case.shape, study
        with safe_open(path, "np") as file:
            self.places = file.get_tensor("places").tolist()

    @property
    def reference(self) -> UInt8[np.ndarray, "x y z"]:
        return self._study.reference

    def of(self, places: range) -> Float[np.ndarray, "n c h w"]:
        with safe_open(self._path, "np") as file:
            return file.get_slice("features")[places.start : places.stop]


def _decoder(
    path: Path,
    encoder: Encoder,
    learned_from: Sequence[_Sequence],
    settings: Prior,
    labels: Sequence[int],
    part: int,
    device: torch.device,
) -> Decoder:
    """From its file, or trained now."""
    if _is_whole(path):
        decoder = Decoder(encoder.channels, len(labels) + 1)
        decoder.load_state_dict(load_file(path))
        return decoder.to(device).eval()
    shown = [sequence for sequence in learned_from if sequence.places]
    decoder = trained(shown, encoder.channels, labels, settings.steps, settings.seed + part, device)
    with atomic_file(path) as temporary:
        save_file({name: value.cpu() for name, value in decoder.state_dict().items()}, temporary)
    return decoder


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, "np"):
            return True
    except (SafetensorError, OSError):
        return False


def _key(about: dict[str, Any], names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([about, list(names)], sort_keys=True).encode()).hexdigest()[:16]
