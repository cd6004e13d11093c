"""Priors of SAM for a list of studies, cross-fitted: no study's prior comes from a decoder that saw its reference.

Everything is kept whole in the cache folder as it is made, named by content: features for each sequence, decoders for
each part of the list, priors. A run that was killed goes on. One process at a time works in a folder.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from glimpseg.data.cache import CachedCase
from glimpseg.data.prior_cache import SUFFIX, prior_key, write_prior
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
from glimpseg.priors.decoder import Decoder, Features, decoded, trained
from glimpseg.priors.sam import Encoder, slices_of, weights_digest, weights_of
from glimpseg.priors.settings import Prior
from glimpseg.runtime.atomic import atomic_file
from glimpseg.runtime.distributed import rank_and_world

log = logging.getLogger(__name__)

VERSION = 3
"""Of what is computed here; part of every name."""
LOCK = ".priors.lock"


def cross_fitted(
    cases: Sequence[Path],
    settings: Prior,
    labels: Sequence[int],
    spacing_mm: float,
    folder: Path,
    device: torch.device,
) -> list[Path]:
    """The prior of each cached study, made where it is missing; waits for another process that makes some there.

    Raises: UsageError for fewer than two patients, weights that are not there, or several ranks with something to make;
        ModelError for other weights than SAM's.
    """
    wanted, about = kept_at(cases, settings, labels, folder)
    if all(path.exists() for path in wanted):
        return wanted
    if rank_and_world()[1] > 1:
        raise UsageError(
            "Priors of SAM take longer to make than ranks wait for each other. Make them with `glimpseg prepare` "
            "first, with the same recipe, settings and list, and name its folder with --cache."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        missing = sum(not path.exists() for path in wanted)
        log.info("Of %d priors %d are missing and made now, with %s.", len(wanted), missing, _in_words(settings))
        if missing:
            studies = [_Study(path, about, spacing_mm, folder) for path in cases]
            _make(studies, wanted, about, settings, labels, folder, device)
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
    return [folder / f"{path.stem}-{_list_key(about, cases)}{SUFFIX}" for path in cases], about


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
    """Whose study it is: the last digits count visits in BraTS' releases since 2023 (`BraTS-GLI-00005-100`), and in
    that of 2015 (`HG_brats_tcia_pat171_0200`)."""
    for pattern in (r"(BraTS-\w+-\d+)-\d{3}", r"((?:[HL]G_+)?brats_(?:tcia|2013)_pat\d+)_\d+"):
        match = re.fullmatch(pattern, study)
        if match:
            return match[1]
    return study


def _make(
    studies: Sequence[_Study],
    wanted: Sequence[Path],
    about: Mapping[str, Any],
    settings: Prior,
    labels: Sequence[int],
    folder: Path,
    device: torch.device,
) -> None:
    """The priors that are missing, part by part."""
    parts = folds([study.id for study in studies], settings.folds)
    unmade = [not path.exists() for path in wanted]
    list_key = _list_key(about, [study.case.path for study in studies])
    kept = {
        (part, modality): folder / f"sam-{list_key}-{part}-{modality.key}.safetensors"
        for part in sorted({part for part, is_unmade in zip(parts, unmade, strict=True) if is_unmade})
        for modality in Modality
    }
    untrained = {part for (part, _), path in kept.items() if not _is_whole(path)}
    encoder = Encoder(settings, device)
    looked_at = [
        study for study, part, is_unmade in zip(studies, parts, unmade, strict=True) if is_unmade or untrained - {part}
    ]
    for number, study in enumerate(looked_at, 1):
        study.look(encoder)
        log.info("%d/%d %s seen by SAM's encoder", number, len(looked_at), study.id)
    for (part, modality), path in kept.items():
        if not _is_whole(path):
            others = [study for study, own in zip(studies, parts, strict=True) if own != part]
            learned_from = [study.sequence(modality) for study in others if modality in study.available]
            learned_from = [sequence for sequence in learned_from if sequence.places]
            if not learned_from:
                log.warning("No study outside part %d shows %s: its priors there are empty.", part + 1, modality.title)
                continue
            decoder = trained(learned_from, encoder.channels, labels, settings.steps, settings.seed + part, device)
            with atomic_file(path) as temporary:
                save_file({name: value.cpu() for name, value in decoder.state_dict().items()}, temporary)
            log.info("part %d of %d: decoder of %s", part + 1, max(parts) + 1, modality.title)
    for study, part, path, is_unmade in zip(studies, parts, wanted, unmade, strict=True):
        if is_unmade:
            maps = np.zeros((len(study.available), *study.shape), np.uint8)
            for place, modality in enumerate(study.available):
                if _is_whole(kept[part, modality]):
                    decoder = _loaded(kept[part, modality], encoder, labels, device)
                    maps[place] = decoded(decoder, study.sequence(modality), labels, device)
            write_prior(path, maps, {**about, "part": part, "study": study.id, "uses_reference": False})


class _Study:
    """A cached study, and what the encoder makes of its sequences."""

    def __init__(self, path: Path, about: Mapping[str, Any], spacing_mm: float, folder: Path) -> None:
        self.case = CachedCase(path)
        if not self.case.has_target:
            raise InputError(f"The study {self.id} has no reference: decoders of the prior sam learn from them.")
        self._spacing_mm = spacing_mm
        name = prior_key({key: about[key] for key in ("version", "weights", "side", "scaling")}, [path.name])
        self._files = {m: folder / f"{path.stem}-{name}-{m.key}.features.safetensors" for m in self.available}

    @property
    def id(self) -> str:
        return self.case.id

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.case.shape

    @property
    def available(self) -> Modality:
        return self.case.available

    def reference(self, places: slice) -> UInt8[np.ndarray, "x y n"]:
        """Of neighbouring slices."""
        x, y, _ = self.shape
        target = self.case.crop((0, 0, places.start), (x, y, places.stop - places.start)).target
        assert target is not None
        return target

    @cached_property
    def tumour(self) -> list[int]:
        """The slices in which the reference has a label."""
        return np.flatnonzero(self.reference(slice(0, self.shape[2])).any((0, 1))).tolist()

    def look(self, encoder: Encoder) -> None:
        """Writes the features of every sequence that has none yet."""
        missing = [modality for modality, path in self._files.items() if not _is_whole(path)]
        image = self.case.crop((0, 0, 0), self.shape).image if missing else np.zeros(0)
        for modality in missing:
            channel = image[list(Modality).index(modality)].astype(np.float32)
            brain = channel != np.float16(self.case.level(modality))
            pictures, places = slices_of(channel, brain, self._spacing_mm)
            with atomic_file(self._files[modality]) as temporary:
                save_arrays({"features": encoder.features(pictures), "places": np.array(places, int)}, temporary)

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
        self._path, self.shape, self.study = path, study.shape, study
        with safe_open(path, "np") as file:
            self.places = file.get_tensor("places").tolist()
        shown = set(study.tumour)
        self.tumour = [number for number, place in enumerate(self.places) if place in shown]

    def of(self, chosen: range) -> Float[np.ndarray, "n c h w"]:
        with safe_open(self._path, "np") as file:
            return file.get_slice("features")[chosen.start : chosen.stop]

    def reference(self, chosen: range) -> UInt8[np.ndarray, "n x y"]:
        places = np.array([self.places[number] for number in chosen])
        whole = self.study.reference(slice(int(places[0]), int(places[-1]) + 1))
        return whole[:, :, places - places[0]].transpose(2, 0, 1)


def _loaded(path: Path, encoder: Encoder, labels: Sequence[int], device: torch.device) -> Decoder:
    decoder = Decoder(encoder.channels, len(labels) + 1)
    decoder.load_state_dict(load_file(path))
    return decoder.to(device).eval()


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, "np"):
            return True
    except (SafetensorError, OSError):
        return False


def _in_words(settings: Prior) -> str:
    shown = ("weights", "side", "scaling", "folds", "steps", "seed")
    return ", ".join(f"{name} {getattr(settings, name)}" for name in shown)


def _list_key(about: Mapping[str, Any], cases: Sequence[Path]) -> str:
    """A decoder, and so a prior, depends on the whole list."""
    return prior_key(about, sorted(path.name for path in cases))
