"""DICOM structured reports (SR, TID 1500) of region volumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from glimpseg.data.dicom import codes, libraries
from glimpseg.data.dicom.attributes import inherited_headers
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.data.dicom.read import source_geometry, source_headers
from glimpseg.data.dicom.seg import (
    LONGEST_NAME,
    SERIES_OFFSET,
    hide_library_errors,
    onto_source,
    series_number,
    write_derived,
)
from glimpseg.data.series import Series
from glimpseg.errors import InputError
from glimpseg.region import Label, Region
from glimpseg.version import __version__
from glimpseg.volume import Volume

if TYPE_CHECKING:
    import highdicom
    from pydicom.dataset import Dataset

    Group: TypeAlias = (
        highdicom.sr.VolumetricROIMeasurementsAndQualitativeEvaluations
        | highdicom.sr.MeasurementsAndQualitativeEvaluations
    )

DECIMALS = 3
"""Decimals of a volume in millilitres; the last one is a cubic millimetre."""


def write_sr(
    path: str | Path,
    labels: Volume,
    segmentation: str | Path,
    source: Series,
    *,
    model: str,
    regions: Sequence[Region] = tuple(Region),
    pseudonyms: Pseudonyms | None = None,
) -> None:
    """Write the volumes of regions (ml) as a structured report that refers to a segmentation.

    Args:
        path: file to write.
        labels: label map that `write_seg` was given.
        segmentation: file that `write_seg` wrote.
        source: series of the segmentation.
        model: name of the algorithm.
        regions: regions to report. Leave out those that the model does not separate, such as the cavity. An absent
            region is reported as 0 ml.
        pseudonyms: the same as for `write_seg`.

    Raises:
        InputError: as `write_seg`, or if `segmentation` cannot be read, is no segmentation, or is of another study.
        OutputError: if writing fails.
        UsageError: without the extra `dicom`.
    """
    libraries.require()
    headers = source_headers(source)
    geometry = source_geometry(source, headers)
    with libraries.silenced():
        with hide_library_errors(source):
            images = inherited_headers(headers, pseudonyms)
            placed = onto_source(labels, source, geometry)
        seg_header = _read_seg_header(Path(segmentation), images[0].StudyInstanceUID)
        voxel_ml = float(geometry.voxel_volume) / 1000
        volumes = {region: float(np.isin(placed.array, region.value).sum()) * voxel_ml for region in regions}
        with hide_library_errors(source):
            dataset = _structured_report(volumes, seg_header, images, model)
        write_derived(path, dataset, source, pseudonyms)


def _read_seg_header(path: Path, study_uid: str) -> Dataset:
    """Read the header of a segmentation. Raises: InputError if it is none, or of another study."""
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:
        raise InputError(f"{path.name} is no segmentation ({type(error).__name__}).") from None
    if header.get("StudyInstanceUID") != study_uid or "SegmentSequence" not in header:
        raise InputError(f"{path.name} is no segmentation of this study. Give what write_seg wrote.")
    return header


def _structured_report(
    volumes: dict[Region, float], seg_header: Dataset, images: Sequence[Dataset], model: str
) -> highdicom.sr.Comprehensive3DSR:
    import highdicom
    from pydicom.sr.codedict import codes as dictionary

    device = highdicom.sr.ObserverContext(
        observer_type=dictionary.DCM.Device,
        observer_identifying_attributes=highdicom.sr.DeviceObserverIdentifyingAttributes(
            uid=highdicom.UID(), manufacturer_name="glimpseg", model_name=model[:LONGEST_NAME]
        ),
    )
    report = highdicom.sr.MeasurementReport(
        observation_context=highdicom.sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.PROCEDURE.concept(),
        imaging_measurements=[
            _measurement_group(region, ml, seg_header, images, model=model) for region, ml in volumes.items()
        ],
    )
    dataset = highdicom.sr.Comprehensive3DSR(
        evidence=[*images, seg_header],
        content=report,
        series_instance_uid=highdicom.UID(),
        series_number=series_number(images, SERIES_OFFSET + 1),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="glimpseg",
        series_description="Brain tumour volumes",
    )
    dataset.CodingSchemeIdentificationSequence = [codes.private_scheme_item()]
    return dataset


def _measurement_group(
    region: Region, ml: float, seg_header: Dataset, images: Sequence[Dataset], *, model: str
) -> Group:
    """Return the measurement group of one region.

    It refers to the region's segment if the region is one label that occurs, else to the whole segmentation.
    """
    from highdicom import UID, sr
    from pydicom.sr.codedict import codes as dictionary

    name = sr.TrackingIdentifier(identifier=f"glimpseg {region.name}", uid=UID())
    described: dict[str, Any] = {
        "finding_type": codes.REGIONS[region].concept(),
        "finding_category": codes.CATEGORY.concept(),
        "finding_sites": [sr.FindingSite(codes.BRAIN.concept())],
        "algorithm_id": sr.AlgorithmIdentification(name=model[:LONGEST_NAME], version=__version__),
        "measurements": [
            sr.Measurement(name=dictionary.SCT.Volume, value=round(ml, DECIMALS), unit=codes.MILLILITRE.concept())
        ],
    }
    segment = _segment_number(region, seg_header)
    if segment is None:
        whole = sr.SourceImageForMeasurementGroup(seg_header.SOPClassUID, seg_header.SOPInstanceUID)
        return sr.MeasurementsAndQualitativeEvaluations(name, source_images=[whole], **described)
    referenced = sr.ReferencedSegment(
        sop_class_uid=seg_header.SOPClassUID,
        sop_instance_uid=seg_header.SOPInstanceUID,
        segment_number=segment,
        source_series=sr.SourceSeriesForSegmentation(images[0].SeriesInstanceUID),
    )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(name, referenced_segment=referenced, **described)


def _segment_number(region: Region, seg_header: Dataset) -> int | None:
    """Return the segment number of a region that is one label; None for unions and absent labels."""
    if len(region.value) > 1:
        return None
    for item in seg_header.SegmentSequence:
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        if codes.label_of(kind.CodeValue, kind.CodingSchemeDesignator) == Label(region.value[0]):
            return int(item.SegmentNumber)
    return None
