"""The functions a program calls to segment: `load` a model, `segment` images, `segment_study`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from glimpseg.data.notices import StudyNotices
from glimpseg.modality import Modality
from glimpseg.model.loading import Model, load_model
from glimpseg.model.shipped import BOX
from glimpseg.runtime.device import resolved_device
from glimpseg.segmentation.inputs import ImageLike, MaskLike, StudyInput, input_from_images, noticed
from glimpseg.segmentation.options import PLAIN, InferenceOptions
from glimpseg.segmentation.passes import segment_prepared
from glimpseg.segmentation.preparation import prepare_input
from glimpseg.segmentation.result import Segmentation
from glimpseg.study import Study

DEFAULT_OPTIONS = InferenceOptions()
WHERE = "`warnings` and `notes` of the result have all of them"


def load(
    path: str | Path = BOX,
    device: str = "auto",
    choices: Mapping[str, Any] = MappingProxyType({}),
    backend: str = "torch",
) -> Model:
    """Load a model, from its folder or the one that comes with the package.

    Args:
        path: Model folder or run folder that training wrote; `box` (default) is the model of the package.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes CUDA if it is there, then MPS, then the CPU.
        choices: Settings that the method leaves open until it segments: `load("smml", choices={"config.branch": 1})`.
        backend: Inference backend (docs/backends.md). `torch` (default): the same bits whatever else is installed.
            `openvino`, `onnx`, or `auto`: the fastest that is installed and good for the model.

    Raises:
        ModelError: If the folder holds no model that this version can read, or the package came without its model.
        UsageError: For a choice that the model does not have, a device that is not there, or a backend that is unknown,
            not installed, or not for this device.

    >>> import glimpseg
    >>> model = glimpseg.load(device="cpu")
    >>> [region.name for region in model.network.regions]
    ['WT', 'TC', 'ET', 'RC']
    """
    return load_model(path, resolved_device(device), choices, backend)


def segment(
    *,
    t1: ImageLike | None = None,
    t1c: ImageLike | None = None,
    t2: ImageLike | None = None,
    flair: ImageLike | None = None,
    brain_mask: MaskLike | None = None,
    model: str | Path | Model = BOX,
    options: InferenceOptions = DEFAULT_OPTIONS,
) -> Segmentation:
    """Segment one study from the sequences that exist. Leave out those that do not.

    Args:
        t1: T1 without contrast. Every image is a path (NIfTI, or a folder or archive of one DICOM series), a nibabel
            image or a `Volume`.
        t1c: T1 with contrast.
        t2: T2.
        flair: FLAIR.
        brain_mask: Brain mask, if the background of the images is not constant.
        model: A model that `load` returned, or a model folder for `load` with its defaults. Default: the model of the
            package. To choose the device or the backend, call `load` first.
        options: Grid of the result, raw images, probabilities and uncertainty.

    Raises:
        InputError: For images that cannot be used, when none is given, or when the memory does not suffice.
        ModelError: Without a usable model.
        UsageError: For raw images or DICOM without the extras that they need, for a folder or archive that does not
            hold one series, or for a grid of a sequence that is not given.
        OutputError: If an archive cannot be unpacked.

    >>> import glimpseg
    >>> from glimpseg.phantom.dataset import as_study
    >>> images = as_study(glimpseg.phantom.generate(7, glimpseg.phantom.Settings.at_spacing(4.0))).images
    >>> found = glimpseg.segment(
    ...     t1c=images[glimpseg.Modality.T1C],
    ...     flair=images[glimpseg.Modality.FLAIR],
    ...     model=glimpseg.load(device="cpu"),
    ...     options=glimpseg.InferenceOptions(raw="no", uncertainty="none"),
    ... )
    >>> found.used.title, found.absent.title
    ('T1c + FLAIR', 'T1 + T2')
    >>> [region.name for region in found.volumes_ml]
    ['WT', 'TC', 'ET', 'RC']
    >>> found.labels.grid.shape
    (60, 60, 39)
    """
    named = {Modality.T1: t1, Modality.T1C: t1c, Modality.T2: t2, Modality.FLAIR: flair}
    images = {m: image for m, image in named.items() if image is not None}
    given = noticed(lambda: input_from_images(images, brain_mask), StudyNotices(where=WHERE))
    return _segmented(given, model if isinstance(model, Model) else load(model), options)


def segment_study(study: Study, model: Model, options: InferenceOptions = PLAIN) -> Segmentation:
    """Segment a `Study` with a loaded model; by default one plain pass, without uncertainty.

    Raises: InputError for images that cannot be used, or when the memory does not suffice; UsageError for raw images
        without the extras that they need, or for a grid of a sequence that the study lacks.
    """
    return _segmented(StudyInput(study, notices=StudyNotices(where=WHERE)), model, options)


def _segmented(study_input: StudyInput, model: Model, options: InferenceOptions) -> Segmentation:
    with study_input.notices.telling():
        prepared = prepare_input(study_input, model, options)
        study_input.notices.tell()
        return segment_prepared(prepared, model, options)
