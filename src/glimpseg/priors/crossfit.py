"""Cross-fitted priors of SAM: a study's prior comes from decoders that did not learn from its reference.

Files in the cache folder are complete or absent, and named by their content: features of each sequence, decoders of
each fold, priors. An interrupted run continues where it was. One process at a time works in a folder.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from glimpseg.data.cache import CachedCase
from glimpseg.data.prior_cache import SUFFIX, prior_key, write_prior
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
from glimpseg.priors.decoder import Decoder, Features, decoded_labels, train_decoder
from glimpseg.priors.sam import Encoder, brain_slices, weights_digest, weights_path
from glimpseg.priors.settings import Prior
from glimpseg.runtime.atomic import atomic_file, file_lock
from glimpseg.runtime.distributed import rank_and_world

log = logging.getLogger(__name__)

VERSION = 3
"""Version of what is computed here; part of every file name."""
LOCK = ".priors.lock"


def cross_fitted_priors(
    cases: Sequence[Path],
    settings: Prior,
    labels: Sequence[int],
    spacing_mm: float,
    folder: Path,
    device: torch.device,
) -> list[Path]:
    """Return the file of each study's prior, in the order of `cases`; missing priors are made.

    A study's prior is one label map for each of its sequences, from decoders that were trained on the references of
    the other folds. Waits while another process makes priors in this folder. After priors were made, the features of
    all studies are deleted.

    Args:
        cases: cache files of the studies.
        settings: settings of the prior.
        labels: labels of the recipe.
        spacing_mm: side of a voxel, in mm.
        folder: cache folder, where features, decoders and priors lie.
        device: device of encoder and decoders.

    Raises: UsageError for weights that are not named or not there, several ranks with something to make, fewer than two
        patients, or a package transformers that is missing; InputError for a study without a reference, or a folder of
        weights without any; ModelError for other weights than SAM's.
    """
    paths, facts = prior_paths(cases, settings, labels, folder)
    if all(path.exists() for path in paths):
        return paths
    if rank_and_world()[1] > 1:
        raise UsageError(
            "Priors of SAM take longer to make than ranks wait for each other. Make them with `glimpseg prepare` "
            "first, with the same recipe, settings and list, and name its folder with --cache."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / LOCK):
        missing = sum(not path.exists() for path in paths)
        log.info("Making %d missing of %d priors, with %s.", missing, len(paths), _described(settings))
        if missing:
            studies = [_CachedStudy(path, facts, spacing_mm, folder) for path in cases]
            job = _PriorJob(
                studies=studies,
                paths=paths,
                facts=facts,
                settings=settings,
                labels=labels,
                folder=folder,
                device=device,
            )
            job.run()
            for study in studies:
                study.delete_features()
    return paths


def prior_paths(
    cases: Sequence[Path], settings: Prior, labels: Sequence[int], folder: Path
) -> tuple[list[Path], dict[str, Any]]:
    """Return the path of each study's prior, and the facts besides the list that decide its content.

    Raises: UsageError for weights that are not named or not there; InputError for a folder of weights without any.
    """
    facts = {
        "kind": "sam",
        "version": VERSION,
        "weights": weights_digest(weights_path(settings)),
        **{name: getattr(settings, name) for name in ("side", "scaling", "folds", "steps", "seed")},
        "labels": [int(label) for label in labels],
    }
    return [folder / f"{path.stem}-{_list_key(facts, cases)}{SUFFIX}" for path in cases], facts


def folds(studies: Sequence[str], count: int) -> list[int]:
    """Return the fold of each study, from 0; all studies of a patient are in one fold.

    Patients, sorted by name, go to the folds in turn. There are at most as many folds as patients.

    Raises: UsageError for a single patient.
    """
    patients = sorted({patient_of(study) for study in studies})
    if len(patients) < 2:
        raise UsageError(
            f"The prior sam is cross-fitted and needs at least two patients, not {len(patients)}: a decoder may not "
            "see the reference of the study it is used on."
        )
    return [patients.index(patient_of(study)) % min(count, len(patients)) for study in studies]


def patient_of(study: str) -> str:
    """Return the name of the patient of a study; for a study of an unknown name, that name.

    The last digits count time points in BraTS releases since 2023 (`BraTS-GLI-00005-100`), and in that of 2015
    (`HG_brats_tcia_pat171_0200`).
    """
    for pattern in (r"(BraTS-\w+-\d+)-\d{3}", r"((?:[HL]G_+)?brats_(?:tcia|2013)_pat\d+)_\d+"):
        match = re.fullmatch(pattern, study)
        if match:
            return match[1]
    return study


@dataclass(frozen=True, kw_only=True)
class _PriorJob:
    """Missing priors of a list, made fold by fold."""

    studies: Sequence[_CachedStudy]
    paths: Sequence[Path]
    """Prior file of each study."""
    facts: Mapping[str, Any]
    """Facts that decide the content of a prior, besides the list."""
    settings: Prior
    labels: Sequence[int]
    folder: Path
    device: torch.device

    def run(self) -> None:
        """Write the features that are needed, the decoders of each fold, then the priors."""
        files = self.decoder_files  # before the encoder is loaded: a single patient is refused here
        encoder = Encoder(self.settings, self.device)
        self.write_features(encoder)
        for (fold, modality), path in files.items():
            if not _is_whole(path):
                self.train_decoder(fold, modality, encoder)
        for study, fold, path, missing in zip(self.studies, self.folds, self.paths, self.missing, strict=True):
            if missing:
                write_prior(
                    path,
                    self.prior(study, fold, encoder),
                    {**self.facts, "part": fold, "study": study.id, "uses_reference": False},
                )

    @cached_property
    def folds(self) -> list[int]:
        """Fold of each study."""
        return folds([study.id for study in self.studies], self.settings.folds)

    @cached_property
    def missing(self) -> list[bool]:
        """True for each study without a prior."""
        return [not path.exists() for path in self.paths]

    @cached_property
    def decoder_files(self) -> dict[tuple[int, Modality], Path]:
        """File of the decoder of each sequence, for each fold with missing priors."""
        list_key = _list_key(self.facts, [study.case.path for study in self.studies])
        needed = sorted({fold for fold, missing in zip(self.folds, self.missing, strict=True) if missing})
        return {
            (fold, modality): self.folder / f"sam-{list_key}-{fold}-{modality.key}.safetensors"
            for fold in needed
            for modality in Modality
        }

    def write_features(self, encoder: Encoder) -> None:
        """Write the features of studies without a prior, and of those that an untrained decoder learns from."""
        untrained = {fold for (fold, _), path in self.decoder_files.items() if not _is_whole(path)}
        needed = [
            study
            for study, fold, missing in zip(self.studies, self.folds, self.missing, strict=True)
            if missing or untrained - {fold}
        ]
        for number, study in enumerate(needed, 1):
            study.write_features(encoder)
            log.info("%d/%d SAM features of %s are ready", number, len(needed), study.id)

    def train_decoder(self, fold: int, modality: Modality, encoder: Encoder) -> None:
        """Train the decoder of one sequence on the studies of all other folds, and write its file.

        If none of them has the sequence, a warning is logged and nothing is written.
        """
        others = [study for study, own in zip(self.studies, self.folds, strict=True) if own != fold]
        sequences = [study.sequence(modality) for study in others if modality in study.available]
        sequences = [sequence for sequence in sequences if sequence.places]
        if not sequences:
            log.warning("No study outside fold %d has %s: its priors there are empty.", fold + 1, modality.title)
            return
        decoder = train_decoder(
            sequences,
            encoder.channels,
            self.labels,
            steps=self.settings.steps,
            seed=self.settings.seed + fold,
            device=self.device,
        )
        with atomic_file(self.decoder_files[fold, modality]) as temporary:
            save_file({name: value.cpu() for name, value in decoder.state_dict().items()}, temporary)
        log.info("Fold %d of %d: trained the decoder of %s", fold + 1, max(self.folds) + 1, modality.title)

    def prior(self, study: _CachedStudy, fold: int, encoder: Encoder) -> UInt8[np.ndarray, "m x y z"]:
        """Return the labels of each of the study's sequences, by the decoders of its fold; 0 without a decoder."""
        maps = np.zeros((len(study.available), *study.shape), np.uint8)
        for place, modality in enumerate(study.available):
            path = self.decoder_files[fold, modality]
            if _is_whole(path):
                decoder = _loaded_decoder(path, encoder, self.labels, self.device)
                maps[place] = decoded_labels(decoder, study.sequence(modality), self.labels, self.device)
        return maps


class _CachedStudy:
    """Cached study, and the files of its features. Raises: InputError if it has no reference."""

    def __init__(self, path: Path, facts: Mapping[str, Any], spacing_mm: float, folder: Path) -> None:
        self.case = CachedCase(path)
        if not self.case.has_target:
            raise InputError(f"The study {self.id} has no reference: decoders of the prior sam learn from them.")
        self._spacing_mm = spacing_mm
        name = prior_key({key: facts[key] for key in ("version", "weights", "side", "scaling")}, [path.name])
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
        """Return the labels of neighbouring slices."""
        x, y, _ = self.shape
        target = self.case.crop((0, 0, places.start), (x, y, places.stop - places.start)).target
        assert target is not None
        return target

    @cached_property
    def tumour(self) -> list[int]:
        """Indices of the slices in which the reference has a label."""
        return np.flatnonzero(self.reference(slice(0, self.shape[2])).any((0, 1))).tolist()

    def write_features(self, encoder: Encoder) -> None:
        """Write the features of every sequence that has none yet."""
        missing = [modality for modality, path in self._files.items() if not _is_whole(path)]
        image = self.case.crop((0, 0, 0), self.shape).image if missing else np.zeros(0)
        for modality in missing:
            channel = image[list(Modality).index(modality)].astype(np.float32)
            brain = channel != np.float16(self.case.level(modality))
            pictures, places = brain_slices(channel, brain, self._spacing_mm)
            with atomic_file(self._files[modality]) as temporary:
                save_arrays({"features": encoder.features(pictures), "places": np.array(places, int)}, temporary)

    def sequence(self, modality: Modality) -> _StoredFeatures:
        """Return the features of one sequence."""
        return _StoredFeatures(self, self._files[modality])

    def delete_features(self) -> None:
        """Delete the features, which are not needed again: 72 MiB of a study at 256 pixels."""
        for path in self._files.values():
            path.unlink(missing_ok=True)


class _StoredFeatures(Features):
    """Features on disk, read slice by slice."""

    def __init__(self, study: _CachedStudy, path: Path) -> None:
        self._path, self.shape, self.study = path, study.shape, study
        with safe_open(path, "np") as file:
            self.places = file.get_tensor("places").tolist()
        shown = set(study.tumour)
        self.tumour = [number for number, place in enumerate(self.places) if place in shown]

    def read(self, chosen: range) -> Float[np.ndarray, "n c h w"]:
        with safe_open(self._path, "np") as file:
            return file.get_slice("features")[chosen.start : chosen.stop]

    def reference(self, chosen: range) -> UInt8[np.ndarray, "n x y"]:
        places = np.array([self.places[number] for number in chosen])
        whole = self.study.reference(slice(int(places[0]), int(places[-1]) + 1))
        return whole[:, :, places - places[0]].transpose(2, 0, 1)


def _loaded_decoder(path: Path, encoder: Encoder, labels: Sequence[int], device: torch.device) -> Decoder:
    decoder = Decoder(encoder.channels, len(labels) + 1)
    decoder.load_state_dict(load_file(path))
    return decoder.to(device).eval()


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, "np"):
            return True
    except (SafetensorError, OSError):
        return False


def _described(settings: Prior) -> str:
    shown = ("weights", "side", "scaling", "folds", "steps", "seed")
    return ", ".join(f"{name} {getattr(settings, name)}" for name in shown)


def _list_key(facts: Mapping[str, Any], cases: Sequence[Path]) -> str:
    """Content key of the whole list, on which a decoder, and therefore a prior, depends."""
    return prior_key(facts, sorted(path.name for path in cases))
